"""Text token by token is the text at once; half characters and stop texts wait."""

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.http.talking import tokenizer_of
from tunesmith.serve.http.text import Growing, Stops, held_back, text_of, vocabulary_of


@cache
def sentence_piece(kind: str) -> Any:
    """Words with a blank in front as ▁, bytes as <0xE4>: `metaspace` as newer tokenizers decode, `replace` as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁Hello", "Hello", ",", "▁wörld", "x", "▁▁"]
    backend = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    replaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    spaced = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    backend.decoder = decoders.Sequence(replaced if kind == "replace" else spaced)
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", ["qwen2.5", "llama-3.2", "mistral-v3", "gemma-3"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_give_what_the_tokenizer_makes_of_them(family, data):
    tokenizer = tokenizer_of(family)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    growing = Growing(vocabulary_of(tokenizer))
    pieces = [growing.add(token) for token in ids]
    # a special token cuts a character in two; the tokenizer, which leaves it out first, joins the halves again
    if not set(ids) & set(vocabulary_of(tokenizer).specials):
        assert "".join(pieces) + growing.end() == decoded(tokenizer, ids)
    assert b"".join(map(vocabulary_of(tokenizer).bytes_of, ids)).decode(errors="replace") is not None


@pytest.mark.parametrize("kind", ["replace", "metaspace"])
def test_sentence_piece_words(kind):
    tokenizer = sentence_piece(kind)
    vocabulary = vocabulary_of(tokenizer)
    assert vocabulary.adds_blank
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", ",", "▁wörld", "▁", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "▁▁", "x"])
    assert text_of(vocabulary, ids) == decoded(tokenizer, ids) == "Hello, wörld 🙂  x"
    assert vocabulary.bytes_of(ids[4]) == b"\xf0" and vocabulary.bytes_of(ids[0]) == b" Hello"
    goes_on = Growing(vocabulary, fresh=False)
    assert goes_on.add(ids[0]) == " Hello"


def test_half_characters_wait_for_their_other_half():
    tokenizer = tokenizer_of("qwen2.5")
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    growing = Growing(vocabulary_of(tokenizer))
    assert [growing.add(token) for token in ids] == ["a", "", "", "", "🙂"] and not growing.waits
    growing.add(ids[1])
    assert growing.waits and growing.end() == "\ufffd" and not growing.waits


def test_special_tokens_are_left_out_but_for_marks():
    tokenizer = tokenizer_of("qwen2.5")
    end = tokenizer.eos_token_id
    [letter] = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert Growing(vocabulary_of(tokenizer)).add(end) == ""
    growing = Growing(vocabulary_of(tokenizer), {end: "\ud800"})
    assert growing.add(letter) + growing.add(end) == "a\ud800"


def test_an_id_beyond_the_words_says_nothing():
    vocabulary = vocabulary_of(tokenizer_of("qwen2.5"))
    assert vocabulary.bytes_of(100_000) == b""


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_a_stop_text_cuts_exactly_before_it(text, stops, seed):
    numbers, stopper, out, at = random.Random(seed), Stops(stops), "", 0
    while at < len(text) and stopper.cut < 0:
        size = numbers.randint(1, 4)
        out += stopper.add(text[at : at + size])
        at += size
    places = [text.find(stop) for stop in stops if stop in text]
    if stopper.cut < 0:
        assert not places and out + stopper.end() == text
    else:
        # the one that is whole first ends it, as a server cannot look ahead
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        assert out == text[: len(out)] and any(text.startswith(stop, len(out)) for stop in stops) and len(out) <= max(ends)
        assert stopper.cut == min(at, len(text)) - len(out)


def test_what_may_become_a_stop_text_is_held_back():
    stopper = Stops(["\n\nUser:", "END"])
    assert [stopper.add(part) for part in ["Hi\n", "\nUs", "e", "d EN", "d"]] == ["Hi", "", "", "\n\nUsed ", "ENd"]
    assert held_back("abc<", ["<think>"]) == 1 and held_back("abc", ["<think>"]) == 0 and held_back("x", []) == 0
