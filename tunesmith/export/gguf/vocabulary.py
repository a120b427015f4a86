"""The tokenizer in a GGUF file: every token with its kind, merges or scores, the ids that mean something, the chat template.

llama.cpp tokenises by code of its own. Two kinds are written: byte-level byte-pair merges ("gpt2") and SentencePiece's merges of
characters ("llama"), whose order is kept as scores. What a tokenizer does and llama.cpp does not is refused, or told.
"""

import json
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UserError
from tunesmith.export.gguf.splits import WITHOUT_MARKS, split_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens
BLANK = "▁"  # stands for a blank in SentencePiece's words
PHI3_KEPT = {"<unk>", "<s>", "<|endoftext|>"}  # what llama.cpp's rule for Phi-3 leaves alone
PHI3_NAMED = PHI3_KEPT | {"</s>"}  # without one of these that rule ends in an error
MARKS = "llama.cpp cuts words at combining marks (Hindi, Thai) and the tokenizer does not: such text becomes other tokens"
NO_MERGES = ["no merges"]  # llama.cpp wants one; two pieces of more than a letter never meet where nothing was merged before
NEVER = -1e9  # score of what no merge makes


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Keys behind `tokenizer.`, and sentences that the user should read. `strips`: blanks behind special tokens are taken away, as
    llama.cpp does for whatever has Phi-3 in its name."""

    entries: dict[str, Any]
    notes: tuple[str, ...] = ()
    strips: bool = False


def vocabulary(tokenizer: Any, size: int, stops: list[int], where: str) -> Vocabulary:
    """`size`: rows of the embedding. `stops`: ids that end an answer. Raises UserError for what llama.cpp would tokenise otherwise."""
    backend_tokenizer = getattr(tokenizer, "backend_tokenizer", None)
    if backend_tokenizer is None:
        raise UserError(
            f"{where}: its tokenizer has no tokenizer.json, which is what is written into a GGUF; save it with a fast tokenizer"
        )
    backend = json.loads(backend_tokenizer.to_str())
    model = backend["model"]
    every, own = tokenizer.get_vocab(), model["vocab"]
    words = {word: i for word, i in every.items() if i < size}
    beyond = [word for word in every if word not in words]  # Gemma 3's image token is such a one
    if any(word in own for word in beyond):
        raise UserError(f"{where}: its tokenizer has ids up to {max(every.values())}, and its embedding {size} rows")
    if model["type"] != "BPE":
        raise UserError(
            f"{where}: its tokenizer is of the kind {model['type']}; BPE (byte-level, or SentencePiece's with byte fallback) is written",
            "export it with --to safetensors, which llama.cpp's own converter reads",
        )
    added = {token["id"]: token for token in backend["added_tokens"] if token["id"] < size}
    make = _characters if model.get("byte_fallback") else _bytes
    entries, notes = make(backend, words, added, size, where)
    if beyond:
        notes.append(f"the embedding has no row for {', '.join(sorted(beyond)[:5])}: left out")
    entries |= _special(tokenizer, stops, notes, size)
    strips, others = _strips(added)
    notes += others
    notes += [f"{token['content']} takes blanks in front of it; llama.cpp does not" for token in added.values() if token["lstrip"]]
    return Vocabulary(entries, tuple(notes), strips)


def _strips(added: dict[int, Any]) -> tuple[bool, list[str]]:
    """Whether llama.cpp's rule for Phi-3 is this tokenizer's, and a sentence where neither that rule nor none is."""
    strips = {token["content"]: token["rstrip"] for token in added.values()}
    if not any(strips.values()):
        return False, []
    some = [token for token, takes in strips.items() if takes]
    others = [token for token, takes in strips.items() if takes == (token in PHI3_KEPT)]
    if not strips.keys() >= PHI3_NAMED or len(others) >= len(some):
        return False, [f"{', '.join(some[:5])} take blanks behind them; llama.cpp does not"]
    return True, [f"llama.cpp treats blanks behind {', '.join(others[:5])} otherwise than the tokenizer"] if others else []


def _bytes(
    backend: dict[str, Any], words: dict[str, int], added: dict[int, Any], size: int, where: str
) -> tuple[dict[str, Any], list[str]]:
    notes = []
    normalizer = backend.get("normalizer")
    for step in _flat(normalizer, "normalizers"):
        if step["type"] != "NFC":
            raise UserError(f"{where}: its tokenizer changes text first ({step['type']}), and llama.cpp does not")
        notes.append(
            "the tokenizer composes letters and accents (NFC) and llama.cpp does not: text that is decomposed becomes other tokens"
        )
    tokens, kinds = _tokens(words, added, size)
    pre = split_name(backend, where)
    if pre in WITHOUT_MARKS:
        notes.append(MARKS)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": kinds,
        "ggml.merges": merges or NO_MERGES,
    }, notes


def _characters(
    backend: dict[str, Any], words: dict[str, int], added: dict[int, Any], size: int, where: str
) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    prefix = _prefix(backend, where)
    if prefix == "first":
        notes.append(
            "the tokenizer puts a blank in front of a text's first word and llama.cpp does not: plain prompts should begin with one"
        )
    tokens, kinds = _tokens(words, added, size)
    unknown = backend["model"].get("unk_token")
    for i, token in enumerate(tokens):
        if kinds[i] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = BYTE
        elif kinds[i] == USER_DEFINED and added[i]["normalized"]:  # found where blanks have been exchanged; llama.cpp looks before that
            tokens[i] = token.replace(BLANK, " ")
        elif kinds[i] == USER_DEFINED and BLANK in token and token in backend["model"]["vocab"]:
            kinds[i] = NORMAL  # never found in a text as it stands, but made by merges
    if unknown in words:
        kinds[words[unknown]] = UNKNOWN
    scores = _scores(backend["model"]["merges"], words, size)
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.scores": scores,
        "ggml.token_type": kinds,
        "ggml.add_space_prefix": prefix == "always",
    }, notes


def _tokens(words: dict[str, int], added: dict[int, Any], size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every id; ids without a word are fillers that no text becomes."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for word, i in words.items():
        tokens[i], kinds[i] = word, NORMAL
    for i, token in added.items():
        tokens[i], kinds[i] = token["content"], CONTROL if token["special"] else USER_DEFINED
    return tokens, kinds


def _scores(merges: list[Any], words: dict[str, int], size: int) -> list[float]:
    """The higher, the earlier llama.cpp makes the token: by the first merge that makes it."""
    scores = [NEVER] * size
    for rank, merge in enumerate(merges):
        made = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        if (i := words.get(made)) is not None and scores[i] == NEVER:
            scores[i] = -float(rank)
    return scores


def _prefix(backend: dict[str, Any], where: str) -> str:
    """Whether a blank is put in front of each piece of text ("always"), of a whole text ("first"), or nowhere ("never")."""
    found = "never"
    for step in _flat(backend.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == BLANK:
            found = "always"
        elif not (step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == BLANK):
            raise UserError(f"{where}: its tokenizer changes text first ({step['type']}), and llama.cpp does not")
    for step in _flat(backend.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step["replacement"] == BLANK and not step.get("split"):
            found = step["prepend_scheme"]
        elif not (step["type"] == "Split" and step["pattern"] == {"String": " "}):  # blanks are exchanged before: it finds none
            raise UserError(f"{where}: its pre-tokenizer {step['type']} is not known in llama.cpp; text would become other tokens")
    return found


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [inner for each in step[key] for inner in _flat(each, key)] if step["type"] == "Sequence" else [step]


def _special(tokenizer: Any, stops: list[int], notes: list[str], size: int) -> dict[str, Any]:
    """Ids by their meaning, what is put around a text, and the chat template."""
    entries: dict[str, Any] = {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        if (i := getattr(tokenizer, f"{name}_token_id")) is not None and i < size:
            entries[f"ggml.{key}_token_id"] = i
    more = [i for i in stops if i != tokenizer.eos_token_id]
    entries |= {f"ggml.{key}_token_id": i for key, i in zip(("eot", "eom"), more, strict=False)}
    if len(more) > 2:
        names = ", ".join(tokenizer.convert_ids_to_tokens(more[2:]))
        notes.append(f"a GGUF names three tokens that end an answer; llama.cpp may go on behind {names}: ask it with stop texts")
    ids = tokenizer("x")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if begins and _template_without_bos(tokenizer):
        begins = False  # what was trained are the template's prompts
        notes.append(f"the tokenizer puts {tokenizer.bos_token} in front of plain text, and the chat template, which counts, does not")
    entries["ggml.add_bos_token"] = begins
    entries["ggml.add_eos_token"] = tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    template = tokenizer.chat_template
    if isinstance(template, dict):
        entries |= {f"chat_template.{name}": text for name, text in template.items() if name != "default"}
        entries["chat_templates"] = [name for name in template if name != "default"]
        template = template.get("default")
    return entries | ({"chat_template": template} if template else {})


def _template_without_bos(tokenizer: Any) -> bool:
    """Whether there is a chat template, and what it renders does not begin with the tokenizer's first token."""
    if not tokenizer.chat_template:
        return False
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    return not text.startswith(tokenizer.bos_token)
