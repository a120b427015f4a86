"""From a packed row to its loss: the class's decoder under our attention and our head, or the class as it is where the proof
forbids that. What may be left to us is decided once, at the start."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.corpus.batches import Row
from tunesmith.errors import UserError
from tunesmith.models import attention, slots
from tunesmith.models.head import decoder_of, head_of
from tunesmith.models.proof import Proof, row_arguments
from tunesmith.models.score import Score
from tunesmith.step.loss import label_loss, learned_loss, loss_of_logits


@dataclass
class Forward:
    """How a row is computed. Rows must hold one document each where `packed` is false. With a `score` their targets are labels."""

    model: Any
    own_head: bool
    packed: bool
    score: Score | None = None

    def __post_init__(self) -> None:
        self.decoder = decoder_of(self.model) if self.own_head or self.score is not None else None
        self.head = head_of(self.model) if self.own_head and self.score is None else None

    def weight(self, row: Row) -> float:
        """What a sum of losses over the row is divided by for their mean: its learned tokens, or the weights of its labels."""
        if self.score is None or self.score.class_weights_L is None:
            return float(len(row.targets_N))
        return self.score.class_weights_L[row.targets_N].sum().item()

    def loss(self, row: Row, scale: float = 1.0, head_gradient_VC: Tensor | None = None) -> Tensor:
        """scale · summed cross entropy of the row's learned tokens or labels; see `learned_loss` for the head's gradient."""
        device = self.model.device
        ids_1T = row.ids_T[None].to(device)
        hidden_N, targets_N = row.hidden_N.to(device), row.targets_N.to(device)
        arguments = row_arguments(row.lengths, device, slots.first_position(self.model)) if self.packed else {}
        if self.decoder is None:
            logits_TV = self.model(input_ids=ids_1T, use_cache=False, **arguments).logits[0]
            return loss_of_logits(logits_TV, hidden_N, targets_N, scale)
        h_TC = self.decoder(input_ids=ids_1T, use_cache=False, **arguments).last_hidden_state[0]
        if self.score is not None:
            return label_loss(h_TC[hidden_N], targets_N, self.score, scale)
        assert self.head is not None
        return learned_loss(h_TC[hidden_N], targets_N, self.head, scale, head_gradient_VC)

    @torch.no_grad()
    def mean_loss(self, rows: Iterable[Row]) -> tuple[float, int]:
        """(mean loss over the learned tokens, how many) of many rows, never more logits than one chunk at a time."""
        total, weight, count = torch.zeros((), dtype=torch.float64), 0.0, 0
        for row in rows:
            total += self.loss(row).double().cpu()
            weight += self.weight(row)
            count += len(row.targets_N)
        return (total / (weight or 1.0)).item(), count


def prepare(model: Any, proof: Proof, own_attention: str, score: Score | None = None) -> Forward:
    """The model set up as the proof allows: our attention where rows may be packed, the class's own elsewhere.

    Raises UserError where a prefix stands in it and our attention, which alone knows of it, may not be used.
    """
    if slots.prefix(model) and not (proof.packed and proof.behind_prefix):
        raise UserError(
            f"{type(model).__name__} cannot be trained behind a prefix, take another method (lora, prompt, adapter):", *proof.failures
        )
    model.set_attn_implementation(attention.NAME if proof.packed else own_attention)
    return Forward(model, proof.own_head, proof.packed, score)


@torch.no_grad()
def first_nonfinite(forward: Forward, row: Row) -> str:
    """The path of the first module whose output is not finite for this row, or an empty text."""
    found: list[str] = []

    def look(path: str, module: Any, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            found.append(path)

    hooks = [
        module.register_forward_hook(partial(look, path))
        for path, module in forward.model.named_modules()
        if path and not list(module.children())
    ]
    try:
        forward.loss(row)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
