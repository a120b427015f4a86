"""Where a model's attention is, and how many keys and values of which size each layer keeps: from its modules, never from
hidden size / heads, which is wrong for grouped heads and for families whose heads have a size of their own."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tunesmith.models import slots
from tunesmith.models.nf4 import is_linear, shape_of


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """The attention of one block."""

    path: str
    index: int  # of the layer, as a cache counts them
    heads: int  # key/value heads
    size: int  # channels of a head


def attention_layers(model: Any) -> list[AttentionLayer]:
    """One a block. Raises LookupError, with the reason, where a block has none or its keys are not plain."""
    roles, found, problems = slots.family(model), [], []
    for number, (path, block) in enumerate(slots.blocks(model)):
        try:
            found.append(_layer(model.config.get_text_config(), roles, number, path, block))
        except LookupError as error:
            problems.append(f"{path}: {error.args[0]}")
    if problems:
        raise LookupError(
            f"every block must have attention with keys and values of its own, {len(problems)} of {len(slots.blocks(model))} have not; "
            f"{problems[0]}"
        )
    if not found:
        raise LookupError(f"no repeated blocks in this {model.config.model_type}")
    return found


def _layer(config: Any, roles: dict[str, str] | None, number: int, path: str, block: nn.Module) -> AttentionLayer:
    linears: dict[str, nn.Module] = {inner: module for inner, module in block.named_modules() if is_linear(module)}
    if roles is None:  # not in the table of families: what nearly all of them call it
        roles = {"k": "k_proj", "v": "v_proj"}
    ends = {role: next((inner for inner in linears if inner == end or inner.endswith("." + end)), None) for role, end in roles.items()}
    known = ends.get("o") or ends.get("k") or ends.get("qkv")
    if known is None:
        raise LookupError("it has no attention whose projections are known")
    inner = known.rpartition(".")[0]
    attention: Any = block.get_submodule(inner)
    size = _head_size(config, attention)
    if (k := ends.get("k")) and (v := ends.get("v")):
        width = shape_of(linears[k])[1]
        if shape_of(linears[v])[1] != width:
            raise LookupError("its keys and values differ in size")
    elif (qkv := ends.get("qkv")) and (o := ends.get("o")):
        width = (shape_of(linears[qkv])[1] - shape_of(linears[o])[0]) // 2  # what is left of the fused matrix beside the queries
    else:
        raise LookupError("it computes no keys and values of its own")
    if width < size or width % size:
        raise LookupError(f"its keys have {width} channels, which are no heads of {size}")
    index = getattr(attention, "layer_idx", None)
    return AttentionLayer(f"{path}.{inner}" if inner else path, number if index is None else index, width // size, size)


def _head_size(config: Any, attention: Any) -> int:
    for holder in (attention, config):
        for name in ("head_dim", "head_size"):
            if isinstance(size := getattr(holder, name, None), int):
                return size
    return int(config.hidden_size) // int(config.num_attention_heads)
