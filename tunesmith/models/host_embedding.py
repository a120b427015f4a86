"""The frozen embedding's table in host memory: a row reads a few thousand of its lines, and of a large vocabulary it is a gigabyte.

    ids ──► host: table[ids], pinned ──► device

What stays on the device in its place is one line of NaN under the table's shape: whoever asks for its size, dtype or device is
answered rightly, and whoever computes with it sees at once that there are no numbers. Reading the ids waits for the device, once a row,
so this is for the smallest mode only (`train.recompute=offload`).

Shapes: V vocabulary, C channels.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models import slots

_TABLE = "_tunesmith_table"


def movable_bytes(model: Any, adapter: Mapping[str, Any]) -> int:
    """What the device has more with the table in host memory; 0 where it has to stay.

    It may go where it is read in the plain way, where the head does not use it and no module of the adapter stands at it,
    and where there is an adapter: without one the whole model is written at the end.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or "forward" in vars(embedding) or embedding.max_norm is not None:
        return 0
    if not adapter or any(model.get_submodule(path) is embedding for path in adapter):
        return 0
    weight_VC = embedding.weight
    if head is not None and getattr(head, "weight", None) is weight_VC:
        return 0
    return (weight_VC.shape[0] - 1) * weight_VC.shape[1] * weight_VC.element_size()


def place(model: Any) -> int:
    """Move the table to the host; the bytes that the device has more, 0 where the table has to stay. `lift` takes it back.

    The adapter stands in its places already.
    """
    trained = model.get_input_embeddings().weight.requires_grad
    size = 0 if trained else movable_bytes(model, slots.placed(model))
    if size:
        embedding = model.get_input_embeddings()
        weight_VC = embedding.weight
        table_VC = _host(weight_VC.shape, weight_VC.dtype, weight_VC.device).copy_(weight_VC.detach())
        line_1C = torch.full((1, weight_VC.shape[1]), float("nan"), dtype=weight_VC.dtype, device=weight_VC.device)
        object.__setattr__(embedding, _TABLE, table_VC)
        embedding.weight = nn.Parameter(line_1C.expand(weight_VC.shape), requires_grad=False)
        object.__setattr__(embedding, "forward", partial(_looked_up, embedding, table_VC))
    return size


def lift(model: Any) -> None:
    """The table on the model's device again, exactly as it was."""
    embedding = model.get_input_embeddings()
    table_VC: Tensor | None = vars(embedding).pop(_TABLE, None)
    if table_VC is not None:
        del vars(embedding)["forward"]
        embedding.weight = nn.Parameter(table_VC.to(embedding.weight.device, copy=True), requires_grad=False)


def _looked_up(embedding: nn.Embedding, table_VC: Tensor, ids: Tensor) -> Tensor:
    device = embedding.weight.device
    found = _host((ids.numel(), table_VC.shape[1]), table_VC.dtype, device)
    torch.index_select(table_VC, 0, ids.reshape(-1).cpu(), out=found)
    # the allocator of pinned memory lends it again only once the copy is done
    return found.to(device, non_blocking=True).view(*ids.shape, table_VC.shape[1])


def _host(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
