"""Where adapters go: roles to paths, one line per family, and how a module is put at a path and taken away again.

An adapter is a dictionary `{path in the model: module}`. Placing one changes nothing in the model's tree: the layer at the
path gets `forward = module(layer, x)` as an attribute of the instance, and loses it again, so that parameters, state keys
and the class stay exactly what `transformers` made. What stands where is known to the model itself (`placed`), so that whoever
feeds it knows what belongs in front of a document.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tunesmith.models import together
from tunesmith.models.nf4 import is_linear, is_transposed, shape_of

_PLACED = "_tunesmith_placed"
PART = "_tunesmith_part"  # what stands in for a layer's class, behind an adapter
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}

_LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
_PHI3 = {"qkv": "self_attn.qkv_proj", "o": "self_attn.o_proj", "gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"}
_NEOX = {"qkv": "attention.query_key_value", "o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
_BLOOM = {"qkv": "self_attention.query_key_value", "o": "self_attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"}
_ATTENTION = {role: _LLAMA[role] for role in ("q", "k", "v", "o")}
_GLM = _ATTENTION | {"gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj"}

_LIKE_LLAMA = [
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "smollm3", "granite", "cohere",
    "cohere2", "olmo", "olmo2", "olmo3", "stablelm", "helium", "ernie4_5", "hunyuan_v1_dense", "seed_oss", "exaone4",
    "qwen2_moe", "qwen3_moe",  # a shared expert, dense layers between the others
]  # fmt: skip
_EXPERTS_ALONE = ["mixtral", "olmoe", "gpt_oss"]  # every expert of a layer in one 3-D parameter

# config.model_type -> role (or fused roles) -> how the module's path ends
FAMILIES: dict[str, dict[str, str]] = {
    **dict.fromkeys(_LIKE_LLAMA, _LLAMA),
    **dict.fromkeys(_EXPERTS_ALONE, _ATTENTION),
    "phi3": _PHI3,
    "glm4": _GLM,
    "glm": _GLM,
    "arcee": _ATTENTION | {"up": "mlp.up_proj", "down": "mlp.down_proj"},
    "nemotron": _ATTENTION | {"up": "mlp.up_proj", "down": "mlp.down_proj"},
    "phi": _ATTENTION | {"o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"},
    "starcoder2": _ATTENTION | {"up": "mlp.c_fc", "down": "mlp.c_proj"},
    "opt": _ATTENTION | {"o": "self_attn.out_proj", "up": "fc1", "down": "fc2"},
    "gpt2": {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    "gptj": {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out"},
    "gpt_neox": _NEOX,
    "bloom": _BLOOM,
    "falcon": _BLOOM,
    "mpt": {"qkv": "attn.Wqkv", "o": "attn.out_proj", "up": "ffn.up_proj", "down": "ffn.down_proj"},
}


@dataclass(frozen=True, slots=True)
class Place:
    """A linear layer that an adapter can stand beside."""

    path: str
    in_features: int
    out_features: int
    transposed: bool  # the checkpoint keeps [in, out], as GPT-2's Conv1D does


@dataclass(frozen=True, slots=True)
class Untouched:
    """An expert stack (3-D parameter) that linear adapters do not reach."""

    path: str
    parameters: int


def family(model: Any) -> dict[str, str] | None:
    """Roles of this architecture, or None where it is not in the table."""
    return FAMILIES.get(model.config.model_type) or FAMILIES.get(model.config.get_text_config().model_type)


def blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """The repeated decoder blocks, by path: the longest list of modules; one as long as the text model is deep goes before
    others, since a picture tower may have more blocks than the language model behind it."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [(p, m) for p, m in lists if not any(p.startswith(outer + ".") for outer, _ in lists)]
    if not lists:
        return []
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    path, chosen = max(lists, key=lambda item: (len(item[1]) == depth, len(item[1])))
    return [(f"{path}.{i}", block) for i, block in enumerate(chosen)]


