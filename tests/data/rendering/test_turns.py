"""Turns tokenised together are turns tokenised one by one, whatever the tokenizer makes of borders."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.rendering.tokens import Encoder, Marked
from tunesmith.data.rendering.turns import Tokens, Turn, tokenise


def chat(*texts: str, hidden: dict[str, str] | None = None) -> list[Turn]:
    """Turns out of question, answer, question, answer, ...: each prompt is all that was said before."""
    ends = range(1, len(texts), 2)
    return [Turn(n, Marked("".join(texts[:n]), hidden or {}), Marked(texts[n], hidden or {})) for n in ends]


@cache
def encoder_of(family: str) -> Encoder:
    return Encoder(make_tokenizer(family))


def apart(encoder: Encoder, turns: list[Turn]) -> list[Tokens]:
    """Each prompt as a whole, and each turn as though it were the only one."""
    alone = [tokenise(encoder, [[turn]])[0][0] for turn in turns]
    return [Tokens(encoder.encode([turn.prompt])[0], one.answer, one.merges) for turn, one in zip(turns, alone, strict=True)]


# --- one turn ---


def test_an_answer_goes_on_where_its_prompt_ends():
    encoder = encoder_of("gemma-3")
    turns = [
        Turn(1, Marked("<bos>user\n"), Marked("Paris.<eos>")),
        Turn(1, Marked("<bos>user\n"), Marked("  two<eos>")),
        Turn(1, Marked("plain "), Marked("x")),
    ]
    found = [tokens for [tokens] in tokenise(encoder, [[turn] for turn in turns])]
    for turn, tokens in zip(turns, found, strict=True):
        assert tokens.prompt == encoder.batch([turn.prompt.text])[0]
        assert encoder.tokenizer.decode(tokens.answer) == turn.answer.text
        at_once = encoder.batch([turn.prompt.text + turn.answer.text])[0]
        assert (tokens.prompt + tokens.answer == at_once) is not tokens.merges
    assert [tokens.merges for tokens in found][:2] == [False, True]


def test_no_turns_are_no_tokens():
    assert tokenise(encoder_of("qwen3"), []) == []
    assert tokenise(encoder_of("qwen3"), [[], chat("<|im_start|>a", "b<|im_end|>"), []])[::2] == [[], []]


# --- several turns ---


def watched(encoder: Encoder, monkeypatch: Any) -> list[str]:
    seen: list[str] = []
    encode = encoder.encode

    def watching(texts: Any) -> Any:
        seen.extend(text.text for text in texts)
        return encode(texts)

    monkeypatch.setattr(encoder, "encode", watching)
    return seen


def test_every_text_is_tokenised_once(monkeypatch):
    encoder = Encoder(make_tokenizer("qwen2.5"))
    turns = chat(
        "<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n",
        "one<|im_end|>",
        "\n<|im_start|>user\nsecond<|im_end|>\n<|im_start|>assistant\n",
        "two<|im_end|>",
        "\n<|im_start|>user\nthird<|im_end|>\n<|im_start|>assistant\n",
        "three<|im_end|>",
    )
    expected = apart(encoder, turns)
    seen = watched(encoder, monkeypatch)
    [found] = tokenise(encoder, [turns])
    assert found == expected
    everything = "".join(seen)
    assert [everything.count(word) for word in ("first", "one", "second", "two", "third", "three")] == [1] * 6
    assert seen.count("<|im_start|>assistant\n") == 1  # one header for all answers


def test_rewritten_history_is_tokenised_again(monkeypatch):
    encoder = Encoder(make_tokenizer("qwen3"))
    header = "<|im_start|>assistant\n"
    turns = [
        Turn(1, Marked("<|im_start|>user\nfirst<|im_end|>\n" + header), Marked("<think>\nhm\n</think>\n\none<|im_end|>")),
        Turn(3, Marked(f"<|im_start|>user\nfirst<|im_end|>\n{header}one<|im_end|>\n{header}"), Marked("two<|im_end|>")),
        Turn(5, Marked(f"<|im_start|>system\nother<|im_end|>\n{header}"), Marked("three<|im_end|>")),
    ]
    expected = apart(encoder, turns)
    seen = watched(encoder, monkeypatch)
    assert tokenise(encoder, [turns]) == [expected]
    assert "".join(seen).count("first") == 1 and "".join(seen).count("one") == 2  # the question stands, the answer lost its thinking


SAID = st.lists(
    st.sampled_from(
        ["a", " ", "  ", "\n", "\n\n", "é", "中", "🙂", "Paris", "12", "<", "|", "im_", "\U000f0000", "</think>", "<think>", "\t", "▁"]
    ),
    max_size=6,
).map("".join)
WRAPS: dict[str, tuple[str, str, str]] = {
    # what stands before a question, between it and its answer, and behind the answer
    "qwen2.5": ("\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "phi-3": ("\n<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>"),  # swallow blanks behind them
    "mistral": ("[INST] ", " [/INST]", "</s>"),
    "llama-3.2": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "glm": ("\n", "<|assistant|>", "<|user|>"),
    "plain": ("Q: ", "\nA: ", "\n"),  # nothing divides it
}


@pytest.mark.parametrize("family", WRAPS)
@settings(max_examples=60, deadline=None)
@given(talk=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4), first=SAID, hides=st.booleans())
def test_together_is_one_by_one(family, talk, first, hides):
    encoder = encoder_of(family if family in TEMPLATES else "mistral")
    before, between, behind = WRAPS[family]
    texts = [text for question, answer in talk for text in (before + question + between, answer + behind)]
    hidden = {"\U000f0000": "<|im_end|>"} if hides else None
    turns = chat(first + texts[0], *texts[1:], hidden=hidden)
    other = chat(*texts[2:])  # shares nothing with the one before it but words
    assert tokenise(encoder, [turns, other]) == [apart(encoder, turns), apart(encoder, other)]


def sentencepiece(change: Callable[[Any], None], **flags: bool) -> Encoder:
    """A tokenizer of SentencePiece's kind, with special tokens <s>, </s> and <end>, the last with the flags given."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = ["▁", "\n", " ", *"abcdefghijklmnopqrstuvwxyzA:<>|", "▁a", "ab", "▁▁"]
    words = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", "<end>", *letters])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[("▁", "a"), ("a", "b"), ("▁", "▁")], unk_token="<unk>", fuse_unk=True))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>")])
    backend.add_special_tokens([AddedToken("<end>", **({"normalized": False} | flags))])
    change(backend)
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))


