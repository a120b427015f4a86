"""Freeze tuning: some of the model's own tensors are trained, the rest is only computed.

    layers=n              the last n decoder blocks, whole; end=first takes the first n
    pattern=REGEX         in their place every tensor whose whole name it matches
    embeddings, head      the embeddings; the final norm and an untied head, besides

No gradient goes below the first trained tensor: with the last n blocks a step costs 2N FLOP a token for the frozen part and 6N for
the rest. With the first blocks, or with embeddings, gradients pass through all that lies above: 4N there.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from tunesmith.methods.settings import Freeze as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots

NF4 = False
LEARNING_RATES = {576: 0.0011, 3072: 3e-5}  # by channels of the model
_NEAREST = 5  # names shown where a pattern matches none


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """Raises LookupError where the model has fewer blocks than `layers`, or no tensor that `pattern` matches."""
    found = slots.blocks(model)
    wanted = _matching(model, settings.pattern) if settings.pattern is not None else _of_blocks(model, found, settings)
    if settings.embeddings:
        wanted |= {id(p) for p in model.get_input_embeddings().parameters()}
    if settings.head:
        wanted |= {id(p) for p in _head(model, found)}
    return Tuning({}, {name: p for name, p in model.named_parameters() if id(p) in wanted})


def _of_blocks(model: Any, blocks: list[tuple[str, nn.Module]], settings: Settings) -> set[int]:
    """Ids of the tensors of the chosen blocks."""
    if settings.layers > len(blocks):
        raise LookupError(f"method.layers={settings.layers}, but the model has {len(blocks)} blocks")
    chosen = blocks[-settings.layers :] if settings.end == "last" else blocks[: settings.layers]
    prefixes = tuple(path + "." for path, _ in chosen)
    return {id(p) for name, p in model.named_parameters() if name.startswith(prefixes)}


def _matching(model: Any, pattern: str) -> set[int]:
    """Ids of the tensors whose whole name the pattern matches; a tied tensor goes by each of its names."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise LookupError(f"method.pattern={pattern!r} is no regular expression: {error}") from None
    names = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    if chosen := {names[name] for name in names if regex.fullmatch(name)}:
        return chosen
    raise LookupError(
        f"method.pattern={pattern!r} matches no tensor's whole name; near it: {', '.join(_near(regex, list(names)))}"
        + ("; a dot and a star in front (.*) take any beginning" if any(regex.search(name) for name in names) else "")
    )


def _near(regex: re.Pattern[str], names: list[str]) -> list[str]:
    """Names in which the pattern occurs, or those that look most like it; layers of one kind are shown once."""
    kinds = {re.sub(r"\.\d+\.", ".N.", name): name for name in reversed(names)}  # the first of each kind
    firsts = [kinds[kind] for kind in dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)]
    within = [name for name in firsts if regex.search(name)]
    plain = re.sub(r"\\d\+?|[\\^$*+?()\[\]{}|]", "", regex.pattern)
    return (within or difflib.get_close_matches(plain, firsts, _NEAREST, cutoff=0.0))[:_NEAREST]


def _head(model: Any, blocks: list[tuple[str, nn.Module]]) -> Iterator[nn.Parameter]:
    """The final norm, which stands behind the blocks (OPT's before them, by name), and the head where it is not tied."""
    parent, _, name = blocks[0][0].rpartition(".")[0].rpartition(".")
    behind = False
    for key, module in model.get_submodule(parent).named_children():
        if behind or key.startswith("final"):
            yield from module.parameters()
        behind = behind or key == name
    tied = {id(p) for p in model.get_input_embeddings().parameters()}
    yield from (p for p in model.get_output_embeddings().parameters() if id(p) not in tied)


def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """The base's own values are the start."""
