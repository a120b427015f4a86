"""A step computed: one packed row of all answers through the class's own decoder, and the head on the last token of those that want one.

Tokens of one adapter stand together, so that whatever stands at the model's layers reads whole stretches.

Shapes: T tokens of the row, P parts, B answers whose next token is to be chosen, C channels, V words of the head.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.models.attention_layers import AttentionLayer, attention_layers
from tunesmith.models.head import decoder_of, head_of
from tunesmith.models.load import Base
from tunesmith.models.proof import prove
from tunesmith.serve.builtin.attention import step_of
from tunesmith.serve.builtin.scheduler import Part

Span = tuple[int, int, str]  # from where to where in a row, and whose adapter


class Forward:
    """Raises UserError for a model that this engine cannot compute."""

    def __init__(self, base: Base, mixed: Any):
        self.model, self.mixed, self.layers = base.model, mixed, served_layers(base)
        self._numbers = {self.model.get_submodule(layer.path): number for number, layer in enumerate(self.layers)}
        self._decoder = decoder_of(self.model)
        # whatever stands at the head is asked by its call, also what is placed and lifted later
        self._head = replace(head_of(self.model), placed=self.model.get_output_embeddings())

    @property
    def words(self) -> int:
        """How many logits a token has."""
        return int(self._head.weight_VC.shape[0])

    def compute(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
        """Logits [B, V] of the parts that want a token, in their order, and [P] whether each part's last hidden state is finite.

        Writes keys and values of the parts' tokens behind what their rooms hold, and changes no length: a step can be repeated.
        """
        ids: list[int] = []
        positions: list[int] = []
        spans, rooms, last = list[Span](), [], []
        for part in parts:
            answer, start = part.answer, len(ids)
            assert answer.room is not None
            done = answer.computed
            ids += answer.fed[done : done + part.count]
            positions += range(answer.room.length, answer.room.length + part.count)
            spans.append((start, len(ids), answer.adapter))
            rooms.append((answer.room, start, len(ids)))
            last.append(len(ids) - 1)
        wanting = [number for number, part in enumerate(parts) if part.wants]
        device = self.model.device
        numbers = torch.tensor([*ids, *positions, *last, *wanting]).to(device)
        ids_T, positions_T, last_P, wanting_B = numbers.split([len(ids), len(ids), len(last), len(wanting)])
        step = step_of(self._numbers, rooms, device)
        with self.mixed.rows(joined(spans)):
            given: dict[str, Any] = {"input_ids": ids_T[None], "position_ids": positions_T[None], "use_cache": False, "serving": step}
            hidden_TC = self._decoder(**given).last_hidden_state[0]
        hidden_PC = hidden_TC.index_select(0, last_P)
        sound_P = hidden_PC.isfinite().all(-1)
        if not wanting:
            return hidden_PC.new_empty(0, self.words), sound_P
        hidden_BC = hidden_PC.index_select(0, wanting_B)
        with self.mixed.rows(joined([(at, at + 1, parts[number].answer.adapter) for at, number in enumerate(wanting)])):
            logits_BV = self._head.logits(hidden_BC)
        return logits_BV, sound_P


def joined(spans: Sequence[Span]) -> list[Span]:
    """Neighbours of one adapter as one span."""
    found: list[Span] = []
    for start, end, name in spans:
        if found and found[-1][2] == name:
            found[-1] = (found[-1][0], end, name)
        else:
            found.append((start, end, name))
    return found


def served_layers(base: Base) -> list[AttentionLayer]:
    """The attention of every block, where the class lets it be ours. Raises UserError with the reason where not."""
    instead = "serve it with --engine vllm or --engine llamacpp"
    kind = type(base.model).__name__
    try:
        layers = attention_layers(base.model)
    except LookupError as error:
        raise UserError(f"the built-in engine cannot serve a {kind}: {error.args[0]}; {instead}") from None
    proof = prove(base.model.config, type(base.model), base.own_attention, share=False)
    if not (proof.packed and proof.own_head):
        raise UserError(f"the built-in engine cannot serve a {kind}: {proof.failures[0]}; {instead}")
    return layers