def _metaspace(scheme: str) -> Callable[[Any], None]:
    from tokenizers import pre_tokenizers

    return lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme=scheme))  # type: ignore[arg-type]


def _llama_2(backend: Any) -> None:
    from tokenizers import normalizers

    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


KINDS: dict[str, tuple[Callable[[Any], None], dict[str, bool], bool]] = {
    "first": (_metaspace("first"), {}, True),
    "always": (_metaspace("always"), {}, True),
    "llama-2": (_llama_2, {}, True),
    "takes blanks before it": (_metaspace("first"), {"lstrip": True}, False),
    "takes blanks behind it": (_metaspace("first"), {"rstrip": True}, True),
    "a word of its own": (_metaspace("always"), {"single_word": True}, False),
    "found in normalised text": (_llama_2, {"normalized": True}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_only_cut_where_its_parts_tokenise_alike(kind):
    change, flags, divides = KINDS[kind]
    encoder = sentencepiece(change, **flags)
    assert encoder.divides("a<end>b", 1) is divides
    assert not encoder.divides("a<end>b", 0) and not encoder.divides("", 0)
    mark = "\U000f0000"
    for blank in ("", " ", "  ", "\n", mark, f" {mark} "):
        texts = ["<s>a_b_<end>_", "ab_<end>", "_a_<end>a", "_b_<end>", "<end>", "a<end>"]
        turns = chat(*(text.replace("_", blank) for text in texts), hidden={mark: "<end>"} if mark in blank else None)
        assert tokenise(encoder, [turns]) == [apart(encoder, turns)]


def test_a_token_inside_a_longer_one_divides_nothing():
    tokenizer = make_tokenizer("qwen2.5")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>\n<|im_start|>"]})
    encoder = Encoder(tokenizer)
    assert not encoder.divides("<|im_end|>", 0) and encoder.divides("<|im_end|>\n<|im_start|>", 0)
    turns = chat("<|im_start|>a", "b<|im_end|>", "\n<|im_start|>c", "d<|im_end|>")
    assert tokenise(encoder, [turns]) == [apart(encoder, turns)]
