"""Where the two sublayers of a decoder block are: the module whose output is attention's, the one whose output is the MLP's, and
the one whose input is the residual stream that the MLP's update is added to.

    x ─┬─ norm ─ attention ─(+)─┬─ [reads] norm ─ MLP ─(+)─ block's output
       └────────────────────────┘└──────────────────────┘

A sublayer's output is taken as near to its last projection as the class allows: before dropout, before a norm that stands behind
the sublayer (Gemma 2 and 3, OLMo 2, GLM 4, EXAONE 4), before a factor (Granite). Whatever the block does to that output, it does to
an adapter's update too. Where the class adds the residual inside the sublayer (BLOOM, MPT), or has no module for its MLP (OPT),
the last projection itself is the place.

Where attention and MLP stand beside each other and read the same stream (Phi, Cohere, GPT-J, Falcon, mostly GPT-NeoX), the MLP's
residual input is the block's.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tunesmith.models import slots


@dataclass(frozen=True, slots=True)
class Sublayers:
    """The places of one block; all but `block` are paths inside it."""

    block: str  # path in the model
    attention: str  # its output is attention's; of a hybrid's block it may be a convolution's
    mlp: str  # its output is the MLP's, all experts together
    reads: str  # its input is what the MLP's output is added to; `mlp` itself where no norm stands before the MLP


@dataclass(frozen=True, slots=True)
class _Names:
    """How a family calls them; of several names a block has one (the first that it has counts)."""

    attention: tuple[str, ...] = ("self_attn",)
    mlp: str = "mlp"
    reads: tuple[str, ...] = ("post_attention_layernorm",)


_PRE_NORM = _Names()
_GEMMA = _Names(reads=("pre_feedforward_layernorm",))
_NO_NORM_BEFORE = _Names(reads=("mlp",))
_ONE_NORM = _Names(reads=("input_layernorm",))

# config.model_type -> names
FAMILIES: dict[str, _Names] = {
    **dict.fromkeys(
        [
            "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "smollm3", "granite", "helium", "ernie4_5", "hunyuan_v1_dense",
            "seed_oss", "arcee", "nemotron", "starcoder2", "phi3", "glm", "glm4", "olmo",
            "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "gpt_oss",
        ],
        _PRE_NORM,
    ),
    **dict.fromkeys(["gemma2", "gemma3", "gemma3_text"], _GEMMA),
    **dict.fromkeys(["olmo2", "olmo3", "exaone4"], _NO_NORM_BEFORE),
    **dict.fromkeys(["phi", "cohere", "cohere2"], _ONE_NORM),
    "stablelm": _Names(reads=("post_attention_layernorm", "input_layernorm")),
    "llama4_text": _Names(mlp="feed_forward"),
    "lfm2": _Names(("self_attn", "conv"), "feed_forward", ("ffn_norm",)),
    "gpt2": _Names(("attn",), reads=("ln_2",)),
    "gptj": _Names(("attn",), reads=("ln_1",)),
    "gpt_neox": _Names(("attention",)),
    "falcon": _Names(("self_attention",), reads=("post_attention_layernorm", "ln_mlp", "input_layernorm")),
    "bloom": _Names(("self_attention.dense",), "mlp.dense_4h_to_h"),
    "mpt": _Names(("attn",), "ffn.down_proj", ("norm_2",)),
    "opt": _Names(("self_attn",), "fc2", ("final_layer_norm",)),
}  # fmt: skip


def find(model: Any) -> list[Sublayers]:
    """The places of every block, in the model's order. Raises LookupError for an architecture that is not in the table."""
    model_type = kind(model)
    names = FAMILIES.get(model_type)
    if names is None:
        raise LookupError(
            f"where attention and MLP of a block end is not known for {model.config.model_type}; known: {', '.join(sorted(FAMILIES))}; "
            "method.name=lora needs no such place"
        )
    return [_of_block(path, block, names, model.config) for path, block in slots.blocks(model)]


def kind(model: Any) -> str:
    """The model_type that the table goes by: a picture model's is its text model's, where only that is known."""
    own: str = model.config.model_type
    return own if own in FAMILIES else model.config.get_text_config().model_type


def _of_block(path: str, block: nn.Module, names: _Names, config: Any) -> Sublayers:
    reads = names.reads
    if not getattr(config, "do_layer_norm_before", True):  # OPT's norms may stand behind each sum, as in the 350M model
        reads = ("fc1",)
    return Sublayers(path, _first(path, block, names.attention), _first(path, block, (names.mlp,)), _first(path, block, reads))


def _first(path: str, block: nn.Module, candidates: tuple[str, ...]) -> str:
    modules = dict(block.named_modules())
    for name in candidates:
        if name in modules:
            return name
    raise LookupError(f"{path} has no {' or '.join(candidates)}, where an adapter would stand")
