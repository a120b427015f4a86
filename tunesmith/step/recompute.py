"""The ladder from "keep everything for the backward pass" to "keep nothing on the device": what is not kept is computed again.

    none          every tensor that the backward pass wants is kept
    elementwise   what a norm or a gated product can make again from its own inputs is not kept (`models/parts`)
    blocks        of each block only its input is kept; the block is computed again: a third more work
    offload       and those inputs wait in host memory, but the last block's, which is wanted at once; so does a frozen embedding's
                  table, where nothing but the lookup of ids needs it

`blocks` and `offload` may hold for the first blocks alone. No number changes: the same operators run on the same inputs, and
dropout is drawn from the same state. Checkpoints are without re-entrance, since under the re-entrant kind a tensor's hooks for
its finished gradient run once for each use of the tensor.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.models import host_embedding, slots
from tunesmith.models.parts import recipes
from tunesmith.step.host_store import CudaCopies, HostStore, Lent

LEVELS = ("none", "elementwise", "blocks", "offload")
LEAST = 4096  # bytes from which on a tensor is worth a copy: positions and the like stay


def place(model: Any, level: str, first: int | None = None) -> list[str]:
    """Put a level of the ladder into the model; sentences that the user should read.

    `blocks` may hold for the `first` ones alone, the others being `elementwise` then: the first, since they are computed again
    last, when the others have let go of what they kept.
    """
    blocks = [block for _, block in slots.blocks(model)]
    if level == "offload" and model.device.type == "cuda":
        offload_blocks(model, HostStore(CudaCopies(model.device)))
        host_embedding.place(model)
        return []
    wrap(blocks[:first], level)
    if level == "blocks" and first is not None:
        wrap(blocks[first:], "elementwise")
    if level == "offload":
        return ["train.recompute: offload is blocks here: without a GPU there is no other memory for the blocks' inputs to wait in"]
    return []


def wrap(blocks: Sequence[nn.Module], level: str) -> None:
    """Put a level into some blocks; off-loading without a place to go to is recomputing.

    An adapter that stands at a block is computed again with it. `elementwise` is what the parts that stand in a block can make
    again: without parts (`train.kernels=plain`) everything is kept.
    """
    if level != "none":
        for block in blocks:
            _wrap(block, _remembered if level == "elementwise" else _recomputed)


def recompute_blocks(model: Any, first: int | None = None) -> None:
    """Keep only the input of each of the `first` decoder blocks (None: of all) and compute these again in the backward pass."""
    wrap([block for _, block in slots.blocks(model)][:first], "blocks")


def offload_blocks(model: Any, store: HostStore) -> None:
    """The same for all blocks, and the input of each but the last waits in `store`."""
    *before, (_, last) = slots.blocks(model)
    for _, block in before:
        _wrap(block, partial(_offloaded, store))
    _wrap(last, _recomputed)


def _wrap(block: nn.Module, how: Callable[..., Any]) -> None:
    """`how(forward, *inputs)` in place of the block's forward, on the instance."""
    object.__setattr__(block, "forward", partial(how, block.forward))


def _remembered(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    with recipes.remembered():
        return forward(*inputs, **named)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, **named)


def _offloaded(store: HostStore, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """The checkpoint keeps its inputs as saved tensors, which these hooks take over; its own stand inside and keep nothing."""

    def pack(tensor: Tensor) -> Tensor | Lent:
        return store.put(tensor) if tensor.is_floating_point() and tensor.nbytes >= LEAST else tensor

    def unpack(kept: Tensor | Lent) -> Tensor:
        return store.get(kept) if isinstance(kept, Lent) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
