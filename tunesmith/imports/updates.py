"""Which of LoRA, DoRA and PiSSA a file means: `peft`'s switches, which every program hands on under names of its own."""

import re

from tunesmith.imports.translation import Translation, names, plain, shown

LOW_RANK = ("lora", "dora", "pissa")
# `init_lora_weights` that leave the base as it is, and ours of the same values
_INITS = {"gaussian": "gaussian", "orthogonal": "orthogonal", "loftq": "loftq"}
# settings of the others that PiSSA, which begins from the base's own matrices, does not have
_NOT_OF_PISSA = {"method.dropout": "PiSSA has no dropout here", "method.init": "PiSSA begins with the matrices' own singular vectors"}


def kind(t: Translation, dora: str, begin: str, carried: dict[str, str], *keys: str) -> str:
    """Set method.name by their key for DoRA and their key for `init_lora_weights`; `keys` are those that said it is a LoRA."""
    start = plain(t.take(begin))
    found = re.fullmatch(r"pissa(?:_niter_(\d+))?", start.lower()) if isinstance(start, str) else None
    if t.take(dora) is True:
        t.put("method.name", "dora", *keys, dora)
        if found:
            t.drop(begin, "DoRA begins with B = 0 here, as LoRA does")
        elif isinstance(start, str):
            t.drop(begin, "DoRA has one way to begin here: as LoRA, with its lengths those of the base")
        return "dora"
    if found:
        t.put("method.name", "pissa", *keys, begin)
        t.put("method.niter", int(found[1]) if found[1] else "exact", begin)
        without(t, "method.dropout", carried)
        return "pissa"
    t.put("method.name", "lora", *keys)
    if isinstance(start, str):
        _init(t, begin, start)
    elif begin in t.given and start is not None:
        wanted = "B is zero at the start" if start is True else "random B at the start is for tests of peft alone; B is zero"
        (t.skip if isinstance(start, bool) else t.drop)(begin, wanted)
    return "lora"


def _init(t: Translation, key: str, start: str) -> None:
    if start.lower() not in _INITS:
        t.drop(key, f"no beginning of {shown(start)} here; LoRA begins as usual (B = 0)")
    elif start.lower() == "loftq" and t.settings.get("model.quantize") != "nf4":
        t.drop(key, "LoftQ makes up for what NF4 rounds away; the base is not quantised")
    else:
        t.put("method.init", _INITS[start.lower()], key)


def without(t: Translation, setting: str, carried: dict[str, str]) -> None:
    """Account for a key whose setting PiSSA does not have."""
    for key in [key for key, ours in carried.items() if ours == setting and key in t.given]:
        t.drop(key, _NOT_OF_PISSA[setting])


def beside(t: Translation, key: str) -> None:
    """Modules that are trained whole: `additional_target`, `modules_to_save` and the like."""
    wanted = names(t.take(key))
    if groups := [name for name in wanted if name.startswith("all-")]:
        t.left.append(f"{key}: {', '.join(groups)}: modules are named by the endings of their paths: embed_tokens, lm_head")
        t.said.add(key)
    if rest := [name for name in wanted if name not in groups]:
        t.put("method.modules_to_save", rest, key)


def tokens(t: Translation, key: str) -> None:
    """Rows of the embedding: a list of ids, or such lists by module."""
    value = t.take(key)
    lists = list(value.values()) if isinstance(value, dict) else [value]
    if value and len(lists) == 1 and isinstance(lists[0], list) and all(isinstance(each, int | str) for each in lists[0]):
        t.put("method.trainable_tokens", lists[0], key)
    elif value:
        t.drop(key, "one list of ids is taken, for the embedding and a head tied to it")
