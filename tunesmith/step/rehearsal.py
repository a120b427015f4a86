"""A row computed without memory and without arithmetic, to learn how much memory it would take.

The model's own classes run on the meta device, where tensors have shapes and no content: forward, loss and backward of one row
as the run would make them, with its adapters, its parts, its level of recompute and its chunks of logits. Every storage that
appears is counted until nobody holds it any more. Nothing is assumed of the architecture but that blocks of the same tensors take
the same memory: one of each kind is computed, and one more of each, whose difference stands for the others.

Gradients of trained tensors are left out of the count as soon as they are whole: how many of them stand at once is up to the run.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import AttentionInterface

from tunesmith.data.corpus.batches import Row
from tunesmith.models import slots
from tunesmith.models.load import attention, quiet
from tunesmith.models.parts import standing
from tunesmith.step import recompute
from tunesmith.step.forward import Forward
from tunesmith.step.loss import META_STANDS_FOR

NAME = "tunesmith_rehearsal"


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Bytes beyond what stood before the row."""

    kept: float  # when the forward pass is done: what the backward pass will want
    forward: float  # the most at any moment of the forward pass, the loss included
    backward: float  # and of the backward pass
    block: float  # and of the backward pass of one block alone

    @property
    def peak(self) -> int:
        return int(max(self.forward, self.backward))


def rehearse(forward: Forward, row: Row, level: str, *, trained_head: bool = False, device_type: str = "cpu") -> Rehearsed:
    """What a row takes on a model of the meta device, whose adapter stands in its places, with all blocks at a level of recompute.

    Whatever a class raises that cannot be computed without content is raised here.
    """
    kinds = _kinds([block for _, block in slots.blocks(forward.model)])
    one = [members[0] for members in kinds]
    with _instead_of_the_run(forward.model, device_type):
        total = block = _count(forward, row, level, one, trained_head)
        for number, members in enumerate(kinds):
            if len(members) > 1:
                more = _count(forward, row, level, [*one[: number + 1], members[1], *one[number + 1 :]], trained_head)
                total = _sum(total, _sum(more, block, -1.0), len(members) - 1.0)
    if level == "offload":  # the inputs of three blocks are on the device: one in use, one that comes, one that goes
        each = row.computed_tokens * forward.model.config.get_text_config().hidden_size * forward.model.dtype.itemsize
        away = max(0, sum(map(len, kinds)) - 3) * each
        total = Rehearsed(total.kept - away, total.forward - away, total.backward - away, block.backward)
    return Rehearsed(total.kept, total.forward, total.backward, block.backward)


def _sum(a: Rehearsed, b: Rehearsed, times: float) -> Rehearsed:
    return Rehearsed(a.kept + times * b.kept, a.forward + times * b.forward, a.backward + times * b.backward, a.block)


def _kinds(every: list[nn.Module]) -> list[list[nn.Module]]:
    """Blocks that hold tensors of the same names and shapes, together, in the order of the first of each."""
    kinds: dict[Any, list[nn.Module]] = {}
    for block in every:
        named = tuple((name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters())
        kinds.setdefault((type(block), named), []).append(block)
    return list(kinds.values())


@contextmanager
def _instead_of_the_run(model: Any, device_type: str) -> Iterator[None]:
    """The model with its parts and an attention that only takes memory; chunks as on the device that the run is for."""
    parts = standing.recognised(model, model.dtype)
    token = META_STANDS_FOR.set(device_type)
    for forwards in parts.values():
        standing.stand(model, forwards)
    try:
        with quiet(), attention(model, NAME):
            yield
    finally:
        META_STANDS_FOR.reset(token)
        for forwards in parts.values():
            standing.step_aside(model, forwards)


@contextmanager
def _only(model: Any, blocks: list[nn.Module], level: str) -> Iterator[None]:
    """The model with some of its blocks, at a level of recompute."""
    path = slots.blocks(model)[0][0].rpartition(".")[0]
    holder, _, name = path.rpartition(".")
    parent, config = model.get_submodule(holder), model.config.get_text_config()
    before, depth = getattr(parent, name), config.num_hidden_layers
    wrapped = {id(block): vars(block).get("forward") for block in blocks}
    setattr(parent, name, nn.ModuleList(blocks))
    config.num_hidden_layers = len(blocks)
    try:
        recompute.wrap(blocks, level)
        yield
    finally:
        setattr(parent, name, before)
        config.num_hidden_layers = depth
        for block in blocks:
            vars(block).pop("forward", None)
            if wrapped[id(block)] is not None:
                object.__setattr__(block, "forward", wrapped[id(block)])


def _count(forward: Forward, row: Row, level: str, blocks: list[nn.Module], trained_head: bool) -> Rehearsed:
    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    standing = [*_parameters(forward.model), *forward.model.buffers(), row.ids_T, row.hidden_N, row.targets_N]
    hooks = [p.register_post_accumulate_grad_hook(drop) for p in standing if p.requires_grad]
    try:
        with _only(forward.model, blocks, level), Count(standing) as count:
            sums = torch.zeros_like(forward.head.weight_VC, dtype=torch.float32) if trained_head and forward.head is not None else None
            loss = forward.loss(row, 1.0, sums)
            kept, ahead = count.now, count.peak
            count.peak = count.now
            if loss.requires_grad:
                loss.backward()
            return Rehearsed(kept, ahead, count.peak, count.peak)
    finally:
        for hook in hooks:
            hook.remove()


def _parameters(model: Any) -> Iterator[nn.Parameter]:
    yield from model.parameters()
    for module in slots.placed(model).values():
        yield from module.parameters()


# Operators that look at numbers, of which there are none: they find zeros. Masks that are made of ones are then not left out, and
# placeholders are found nowhere: what would stand in their place has the same size.
_LOOKS: dict[Any, Callable[[Tensor], Any]] = {
    torch.ops.aten._local_scalar_dense.default: lambda x: torch.zeros((), dtype=x.dtype).item(),
    torch.ops.aten.nonzero.default: lambda x: torch.empty(0, x.ndim, dtype=torch.int64, device="meta"),
}


class Count(TorchDispatchMode):
    """Bytes of the storages that operators have made while this is open and that are still held, and the most there were."""

    def __init__(self, standing: Iterable[Tensor], device_type: str = "meta") -> None:
        """What stands already is not counted when a view of it is made."""
        super().__init__()
        self.device_type = device_type
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {storage._cdata: storage for storage in (each.untyped_storage() for each in standing)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKS and args[0].device.type == "meta":
            return _LOOKS[func](args[0])
        made = func(*args, **(kwargs or {}))
        for each in tree_flatten(made)[0]:
            if isinstance(each, Tensor) and each.device.type == self.device_type:
                self._add(each.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Attention(torch.autograd.Function):
    """What packed attention keeps: queries, keys, values, its output, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        (batch, heads, tokens), size = q_BHTE.shape[:3], v_BKTE.shape[-1]
        out_BTHE = q_BHTE.new_empty(batch, tokens, heads, size)
        ctx.save_for_backward(q_BHTE, k_BKTE, v_BKTE, out_BTHE, q_BHTE.new_empty(q_BHTE.shape[:3], dtype=torch.float32))
        return out_BTHE

    @staticmethod
    def backward(ctx: Any, dy_BTHE: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def packed_attention(module: nn.Module, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, mask: Any, **others: Any) -> tuple[Tensor, None]:
    """The shapes and the memory of packed attention, and nothing of its numbers."""
    out: Tensor = _Attention.apply(q_BHTE, k_BKTE, v_BKTE)
    return out, None


AttentionInterface.register(NAME, packed_attention)