def linears(model: Any) -> list[Place]:
    """Every linear layer of the repeated blocks, in the model's order."""
    places = []
    for path, block in blocks(model):
        for inner, module in block.named_modules():
            if is_linear(module):
                places.append(Place(f"{path}.{inner}", *shape_of(module), is_transposed(module)))
    return places


def select(model: Any, targets: str | Sequence[str]) -> tuple[list[Place], list[str]]:
    """The layers that `targets` names, and notes for the user.

    `targets` is "all", or a list of roles (q k v o gate up down) and of endings of module paths (q_proj, mlp.fc1).
    Raises LookupError that names what was not found and what there is.
    """
    everything, roles, stacks = linears(model), family(model), experts(model)
    notes: list[str] = []
    if targets == "all":
        chosen = [place for place in everything if roles and any(_ends(place.path, ending) for ending in roles.values())]
        if not chosen:
            chosen = [place for place in everything if place.out_features > 1]
            if not chosen:
                raise LookupError(f"no linear layer in the repeated blocks of this {model.config.model_type}")
            notes.append(
                f"{model.config.model_type} is not in the table of architectures: "
                f"all {len(chosen)} linear layers of the repeated blocks are targets"
            )
    else:
        endings = {target: _endings(target, roles) for target in targets}
        missing = [t for t, names in endings.items() if not any(_ends(place.path, name) for place in everything for name in names)]
        if missing:
            raise LookupError(_not_found(missing, everything, roles, bool(stacks), _tables(model)))
        names = [name for each in endings.values() for name in each]
        chosen = [place for place in everything if any(_ends(place.path, name) for name in names)]
        for target in targets:
            if target in ROLES and roles and target not in roles:
                notes.append(f"{target} is part of {endings[target][0]} in this architecture, which is tuned as a whole")
    if stacks:
        share = sum(stack.parameters for stack in stacks) / sum(parameter.numel() for parameter in model.parameters())
        notes.append(
            f"{len(stacks)} expert stacks with {share:.0%} of the parameters are not reached by linear adapters and stay as they are"
        )
    return chosen, notes


def _tables(model: Any) -> list[str]:
    """Paths of heads and embeddings: no adapter stands beside them, they are trained as a whole."""
    inside = tuple(f"{path}." for path, _ in blocks(model))
    tables = [path for path, module in model.named_modules() if is_linear(module) or isinstance(module, nn.Embedding)]
    return [path for path in tables if not path.startswith(inside)]


def _not_found(missing: list[str], everything: list[Place], roles: dict[str, str] | None, has_experts: bool, outside: list[str]) -> str:
    whole = [name for name in missing if any(_ends(path, name) for path in outside)]
    cure = f"; to train {', '.join(whole)} as a whole: method.modules_to_save=[{', '.join(whole)}]" if whole else ""
    known = sorted({place.path.rpartition(".")[2] for place in everything})
    have = " ".join(roles) if roles else "none in the table for this architecture"
    reason = "; its experts are 3-D parameters, which linear adapters do not reach" if has_experts else ""
    return f"no linear layer {', '.join(missing)} in this model{reason}{cure}; roles: {have}; layers: {', '.join(known)}"


def experts(model: Any) -> list[Untouched]:
    """The 3-D parameters of the repeated blocks: all experts of a layer in one tensor."""
    return [
        Untouched(f"{path}.{name}", parameter.numel())
        for path, block in blocks(model)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 3 and parameter.shape[0] > 1 and "conv" not in name
    ]


def place(model: nn.Module, adapter: Mapping[str, nn.Module]) -> None:
    """Put each module at its path: in place of the layer's forward, or as its own `attach(layer)` has it."""
    for path, module in adapter.items():
        layer = model.get_submodule(path)
        assert path not in placed(model), f"{path} already holds an adapter"
        if (attach := getattr(module, "attach", None)) is not None:
            attach(layer)
        else:
            object.__setattr__(layer, "forward", partial(module, layer))
        object.__setattr__(model, _PLACED, placed(model) | {path: module})
    for paths in same_input(model, [path for path, module in adapter.items() if hasattr(module, "low_rank")]):
        together.stand([model.get_submodule(path) for path in paths], [adapter[path] for path in paths])


