"""Which servers take what was trained as it is, and by which conversion the others take it.

The table below is what `tunesmith export` goes by, what a run warns of at its start (`serve_with`), and what docs/export/served.md shows.
Where a fact was read stands in `Server.source`; a server that learns something new gets its line changed here, and nowhere else.
"""

from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.methods.pissa import SERVED_RANKS
from tunesmith.methods.tuning import Tuning

How = Literal["as it is", "rewritten", "merged", "embeddings", "fitted", "not"]
EXACT: tuple[How, ...] = ("as it is", "rewritten", "merged", "embeddings")  # what is served is what was trained, but for rounding


@dataclass(frozen=True, slots=True)
class Traits:
    """What of a result decides who can serve it."""

    kind: Literal["whole", "lora", "prompt", "prefix", "bottleneck"]  # prompt: virtual tokens; prefix: keys and values
    rank: int = 0  # the largest, as servers see it: of PiSSA twice its own
    uneven: bool = False  # its layers have several ranks or scales
    partial: bool = False  # a kind of layer has an update in some blocks and none in others
    dora: bool = False
    tokens: int = 0  # trained rows of the embedding
    saved: tuple[str, ...] = ()  # layers that are trained whole
    ends: tuple[str, ...] = ()  # layers with an update that are no projection of q, k, v, o, gate, up or down: a head, a fused one
    head: str = ""  # the task whose head predicts


@dataclass(frozen=True, slots=True)
class Server:
    """What one program takes. The base's weights themselves are no question here: each has its own list of architectures."""

    title: str
    source: str
    lora: bool = True  # adapters beside a base
    rank: int | None = None  # the largest; None: any
    uneven: bool = True
    partial: bool = True
    dora: bool = False
    tokens: bool = False
    saved: bool = False
    ends: bool = True
    prompt: How = "fitted"
    prefix: How = "fitted"
    bottleneck: How = "fitted"
    head: How = "not"
    serves_head: str = ""  # what of it a model with a task's head is opened by


