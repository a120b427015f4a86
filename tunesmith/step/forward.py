"""From a packed row to its loss: the class's decoder under our attention and our head, or the class as it is where the proof
forbids that. What may be left to us is decided once, at the start."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.corpus.batches import Row, flat
from tunesmith.errors import UserError
from tunesmith.models import attention, slots
from tunesmith.models.attention_kernels import note as attention_note
from tunesmith.models.attention_layers import attention_layers
from tunesmith.models.forest import Front, row_arguments
from tunesmith.models.head import decoder_of, head_of
from tunesmith.models.proof import Proof
from tunesmith.models.score import Score
from tunesmith.step.loss import label_loss, learned_loss, loss_of_logits


@dataclass(frozen=True, slots=True)
class Carried:
    """What a row has kept for those behind it: keys and values by attention module, and how many tokens they stand for."""

    tokens: int
    fronts: dict[Any, Front]


@dataclass
class Forward:
    """How a row is computed. Rows must hold one document each where `packed` is false.

    With a `score` their targets are labels. `notes` are sentences for the user.
    """

    model: Any
    own_head: bool
    packed: bool
    score: Score | None = None
    notes: tuple[str, ...] = ()
    replayed: Callable[[Row], Tensor | None] | None = None  # the decoder's hidden states by `step/graphs.py`, where a row fits

    def __post_init__(self) -> None:
        self.decoder = decoder_of(self.model) if self.own_head or self.score is not None else None
        self.head = head_of(self.model) if self.own_head and self.score is None else None

    def weight(self, row: Row) -> float:
        """What a sum of losses over the row's own is divided by for their mean: its learned tokens, or the weights of its labels."""
        if self.score is None or self.score.class_weights_L is None:
            return float(len(row.targets_N))
        return self.score.class_weights_L[row.targets_N].sum().item()

    def loss(self, row: Row, scale: float = 1.0, head_gradient_VC: Tensor | None = None) -> Tensor:
        """scale · summed cross entropy of the learned tokens or labels of the row and those behind it, all in one graph; see
        `learned_loss` for the head's gradient."""
        return self._sum(row, scale, head_gradient_VC, ())

    def learn(
        self, row: Row, scale: float = 1.0, head_gradient_VC: Tensor | None = None, gathered: Callable[[], None] = lambda: None
    ) -> Tensor:
        """The same, detached, with its backward pass done: gradients are added up where they belong.

        `gathered` is called after each backward pass, of which a row with others behind it has several: those rows are computed
        one after another, and the graph of the row in front waits for what they make of its keys and values.
        """
        return self._learn(row, scale, head_gradient_VC, gathered, ())

    @torch.no_grad()
    def mean_loss(self, rows: Iterable[Row]) -> tuple[float, int]:
        """(mean loss over the learned tokens, how many) of many rows, never more logits than one chunk at a time."""
        total, weight, count = torch.zeros((), dtype=torch.float64), 0.0, 0
        for row in rows:
            total += self.loss(row).double().cpu()
            weight += sum(self.weight(each) for each in flat([row]))
            count += sum(len(each.targets_N) for each in flat([row]))
        return (total / (weight or 1.0)).item(), count

    def _sum(self, row: Row, scale: float, head_gradient_VC: Tensor | None, carried: tuple[Carried, ...]) -> Tensor:
        loss, kept = self._own(row, scale, head_gradient_VC, carried)
        for other in row.behind:
            loss = loss + self._sum(other, scale, head_gradient_VC, (*carried, kept))
        return loss

    def _learn(
        self, row: Row, scale: float, head_gradient_VC: Tensor | None, gathered: Callable[[], None], carried: tuple[Carried, ...]
    ) -> Tensor:
        loss, kept = self._own(row, scale, head_gradient_VC, carried)
        total, outputs = loss.detach(), [loss]
        gradients: list[Tensor | None] = [None]
        if row.behind:
            leaves = {module: (Leaf(keys), Leaf(values)) for module, (keys, values) in kept.fronts.items()}
            fronts = {module: (keys.tensor, values.tensor) for module, (keys, values) in leaves.items()}
            for other in row.behind:
                total = total + self._learn(other, scale, head_gradient_VC, gathered, (*carried, Carried(kept.tokens, fronts)))
            for leaf in (leaf for pair in leaves.values() for leaf in pair):
                if (gradient := leaf.gradient()) is not None:
                    outputs.append(leaf.source)
                    gradients.append(gradient)
        wanted = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if output.requires_grad]
        if wanted:
            torch.autograd.backward([output for output, _ in wanted], [gradient for _, gradient in wanted])
        gathered()
        return total

    def _own(self, row: Row, scale: float, head_gradient_VC: Tensor | None, carried: tuple[Carried, ...]) -> tuple[Tensor, Carried]:
        """The loss of a row's own learned tokens, and what it keeps for those behind it."""
        assert self.packed or not (row.parents or row.behind or carried), "rows share only where they may be packed"
        device = self.model.device
        hidden_N, targets_N = row.hidden_N.to(device), row.targets_N.to(device)
        if self.replayed is not None and not carried and (h_TC := self.replayed(row)) is not None:
            return self._loss(h_TC[hidden_N], targets_N, scale, head_gradient_VC), Carried(len(row.ids_T), {})
        ids_1T = row.ids_T[None].to(device)
        arguments: dict[str, Any] = {}
        kept: dict[Any, Front] = {}
        if self.packed:
            first = slots.first_position(self.model) + sum(each.tokens for each in carried)
            before = tuple(each.fronts for each in carried)
            arguments = row_arguments(row.lengths, device, first, row.parents, before, kept if row.behind else None)
        if self.decoder is None:
            logits_TV = self.model(input_ids=ids_1T, use_cache=False, **arguments).logits[0]
            loss = loss_of_logits(logits_TV, hidden_N, targets_N, scale)
        else:
            h_TC = self.decoder(input_ids=ids_1T, use_cache=False, **arguments).last_hidden_state[0]
            loss = self._loss(h_TC[hidden_N], targets_N, scale, head_gradient_VC)
        if row.behind:
            assert len(row.lengths) == 1, "rows behind a row continue its only segment"
            arguments["forest"].kept = None  # a block that is computed again keeps nothing
        return loss, Carried(len(row.ids_T), kept)

    def _loss(self, h_NC: Tensor, targets_N: Tensor, scale: float, head_gradient_VC: Tensor | None) -> Tensor:
        if self.score is not None:
            return label_loss(h_NC, targets_N, self.score, scale)
        assert self.head is not None
        return learned_loss(h_NC, targets_N, self.head, scale, head_gradient_VC)


