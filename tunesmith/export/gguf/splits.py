"""How a byte-level tokenizer cuts text before its merges, and llama.cpp's name for that rule (`tokenizer.ggml.pre`).

llama.cpp has each rule in code under a name. It is found here by what the tokenizer does, never by what the model is called: its
pre-tokenizer's own steps, and whether a whole piece that is a word of the vocabulary is taken without merging.
"""

from collections.abc import Iterator
from typing import Any

from tunesmith.errors import UserError

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+", rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
QWEN35 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_CAPITALS[0]}|{_CAPITALS[1]}|\p{{N}}" + _SLASHED
GPT4O = rf"{_CAPITALS[0]}{_ENGLISH}?|{_CAPITALS[1]}{_ENGLISH}?|\p{{N}}{{1,3}}" + _SLASHED

# the rule's steps -> its name where merges are always followed, and where whole pieces are taken as they are (`ignore_merges`);
# llama.cpp has not every rule in both ways, and where a vocabulary's words all come out of its merges the two are the same
NAMES: dict[tuple[str, ...], tuple[str, str]] = {
    (GPT2,): ("gpt-2", ""),
    ("digits", GPT2): ("smollm", ""),
    (LLAMA3,): ("smaug-bpe", "llama-bpe"),
    (QWEN2,): ("qwen2", ""),
    (QWEN35,): ("qwen35", ""),
    (TEKKEN,): ("tekken", "tekken"),
    (GPT4O,): ("gpt-4o", ""),
}

# rules in which llama.cpp does not take combining marks (Hindi's vowels, Thai's tones) into a word, as the tokenizers do
WITHOUT_MARKS = {"tekken", "gpt-4o"}


def split_name(backend: dict[str, Any], where: str) -> str:
    """llama.cpp's name for the way in which a tokenizer.json of the byte-level kind cuts text. Raises UserError where it has none."""
    steps = tuple(_steps(backend.get("pre_tokenizer"), where))
    model = backend["model"]
    if not steps and not model["merges"]:
        return "gpt-2"  # bytes alone: no cut can change them
    merged, whole = NAMES.get(steps, ("", ""))
    name = whole if model.get("ignore_merges") else merged
    if not name:
        rule = " then ".join(steps) or "no rule at all"
        raise UserError(
            f"{where}: text is cut by {rule}{', whole words first' if model.get('ignore_merges') else ''}, "
            "and no name for that is known in llama.cpp; its text would become other tokens",
            "export it with --to safetensors or --to vllm",
        )
    return name


def _steps(pre: dict[str, Any] | None, where: str) -> Iterator[str]:
    """What is done in turn: regular expressions, and "digits" for single digits. Bytes as letters are no step: llama.cpp does it too."""
    if pre is None:
        return
    kind = pre["type"]
    if kind == "Sequence":
        for inner in pre["pretokenizers"]:
            yield from _steps(inner, where)
    elif kind == "Digits" and pre["individual_digits"]:
        yield "digits"
    elif kind == "ByteLevel" and not pre["add_prefix_space"]:
        if pre.get("use_regex", True):
            yield GPT2
    elif kind == "Split" and pre["behavior"] in ("Isolated", "Removed") and "Regex" in pre["pattern"]:
        # "Removed" with `invert` keeps exactly what the expression finds
        if (pre["behavior"] == "Removed") != bool(pre.get("invert")):
            raise UserError(f"{where}: its pre-tokenizer {pre} is not known in llama.cpp")
        yield pre["pattern"]["Regex"]
    else:
        raise UserError(f"{where}: its pre-tokenizer {kind} is not known in llama.cpp; text would become other tokens")