def same_input(model: Any, paths: Iterable[str]) -> Iterator[list[str]]:
    """Those of the layers that a class calls with the same input: q k v of an attention, gate and up of an MLP."""
    paths = list(paths)
    roles = (family(model) if hasattr(model, "config") else None) or {}
    for names in (("q", "k", "v"), ("gate", "up")):
        endings = [roles[name] for name in names if name in roles]
        siblings: dict[str, list[str]] = {}
        for path in paths:
            if any(_ends(path, ending) for ending in endings):
                siblings.setdefault(path.rpartition(".")[0], []).append(path)
        yield from (found for found in siblings.values() if len(found) > 1)


def lift(model: nn.Module, adapter: Mapping[str, nn.Module]) -> None:
    """Take an adapter away; the model is the base again, exactly."""
    for path, module in adapter.items():
        layer = model.get_submodule(path)
        if (detach := getattr(module, "detach", None)) is not None:
            detach(layer)
        else:
            vars(layer).pop("forward", None)
        if (part := vars(layer).get(PART)) is not None and "forward" not in vars(layer):
            object.__setattr__(layer, "forward", part)
    if left := {path: module for path, module in placed(model).items() if path not in adapter}:
        object.__setattr__(model, _PLACED, left)
    else:
        vars(model).pop(_PLACED, None)


def placed(model: nn.Module) -> dict[str, nn.Module]:
    """What stands in the model's places now."""
    return vars(model).get(_PLACED, {})


def virtual_ids(model: Any) -> range:
    """Ids of the placeholders that stand in front of each document, beyond the vocabulary: those that the embedding's module fills."""
    count = sum(getattr(module, "virtual_tokens", 0) for module in placed(model).values())
    rows = model.get_input_embeddings().weight.shape[0]
    return range(rows, rows + count)


def prefix(model: Any) -> list[tuple[int, Any]]:
    """(layer, module) of every layer whose attention has keys and values in front of each document.

    A module gives `layer`, `prefix_tokens` and `keys_values()`: two tensors [K, P, E].
    """
    modules: list[Any] = [module for module in placed(model).values() if hasattr(module, "keys_values")]
    return [(module.layer, module) for module in modules]


def first_position(model: Any) -> int:
    """The position of a document's first token: it stands behind the prefix, where there is one."""
    return max((module.prefix_tokens for _, module in prefix(model)), default=0)


def is_embedding(model: nn.Module, target: str) -> bool:
    """Whether a name ends at an embedding."""
    return any(isinstance(module, nn.Embedding) for path, module in model.named_modules() if _ends(path, target))


def own_forward(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What the layer itself makes of its inputs, whatever stands beside it."""
    part = vars(layer).get(PART)
    return type(layer).forward(layer, *inputs, **named) if part is None else part(*inputs, **named)


def stand_in(layer: nn.Module, forward: Callable[..., Any]) -> None:
    """Let `forward` compute what the layer's class computes; what an adapter has put in front of it stays there."""
    assert PART not in vars(layer), f"something stands in for this {type(layer).__name__} already"
    object.__setattr__(layer, PART, forward)
    if "forward" not in vars(layer):
        object.__setattr__(layer, "forward", forward)


def step_aside(layer: nn.Module) -> None:
    """Let the class compute again."""
    part = vars(layer).pop(PART, None)
    if part is not None and vars(layer).get("forward") is part:
        del vars(layer)["forward"]


def _endings(target: str, roles: dict[str, str] | None) -> list[str]:
    if roles and target in roles:
        return [roles[target]]
    if roles and target in ROLES:  # a role that the architecture keeps inside a fused matrix
        return [ending for role, ending in roles.items() if target in _FUSED.get(role, ())]
    return [target]


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith("." + ending)


def indexed(adapter: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Every tensor of an adapter by `path.name`, in order."""
    for path, module in adapter.items():
        for name, parameter in module.named_parameters():
            yield f"{path}.{name}", parameter
