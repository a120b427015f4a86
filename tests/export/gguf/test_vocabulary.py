import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.conftest import CHATML
from tests.export.gguf.tokenizers_made import byte_level, characters
from tests.templates import make_tokenizer
from tunesmith.errors import UserError
from tunesmith.export.gguf.splits import GPT2, QWEN2, TEKKEN
from tunesmith.export.gguf.vocabulary import BYTE, CONTROL, MARKS, NEVER, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, vocabulary


def kinds(entries: dict[str, Any]) -> dict[str, int]:
    return dict(zip(entries["ggml.tokens"], entries["ggml.token_type"], strict=True))


def test_bytes_and_merges() -> None:
    tokenizer = byte_level((GPT2,))
    size = len(tokenizer) + 3
    entries = vocabulary(tokenizer, size, [tokenizer.eos_token_id, 7], "here").entries
    kind = kinds(entries)
    assert len(entries["ggml.tokens"]) == size
    assert (kind["<|im_end|>"], kind["<think>"], kind["Ġ"], kind[f"[PAD{size - 1}]"]) == (CONTROL, USER_DEFINED, NORMAL, UNUSED)
    assert entries["ggml.tokens"][tokenizer.bos_token_id] == "<|bos|>"
    first = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"][0]
    assert entries["ggml.merges"][0] == " ".join(first)
    assert (entries["ggml.model"], entries["ggml.pre"]) == ("gpt2", "gpt-2")
    assert entries["ggml.eos_token_id"] == tokenizer.eos_token_id and entries["ggml.eot_token_id"] == 7
    assert "ggml.eom_token_id" not in entries and "ggml.padding_token_id" not in entries
    assert entries["ggml.add_bos_token"] is False and entries["ggml.add_eos_token"] is False
    assert entries["chat_template"] == CHATML


def test_characters_and_scores() -> None:
    tokenizer = characters("always")
    entries = vocabulary(tokenizer, len(tokenizer), [], "here").entries
    kind = kinds(entries)
    assert (kind["<unk>"], kind["<s>"], kind["<0x0A>"], kind["▁"]) == (UNKNOWN, CONTROL, BYTE, NORMAL)
    assert entries["ggml.model"] == "llama" and entries["ggml.add_space_prefix"] is True and entries["ggml.add_bos_token"] is True
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    scores = dict(zip(entries["ggml.tokens"], entries["ggml.scores"], strict=True))
    first, last = "".join(model["merges"][0]), "".join(model["merges"][-1])
    assert 0 == scores[first] > scores[last] > scores["<s>"] == NEVER


@pytest.mark.parametrize(("prefix", "gemma"), [("first", False), ("never", False), ("never", True)])
def test_where_a_blank_is_put_in_front(prefix: str, gemma: bool) -> None:
    tokenizer = characters(prefix, gemma)
    found = vocabulary(tokenizer, len(tokenizer), [], "here")
    assert found.entries["ggml.add_space_prefix"] is False
    assert any("should begin with one" in note for note in found.notes) == (prefix == "first")
    if gemma:  # looked for in a text that has real blanks
        assert kinds(found.entries)["     "] == USER_DEFINED


def test_a_template_without_bos_counts_more_than_plain_text() -> None:
    tokenizer = characters("always")
    tokenizer.chat_template = CHATML
    found = vocabulary(tokenizer, len(tokenizer), [], "here")
    assert found.entries["ggml.add_bos_token"] is False
    assert any("the chat template, which counts, does not" in note for note in found.notes)


def test_several_templates_keep_their_names() -> None:
    tokenizer = byte_level((GPT2,))
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ messages }}"}
    entries = vocabulary(tokenizer, len(tokenizer), [], "here").entries
    assert entries["chat_template"] == CHATML and entries["chat_template.tool_use"] == "{{ messages }}"
    assert entries["chat_templates"] == ["tool_use"]


def test_what_llamacpp_does_otherwise_is_told() -> None:
    composed = byte_level((QWEN2,), normalizer=normalizers.NFC())
    assert any("NFC" in note for note in vocabulary(composed, len(composed), [], "here").notes)
    many = vocabulary(composed, len(composed), [1, 2, 3, 4], "here")
    assert any("three tokens" in note for note in many.notes)
    assert (many.entries["ggml.eot_token_id"], many.entries["ggml.eom_token_id"]) == (1, 2)


def test_blanks_that_special_tokens_take() -> None:
    """llama.cpp takes them behind Phi-3's tokens, by a rule that names four of them; another tokenizer's are not taken."""
    tokenizer = make_tokenizer("phi-3")
    tokenizer.backend_tokenizer.pre_tokenizer = byte_level((GPT2,)).backend_tokenizer.pre_tokenizer
    found = vocabulary(tokenizer, len(tokenizer), [], "here")
    assert not found.strips and any("take blanks behind them" in note for note in found.notes)


def test_what_cannot_be_written() -> None:
    tokenizer = byte_level((GPT2,))
    with pytest.raises(UserError, match=r"ids up to \d+, and its embedding 300 rows"):
        vocabulary(tokenizer, 300, [], "here")
    with pytest.raises(UserError, match=r"changes text first \(Lowercase\)"):
        vocabulary(byte_level((GPT2,), normalizer=normalizers.Lowercase()), 2000, [], "here")
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)), eos_token="a")
    with pytest.raises(UserError, match="of the kind Unigram"):
        vocabulary(unigram, 2, [], "here")


def test_words_that_are_found_only_by_merges_are_ordinary() -> None:
    tokenizer = characters("never", gemma=True)
    assert kinds(vocabulary(tokenizer, len(tokenizer), [], "here").entries)["▁the"] == NORMAL


def test_rules_that_llamacpp_has_only_nearly() -> None:
    tokenizer = byte_level((TEKKEN,))
    assert MARKS in vocabulary(tokenizer, len(tokenizer), [], "here").notes


def test_added_tokens_without_a_row_are_left_out() -> None:
    tokenizer = byte_level((GPT2,))
    rows = max(tokenizer.get_vocab().values())  # the last one, <think>, has none
    found = vocabulary(tokenizer, rows, [], "here")
    assert len(found.entries["ggml.tokens"]) == rows and "<think>" not in found.entries["ggml.tokens"]
    assert "the embedding has no row for <think>: left out" in found.notes


@pytest.mark.parametrize(("ending", "told"), [(True, False), (False, True)])
def test_phi3s_own_rule(ending: bool, told: bool) -> None:
    from tokenizers import AddedToken

    tokenizer = byte_level((GPT2,))
    backend = tokenizer.backend_tokenizer
    kept = [AddedToken(word, special=True, normalized=False) for word in ("<unk>", "<s>", "<|endoftext|>")]
    names = [f"<|{word}|>" for word in ("user", "end", "system", "assistant", "x", "y")]
    taking = [AddedToken(name, special=True, normalized=False, rstrip=True) for name in names]
    backend.add_special_tokens([*kept, *taking, AddedToken("</s>", special=True, normalized=False, rstrip=ending)])
    found = vocabulary(tokenizer, max(tokenizer.get_vocab().values()) + 1, [], "here")
    assert found.strips  # though <|im_end|> and its like take none
    assert any("</s>" in note for note in found.notes) == told