class Leaf:
    """A tensor of one graph that other graphs use: their gradients of it are added up, in fp32."""

    def __init__(self, source: Tensor):
        self.source, self.tensor = source, source.detach()
        self._sum: Tensor | None = None
        if source.requires_grad:
            self.tensor.requires_grad_()
            if source.dtype in (torch.bfloat16, torch.float16):  # many rows' gradients would be lost in so few digits
                self.tensor.register_post_accumulate_grad_hook(self._add)

    def _add(self, tensor: Tensor) -> None:
        assert tensor.grad is not None
        self._sum = tensor.grad.float() if self._sum is None else self._sum.add_(tensor.grad)
        tensor.grad = None

    def gradient(self) -> Tensor | None:
        """The sum in the tensor's own dtype, or None where no graph needed one."""
        return self.tensor.grad if self._sum is None else self._sum.to(self.source.dtype)


def prepare(model: Any, proof: Proof, own_attention: str, score: Score | None = None) -> Forward:
    """The model set up as the proof allows: our attention where rows may be packed, the class's own elsewhere.

    Raises UserError where a prefix stands in it and our attention, which alone knows of it, may not be used.
    """
    if slots.prefix(model) and not (proof.packed and proof.behind_prefix):
        raise UserError(
            f"{type(model).__name__} cannot be trained behind a prefix, take another method (lora, prompt, adapter):", *proof.failures
        )
    model.set_attn_implementation(attention.NAME if proof.packed else own_attention)
    return Forward(model, proof.own_head, proof.packed, score, _notes(model) if proof.packed else ())


def _notes(model: Any) -> tuple[str, ...]:
    """Where a GPU's first choice of attention is not what is used: asked for every shape of heads in the model."""
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    if model.device.type != "cuda" or heads is None:
        return ()
    try:
        shapes = sorted({(layer.heads, layer.size) for layer in attention_layers(model)})
    except LookupError:
        return ()
    notes = (attention_note(model.device, model.dtype, heads, kept, size) for kept, size in shapes)
    return tuple(note for note in notes if note)


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