SERVERS: dict[str, Server] = {
    "builtin": Server(
        "tunesmith serve", "our own engine", dora=True, tokens=True, saved=True, prompt="as it is", prefix="as it is",
        bottleneck="as it is", head="not",
    ),
    "vllm": Server(
        "vLLM", "vllm/lora/peft_helper.py, vllm/config/lora.py, version 0.22", rank=SERVED_RANKS[-1], uneven=False, prompt="embeddings",
        head="merged", serves_head="a pooling model",
    ),
    "tgi": Server(
        "TGI", "server/text_generation_server/adapters/lora.py and utils/adapter.py, version 3", rank=128, uneven=False, partial=False,
        ends=False,
    ),
    "llamacpp": Server("llama.cpp", "src/llama-adapter.cpp", uneven=False),
    "ollama": Server("Ollama", "its docs/import.md: a merged model is what every version takes", lora=False),
    "peft": Server(
        "peft", "installed and asked", dora=True, tokens=True, saved=True, prompt="as it is", prefix="as it is", head="as it is"
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a server takes a result, and the reasons why it does not take it as it is."""

    how: How
    reasons: tuple[str, ...] = ()


def traits_of(tuning: Tuning) -> Traits:
    """What decides about a tuning, of which shapes are enough."""
    head = "" if tuning.head is None else str(tuning.head.task)
    modules: dict[str, Any] = tuning.adapter
    if not modules:
        return Traits("whole", head=head)
    if tuning.virtual_tokens:
        return Traits("prompt", head=head)
    if tuning.prefix_tokens:
        return Traits("prefix", head=head)
    updates = {path: module for path, module in modules.items() if hasattr(module, "A")}
    if not updates and tuning.layout == "adapterhub":
        return Traits("bottleneck", head=head)
    ranks = {path: module.A.shape[0] * (2 if hasattr(module, "as_lora") else 1) for path, module in updates.items()}
    names = {path: _of_block(path) for path in updates}
    return Traits(
        "lora",
        rank=max(ranks.values(), default=0),
        uneven=len({(ranks[path], module.scale) for path, module in updates.items()}) > 1,
        partial=_is_partial(names),
        dora=any(hasattr(module, "magnitude") for module in updates.values()),
        tokens=max((len(module.ids) for module in modules.values() if hasattr(module, "ids")), default=0),
        saved=tuple(path for path, module in modules.items() if hasattr(module, "vectors")),
        ends=tuple(path for path in updates if path.rpartition(".")[2] not in PROJECTIONS),
        head=head,
    )


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _of_block(path: str) -> tuple[str, str]:
    """(number of the block, the layer's path inside it) of `model.layers.3.self_attn.q_proj`; ("", path) outside of blocks."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ("", path) if at is None else (parts[at], ".".join(parts[at + 1 :]))


def _is_partial(names: dict[str, tuple[str, str]]) -> bool:
    blocks: dict[str, set[str]] = {}
    for block, inner in names.values():
        if block:
            blocks.setdefault(inner, set()).add(block)
    numbers = set().union(*blocks.values()) if blocks else set()
    gap = bool(numbers) and len(numbers) <= max(map(int, numbers))  # the first blocks have none
    return gap or any(each != numbers for each in blocks.values())


def verdict(server: str, traits: Traits) -> Verdict:
    """How one server takes a result."""
    takes = SERVERS[server]
    if traits.head:
        return _of_head(takes, traits)
    if traits.kind == "whole":
        return Verdict("as it is") if server != "peft" else Verdict("not", ("there is no adapter: the model's own weights were trained",))
    if traits.kind == "lora":
        return _of_lora(takes, traits)
    how: How = getattr(takes, traits.kind)
    what = {"prompt": "virtual tokens", "prefix": "keys and values in front of a document", "bottleneck": "layers inside of blocks"}
    return Verdict(how, () if how == "as it is" else (f"{takes.title} knows no adapters that are {what[traits.kind]}",))


def _of_head(takes: Server, traits: Traits) -> Verdict:
    why = f"{takes.title} serves text, and a head for task.name={traits.head} predicts labels"
    if takes.head == "as it is":
        return Verdict("as it is")
    if takes.head == "merged" and traits.kind in ("whole", "lora"):
        return Verdict("as it is" if traits.kind == "whole" else "merged", (f"{takes.title} opens it as {takes.serves_head}, whole",))
    return Verdict("not", (f"{why}; `tunesmith evaluate` and `predict` use it, and transformers opens the merged model",))


def _of_lora(takes: Server, traits: Traits) -> Verdict:
    """Whatever adds to matrices can be merged; what only its layout stands in the way of is written anew, with the same product."""
    hard, soft = [], []
    if not takes.lora:
        hard.append(f"{takes.title} is given a whole model")
    if takes.rank is not None and traits.rank > takes.rank:
        hard.append(f"rank {traits.rank} is above {takes.rank}, the most that {takes.title} takes")
    if traits.dora and not takes.dora:
        hard.append(f"{takes.title} does not know DoRA")
    if traits.tokens and not takes.tokens:
        hard.append(f"{takes.title} passes over trained rows of the embedding (trainable_tokens)")
    if traits.saved and not takes.saved:
        hard.append(f"{takes.title} takes no layer that was trained whole (modules_to_save: {traits.saved[0]})")
    if traits.ends and not takes.ends:
        hard.append(f"{takes.title} has no place for an update of {traits.ends[0]}")
    if traits.uneven and not takes.uneven:
        soft.append(f"{takes.title} reads one rank and one alpha for all layers, and this one has several")
    if traits.partial and not takes.partial:
        soft.append(f"{takes.title} leaves out an update that is not there in every block")
    return Verdict("merged" if hard else "rewritten" if soft else "as it is", tuple(hard or soft))


# --- what is said at the start of a run ---


ALONE = (
    "of all servers `tunesmith serve` alone takes what this run trains as it is; for the others "
    "`tunesmith export DIR --to TARGET --as lora` fits a LoRA to it and tells the error (docs/export/served.md)"
)


def warnings(traits: Traits, serve_with: str | None) -> list[str]:
    """Sentences for the start of a run: how the chosen server will take its result; with none chosen, where no other server could."""
    if serve_with is not None:
        found = verdict(serve_with, traits)
        command = HEADED if traits.head and found.how == "merged" else COMMANDS[found.how](serve_with)
        said = f"serve_with={serve_with}: {_told(serve_with, found)}; {command}"
        return [] if found.how == "as it is" else [said]
    found_elsewhere = [verdict(name, traits).how for name in SERVERS if name not in ("builtin", "peft")]
    return [] if traits.head or any(how in EXACT for how in found_elsewhere) else [ALONE]


def _told(server: str, found: Verdict) -> str:
    words = {"rewritten": "the same update laid out anew", "merged": "merged into the base", "embeddings": "as prompt embeddings"}
    words |= {"fitted": "as a LoRA fitted to it, with an error", "not": "not at all", "as it is": "as it is"}
    return f"{SERVERS[server].title} takes it {words[found.how]}" + (f" ({', '.join(found.reasons)})" if found.reasons else "")


TARGETS = {"vllm": "vllm", "tgi": "tgi", "llamacpp": "gguf", "ollama": "ollama", "peft": "peft"}  # server -> what to export for it
COMMANDS: dict[How, Any] = {
    "as it is": lambda server: "",
    "rewritten": lambda server: f"`tunesmith export DIR --to {TARGETS[server]}` does that",
    "merged": lambda server: f"`tunesmith export DIR --to {TARGETS[server]}` does that",
    "embeddings": lambda server: f"`tunesmith export DIR --to {TARGETS[server]}` writes them",
    "fitted": lambda server: f"`tunesmith export DIR --to {TARGETS[server]} --as lora` fits it and reports the error",
    "not": lambda server: "`tunesmith evaluate` uses it",
}
HEADED = "`tunesmith export DIR --to safetensors` writes that; --to vllm is for models that write text"


# --- the same as a table ---

ROWS: dict[str, Traits] = {
    "full, freeze": Traits("whole"),
    "lora, qlora, pissa": Traits("lora", rank=16),
    "rank above 128": Traits("lora", rank=256),
    "rank above 512": Traits("lora", rank=1024),
    "several ranks or scales": Traits("lora", rank=16, uneven=True),
    "updates in some blocks only": Traits("lora", rank=16, partial=True),
    "an update of the head": Traits("lora", rank=16, ends=("lm_head",)),
    "dora": Traits("lora", rank=16, dora=True),
    "method.trainable_tokens": Traits("lora", rank=16, tokens=2),
    "method.modules_to_save": Traits("lora", rank=16, saved=("lm_head",)),
    "prompt, ptuning": Traits("prompt"),
    "prefix, ptuning_v2": Traits("prefix"),
    "adapter": Traits("bottleneck"),
    "a task's head": Traits("lora", rank=16, head="classify"),
}


def table() -> str:
    """The table of docs/export/served.md, in Markdown."""
    lines = ["| what was trained | " + " | ".join(server.title for server in SERVERS.values()) + " |"]
    lines.append("|" + "---|" * (len(SERVERS) + 1))
    for name, traits in ROWS.items():
        lines.append(f"| {name} | " + " | ".join(verdict(server, traits).how for server in SERVERS) + " |")
    return "\n".join(lines) + "\n"
