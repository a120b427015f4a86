"""What a server feeds and what is learned, family by family; the oracle is `tokenizer.apply_chat_template`."""

import datetime
import hashlib
import json
import random
from functools import cache
from typing import Any

import pytest

from tests.templates import ADDS_BOS, TEMPLATES, make_tokenizer
from tunesmith.data.look.show import bracketed
from tunesmith.data.rendering import notes
from tunesmith.data.rendering.proof import prove
from tunesmith.data.rendering.render import Document, Renderer
from tunesmith.data.sample import RowError, Sample
from tunesmith.errors import UserError


@cache
def tokenizer_of(family: str) -> Any:
    return make_tokenizer(family)


def renderer_of(family: str, **settings: Any) -> Renderer:
    return Renderer(tokenizer_of(family), **settings)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, thought: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | ({"reasoning_content": thought} if thought else {}) | more


def sample(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Sample:
    return Sample("a.jsonl:1", messages, tools)


def shown(renderer: Renderer, *messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> list[str]:
    """The row's documents as text, with ⟦ ⟧ around what is learned."""
    return [bracketed(document, renderer.tokenizer) for document in renderer.documents(sample(*messages, tools=tools))]


TALK = (user("Hi"), assistant("Yes."), user("Why?"), assistant("So."))
CHATML = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n⟦"
)
HEADER = "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
REPLY = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"

TWO_TURNS = {
    "smollm2": ["<|im_start|>system\nYou are helpful.<|im_end|>\n" + CHATML + "So.<|im_end|>⟧"],
    "qwen2.5": ["<|im_start|>system\nYou are Qwen.<|im_end|>\n" + CHATML + "So.<|im_end|>⟧"],
    "llama-3.2": [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 24 Nov 2026\n\n"
        + HEADER
        + "Hi"
        + REPLY
        + "⟦Yes.<|eot_id|>⟧"
        + HEADER.removeprefix("<|eot_id|>")
        + "Why?"
        + REPLY
        + "⟦So.<|eot_id|>⟧"
    ],
    "gemma-3": [
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Yes.<end_of_turn>⟧\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n⟦So.<end_of_turn>⟧"
    ],
    "mistral": ["<s>[INST] Hi [/INST]⟦ Yes.</s>⟧[INST] Why? [/INST]⟦ So.</s>⟧"],
    "mistral-v3": ["<s>[INST] Hi[/INST]⟦ Yes.</s>⟧[INST] Why?[/INST]⟦ So.</s>⟧"],
    # the role tokens swallow the line end behind them; <|endoftext|> behind the last message is not what stops
    "phi-3": ["<|user|>Hi<|end|><|assistant|>⟦Yes.<|end|>⟧<|user|>Why?<|end|><|assistant|>⟦So.<|end|>⟧"],
    "cohere2": [
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
        "⟦Yes.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>⟧<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>⟦So.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>⟧"
    ],
    # a server's next prompt holds no stop token, so the second turn is a document of its own
    "glm": [
        "<|user|>\nHi<|assistant|>⟦\nYes.<|endoftext|>⟧",
        "<|user|>\nHi<|assistant|>\nYes.<|user|>\nWhy?<|assistant|>⟦\nSo.<|endoftext|>⟧",
    ],
    "gpt-oss": [
        "<|start|>user<|message|>Hi<|end|><|start|>assistant⟦<|channel|>final<|message|>Yes.<|return|>⟧",
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|end|>"
        "<|start|>user<|message|>Why?<|end|><|start|>assistant⟦<|channel|>final<|message|>So.<|return|>⟧",
    ],
    "qwen3": [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYes.<|im_end|>⟧",
        CHATML.replace("⟦", "").replace("⟧", "") + "⟦<think>\n\n</think>\n\nSo.<|im_end|>⟧",
    ],
    "qwen3-thinking": [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n⟦\n</think>\n\nYes.<|im_end|>⟧",
        CHATML.replace("⟦", "").replace("⟧", "") + "<think>\n⟦\n</think>\n\nSo.<|im_end|>⟧",
    ],
    "deepseek-r1": [
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n⟦\n</think>\n\nYes.<｜end▁of▁sentence｜>⟧",
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Yes.<｜end▁of▁sentence｜><｜User｜>Why?<｜Assistant｜><think>\n"
        "⟦\n</think>\n\nSo.<｜end▁of▁sentence｜>⟧",
    ],
}


@pytest.mark.parametrize("family", TEMPLATES)
def test_two_turns_of_each_family(family):
    renderer = renderer_of(family)
    assert shown(renderer, *TALK) == TWO_TURNS[family]
    assert renderer.notes[notes.OWN_DOCUMENTS] == (len(TWO_TURNS[family]) > 1)


THINKING = {
    ("qwen3", "keep"): "⟦<think>\nhm\n</think>\n\nYes.<|im_end|>⟧",
    ("qwen3", "drop"): "⟦Yes.<|im_end|>⟧",
    ("qwen3", "empty"): "⟦<think>\n\n</think>\n\nYes.<|im_end|>⟧",
    ("qwen3-thinking", "keep"): "<think>\n⟦hm\n</think>\n\nYes.<|im_end|>⟧",
    ("qwen3-thinking", "drop"): "<think>\n⟦\n</think>\n\nYes.<|im_end|>⟧",
    ("qwen3-thinking", "empty"): "<think>\n⟦\n</think>\n\nYes.<|im_end|>⟧",
    ("deepseek-r1", "keep"): "<｜Assistant｜><think>\n⟦hm\n</think>\n\nYes.<｜end▁of▁sentence｜>⟧",
    ("deepseek-r1", "drop"): "<｜Assistant｜><think>\n⟦\n</think>\n\nYes.<｜end▁of▁sentence｜>⟧",
    ("gpt-oss", "keep"): "assistant⟦<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>⟧",
    ("gpt-oss", "drop"): "assistant⟦<|channel|>final<|message|>Yes.<|return|>⟧",
    ("gpt-oss", "empty"): "assistant⟦<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>⟧",
    ("qwen2.5", "keep"): "assistant\n⟦<think>\nhm\n</think>\n\nYes.<|im_end|>⟧",
    ("qwen2.5", "drop"): "assistant\n⟦Yes.<|im_end|>⟧",
    ("qwen2.5", "empty"): "assistant\n⟦Yes.<|im_end|>⟧",
}


@pytest.mark.parametrize(("family", "thinking"), THINKING)
def test_thinking_stands_where_the_template_has_it(family, thinking):
    renderer = renderer_of(family, thinking=thinking)
    [apart] = shown(renderer, user("Hi"), assistant("Yes.", "hm"))
    [inside] = shown(renderer, user("Hi"), assistant("<think>\nhm\n</think>\n\nYes."))
    assert apart.endswith(THINKING[family, thinking])
    assert inside == apart
    written = renderer.notes[notes.THINK_TEXT]
    assert written == (family == "qwen2.5" and thinking == "keep")


def test_earlier_thinking_is_fed_as_the_server_feeds_it():
    talk = (user("Hi"), assistant("Yes.", "hm"), user("Why?"), assistant("So.", "well"))
    first, second = shown(renderer_of("qwen3"), *talk)
    assert "hm" in first and "hm" not in second and second.endswith("⟦<think>\nwell\n</think>\n\nSo.<|im_end|>⟧")
    [dropped] = shown(renderer_of("qwen3", thinking="drop"), *talk)  # nothing is rewritten: one document again
    assert dropped == CHATML + "So.<|im_end|>⟧"


def test_a_closed_thinking_block_leaves_thinking_out():
    template = (
        TEMPLATES["deepseek-r1"].replace("<｜Assistant｜><think>\\n'", "<｜Assistant｜></think>'").replace("<think>\n' }}", "</think>' }}")
    )
    renderer = Renderer(make_tokenizer("deepseek-r1", template))
    [text] = shown(renderer, user("Hi"), assistant("Yes.", "hm"))
    assert text.endswith("<｜Assistant｜></think>⟦Yes.<｜end▁of▁sentence｜>⟧")
    assert renderer.notes[notes.THINK_CLOSED] == 1


def test_thinking_is_left_out_too_where_the_template_would_write_it_but_servers_close_it():
    """Qwen3.5's small ones: written in an answer that holds thinking, closed and empty in every prompt."""
    off = TEMPLATES["qwen3"].replace("enable_thinking is defined and enable_thinking is false", "true")
    renderer = Renderer(make_tokenizer("qwen3", off))
    for answer in (assistant("Yes.", "hm"), assistant("<think>\nhm\n</think>\n\nYes.")):
        [text] = shown(renderer, user("Hi"), answer)
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Yes.<|im_end|>⟧")
    assert renderer.notes == {notes.THINK_CLOSED: 2}
    assert shown(renderer, user("Hi"), assistant("Yes."))[0] == text and renderer.notes[notes.THINK_CLOSED] == 2


# --- against transformers ---

TEXTS = [
    "Hi",
    " x ",
    "",
    "\n",
    "  two blanks",
    "déjà 中文 🙂",
    "a\r\nb\t",
    "<b>&amp;</b>",
    '{"a": "\\"1"}',
    "</think>",
    "x<|im_",
    "1234567",
    "é",
]


@pytest.mark.parametrize("family", TEMPLATES)
def test_prompts_are_what_apply_chat_template_gives(family):
    renderer, tokenizer = renderer_of(family, date=datetime.date.today().isoformat()), tokenizer_of(family)
    for text in TEXTS:
        for messages in ([user(text)], [user(text), assistant("So."), user("Hi")]):
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            assert renderer.prompt_ids(messages) == expected


@pytest.mark.parametrize("family", ["smollm2", "qwen2.5", "gemma-3", "mistral", "llama-3.2"])
def test_a_document_is_the_start_of_the_whole_rendering(family):
    renderer, tokenizer = renderer_of(family, date=datetime.date.today().isoformat()), tokenizer_of(family)
    [document] = renderer.documents(sample(*TALK))
    whole = tokenizer.apply_chat_template(list(TALK))["input_ids"]
    assert whole[: len(document.ids)] == document.ids
    assert tokenizer.decode(whole[len(document.ids) :]).strip() == ""


@pytest.mark.parametrize("family", ["chatml", "mistral"])
@pytest.mark.parametrize("talk", [TALK[:2], TALK])
def test_what_is_learned_agrees_with_generation_marks(family, talk):
    marks = {
        "chatml": "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "mistral": TEMPLATES["mistral"].replace(
            "{{ ' ' + message.content + eos_token }}", "{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}"
        ),
    }
    tokenizer = make_tokenizer("smollm2" if family == "chatml" else family, marks[family])
    whole = tokenizer.apply_chat_template(list(talk), return_dict=True, return_assistant_tokens_mask=True)
    [document] = Renderer(tokenizer).documents(sample(*talk))
    ours = [any(start <= n < end for start, end in document.spans) for n in range(len(document.ids))]
    assert sum(ours) > 0 and list(map(bool, whole["assistant_masks"])) == ours + [False] * (len(whole["input_ids"]) - len(ours))


def test_learned_tokens_say_what_the_assistant_says():
    """Every family, many odd texts: fed + learned tokens are prompt ids + answer ids, and decode to the answer."""
    chance = random.Random(0)
    for family in TEMPLATES:
        renderer, tokenizer = renderer_of(family), tokenizer_of(family)
        for _ in range(30):
            texts = ["".join(chance.choices(TEXTS, k=3)).replace("</think>", "") for _ in range(4)]
            talk = (user(texts[0] + "?"), assistant(texts[1]), user(texts[2] + "?"), assistant(texts[3]))
            for document in renderer.documents(sample(*talk)):
                for (start, end), turn, answer in zip(document.spans, document.turns, document.answers, strict=True):
                    assert document.ids[:start] == renderer.prompt_ids(talk[:turn])
                    assert answer == renderer.answer(talk[: turn + 1])
                    assert tokenizer.decode(document.ids[start:end]) == answer
                    assert talk[turn]["content"].strip() in answer
                    assert document.ids[end - 1] in renderer.stops


# --- tokens across the border ---


def test_an_answer_that_would_merge_with_the_prompt_is_counted():
    renderer = renderer_of("smollm2")
    answer = "\n\n  indented"
    [document] = renderer.documents(sample(user("Hi"), assistant(answer), user("Why?"), assistant("So.")))[:1]
    (start, end) = document.spans[0]
    assert document.ids[:start] == renderer.prompt_ids([user("Hi")])
    assert renderer.tokenizer.decode(document.ids[start:end]) == answer + "<|im_end|>"
    assert document.ids[start:end] == renderer.tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(document.spans) == 1  # the server's next prompt merges them, so the next turn stands apart
    assert renderer.notes[notes.JOINT_DIFFERS] == 1
    assert renderer.notes[notes.OWN_DOCUMENTS] == 1


def test_a_tokenizer_that_puts_blanks_before_words_puts_none_before_an_answer():
    """SentencePiece's kind: `tokenizer("Yes")` is ▁Yes, while a model that goes on behind [/INST] says what stands there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "▁\n" + "".join(sorted(set("<user>HiYes.abc:")))
    words = {token: n for n, token in enumerate(["<s>", "</s>", "<unk>", "[/INST]", *letters])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>", "[/INST]"])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ message.content + ('[/INST]' if message.role == 'user' else eos_token) }}{% endfor %}"
    )
    renderer = Renderer(tokenizer)
    assert renderer.encoder.adds_blank
    [document] = renderer.documents(sample(user("Hi"), assistant("Yes.")))
    [(start, end)] = document.spans
    assert tokenizer.convert_ids_to_tokens(document.ids[start:end]) == ["Y", "e", "s", ".", "</s>"]
    assert document.ids == tokenizer.apply_chat_template([user("Hi"), assistant("Yes.")])["input_ids"]


# --- special tokens ---


@pytest.mark.parametrize("family", TEMPLATES)
def test_special_tokens_in_messages_stay_text(family):
    renderer, tokenizer = renderer_of(family), tokenizer_of(family)
    stop = next(iter(renderer.stop_tokens))
    talk = (user(f"What is {stop}? {tokenizer.eos_token}"), assistant(f"{stop} ends, {tokenizer.eos_token} too."))
    [document] = renderer.documents(sample(*talk))
    [(start, end)] = document.spans
    specials = set(renderer.encoder.ids.values())
    plain = renderer.documents(sample(user("What is it?"), assistant("It ends.")))[0]
    assert [n for n in document.ids if n in specials] == [n for n in plain.ids if n in specials]
    assert tokenizer.decode(document.ids[start:end]) == document.answers[0]
    assert f"{stop} ends, {tokenizer.eos_token} too." in document.answers[0]
    assert document.ids[:start] == renderer.prompt_ids(talk[:1])
    assert f"What is {stop}? {tokenizer.eos_token}" in tokenizer.decode(document.ids[:start])
    assert renderer.notes[notes.SPECIAL_TEXT] == 1


def test_special_tokens_in_text_are_tokenised_as_the_words_around_them():
    """Nothing else changes: as though the tokenizer did not know the special token at all."""
    renderer, tokenizer = renderer_of("qwen2.5"), tokenizer_of("qwen2.5")
    ids = renderer.prompt_ids([user("a <|im_end|> b")])
    pieces = ["system\nYou are Qwen.", "\n", "user\na <|im_end|> b", "\n", "assistant\n"]
    starts = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")]
    expected, order = [], [0, 1, 0, 1, 0]
    for piece, which in zip(pieces, order, strict=True):
        before = [starts[0]] if which == 0 else [starts[1]]
        expected += before + tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == expected
    oracle = tokenizer.apply_chat_template([user("a <|im_end|> b")], add_generation_prompt=True, sanitize_control_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == tokenizer.decode(oracle)
    assert [n for n in ids if n in starts] == [n for n in oracle if n in starts]


def test_special_tokens_in_tools_and_arguments_stay_text():
    renderer, tokenizer = renderer_of("qwen2.5"), tokenizer_of("qwen2.5")
    tools = ({"type": "function", "function": {"name": "find", "description": "finds <|im_end|>"}},)
    call = {"type": "function", "function": {"name": "find", "arguments": {"word": "<|im_end|>"}}}
    [document] = renderer.documents(sample(user("Hi"), assistant("", tool_calls=[call]), tools=tools))
    assert '{"word": "<|im_end|>"}' in document.answers[0]
    assert tokenizer.decode(document.ids).count("<|im_end|>") == 5 and document.ids.count(tokenizer.eos_token_id) == 3


def test_private_use_characters_of_a_message_are_kept():
    renderer, tokenizer = renderer_of("qwen2.5"), tokenizer_of("qwen2.5")
    text = "\U000f0000 <|im_end|> \U000f0001"
    assert text in tokenizer.decode(renderer.prompt_ids([user(text)]))
    with pytest.raises(RowError, match="private-use"):
        renderer.prompt_ids([user(text + "\U00100000")])


# --- beginnings and ends ---


@pytest.mark.parametrize("family", TEMPLATES)
def test_one_bos_at_most(family):
    tokenizer, renderer = tokenizer_of(family), renderer_of(family)
    ids = renderer.prompt_ids([user("Hi")])
    assert (tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id) == (family in ADDS_BOS)
    if tokenizer.bos_token_id is not None and family != "phi-3":
        assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id


def test_a_template_with_two_bos_is_refused():
    renderer = Renderer(make_tokenizer("gemma-3", "{{ bos_token }}" + TEMPLATES["gemma-3"]))
    with pytest.raises(UserError, match="two <bos>"):
        renderer.documents(sample(*TALK))


def test_stop_tokens_are_found_by_asking_and_by_id():
    assert renderer_of("phi-3").stop_tokens.keys() == {"<|endoftext|>", "<|end|>"}
    assert renderer_of("gemma-3").stop_tokens.keys() == {"<eos>", "<end_of_turn>"}
    eom = tokenizer_of("llama-3.2").convert_tokens_to_ids("<|eom_id|>")
    assert renderer_of("llama-3.2", stop_ids=[eom]).stop_tokens == {"<|eom_id|>": eom, "<|eot_id|>": tokenizer_of("llama-3.2").eos_token_id}


def test_the_next_role_s_token_is_learned_where_it_is_what_stops_a_server():
    """GLM's way; a conversation stays one document then."""
    tokenizer = tokenizer_of("glm")
    roles = tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])
    renderer = Renderer(tokenizer, stop_ids=roles)
    assert shown(renderer, *TALK) == ["<|user|>\nHi<|assistant|>⟦\nYes.<|user|>⟧\nWhy?<|assistant|>⟦\nSo.<|user|>⟧"]
    tool = {"role": "tool", "content": "sunny"}
    talk = (user("weather?"), assistant("", tool_calls=[CALL]), tool, assistant("Sunny."))
    [called] = shown(renderer, *talk)
    assert called.endswith('⟦weather\n{"city": "Genève"}<|observation|>⟧\nsunny<|assistant|>⟦\nSunny.<|user|>⟧')
    assert renderer.notes == {}
    assert prove(renderer.documents(sample(*talk)), renderer).spans == 2


def test_a_tokenizer_without_end_is_refused():
    tokenizer = make_tokenizer("smollm2")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        Renderer(tokenizer)


def test_without_a_template_question_and_answer_are_plain_text():
    tokenizer = make_tokenizer("mistral")
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    assert shown(renderer, user("Hi "), assistant("there")) == ["<s>Hi ⟦there</s>⟧"]
    for talk in (TALK, ({"role": "system", "content": "Be short."}, *TALK[:2])):
        with pytest.raises(RowError, match=r"no chat template.*instruct model.*data\.prompt"):
            renderer.documents(sample(*talk))


@pytest.mark.parametrize("family", ["smollm2", "mistral"])
def test_raw_text_is_learned_but_for_its_first_token(family):
    renderer, tokenizer = renderer_of(family), tokenizer_of(family)
    [document] = renderer.documents(Sample("a.txt:1", text="One </s><|im_end|> two."))
    begin = [tokenizer.bos_token_id] if family in ADDS_BOS else []
    assert document.ids[: len(begin)] == begin and document.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(document.ids[len(begin) : -1]) == "One </s><|im_end|> two."
    assert document.ids.count(tokenizer.eos_token_id) == 1
    assert document.spans == ((1, len(document.ids)),)
    assert renderer.notes[notes.SPECIAL_TEXT] == 1


def test_a_long_text_tokenises_in_parts_as_at_once(monkeypatch):
    renderer = renderer_of("smollm2")
    text = "One line\nof  many.\n\nAnother\n  one\n" * 50
    whole = renderer.encoder.text(text)
    monkeypatch.setattr("tunesmith.data.rendering.tokens.LONG", 100)
    assert renderer.encoder.text(text) == whole


# --- roles, tools, dates ---


def test_only_asked_and_wanted_answers_are_learned():
    renderer = renderer_of("smollm2")
    [text] = shown(renderer, assistant("Hello!"), user("Hi"), assistant("No.", learn=False), user("Why?"), assistant("So."))
    assert text.count("⟦") == 1 and text.endswith("⟦So.<|im_end|>⟧") and "Hello!" in text and "No." in text
    assert renderer.notes[notes.UNASKED] == 1
    with pytest.raises(RowError, match="no assistant message"):
        renderer.documents(sample(user("Hi"), assistant("No.", learn=False)))


TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"city": "Genève"}}}


def test_tool_calls_are_learned_as_the_template_writes_them():
    talk = (
        user("Weather?"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        assistant("Sunny."),
    )
    [text] = shown(renderer_of("qwen2.5"), *talk, tools=(TOOL,))
    assert json.dumps(TOOL) in text
    assert "⟦<tool_call>\n" in text.replace("assistant⟦\n", "assistant\n⟦")
    assert '"arguments": {"city": "Genève"}}\n</tool_call><|im_end|>⟧' in text
    assert text.endswith("<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Sunny.<|im_end|>⟧")


SYSTEM = {"role": "system", "content": "Be short."}
RESULT = {"role": "tool", "content": "sunny"}


def test_calls_get_the_ids_that_a_template_asks_for():
    renderer = renderer_of("mistral-v3")
    own = {name: CALL | {"id": name} for name in ("abcDEF123", "call_1")}
    talks = {
        name: (user("Hi"), assistant("", tool_calls=[call]), RESULT | {"tool_call_id": name}, assistant("Sunny."))
        for name, call in own.items()
    }
    [kept] = shown(renderer, *talks["abcDEF123"], tools=(TOOL,))
    assert renderer.notes == {}
    assert '⟦[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Genève"}, "id": "abcDEF123"}]</s>⟧' in kept
    assert kept.endswith('[TOOL_RESULTS] {"content": sunny, "call_id": "abcDEF123"}[/TOOL_RESULTS]⟦ Sunny.</s>⟧')
    [given] = shown(renderer, *talks["call_1"], tools=(TOOL,))
    assert given == kept.replace("abcDEF123", hashlib.sha256(b"call_1").hexdigest()[:9])
    assert renderer.notes == {notes.NINE_LETTERS: 1}
    [document] = renderer.documents(sample(*talks["call_1"], tools=(TOOL,)))
    assert document.ids[: document.spans[1][0]] == renderer.prompt_ids(talks["call_1"][:3], (TOOL,))


def test_an_answer_is_found_behind_a_history_that_the_template_rewrites():
    """Mistral's system prompt stands in front of the last question only, gpt-oss' thinking goes once an answer is there."""
    talk = (SYSTEM, user("Hi"), assistant("", tool_calls=[CALL]), RESULT, assistant("Sunny."), user("Why?"), assistant("So."))
    first, second, third = shown(renderer_of("mistral-v3"), *talk, tools=(TOOL,))
    assert first.startswith("<s>[AVAILABLE_TOOLS]") and first.endswith("}]</s>⟧")
    assert "[INST] Be short.\n\nHi[/INST]⟦[TOOL_CALLS] [{" in first
    assert "[INST] Hi[/INST][TOOL_CALLS]" in second and second.endswith("[/TOOL_RESULTS]⟦ Sunny.</s>⟧")
    assert third.endswith("Why?[/INST]⟦ So.</s>⟧")

    thoughtful = (user("Hi"), assistant("", "look", tool_calls=[CALL]), RESULT, assistant("Sunny.", "seen"))
    renderer = renderer_of("gpt-oss", stop_ids=tokenizer_of("gpt-oss").convert_tokens_to_ids(["<|call|>"]))
    [text] = shown(renderer, *thoughtful)
    assert "assistant⟦<|channel|>analysis<|message|>look<|end|><|start|>assistant to=functions.weather<|channel|>" in text
    assert text.endswith(
        "<|start|>tool<|message|>sunny<|end|><|start|>assistant"
        "⟦<|channel|>analysis<|message|>seen<|end|><|start|>assistant<|channel|>final<|message|>Sunny.<|return|>⟧"
    )


def test_a_template_that_writes_the_first_call_only_is_refused():
    twice = assistant("", tool_calls=[CALL, CALL])
    with pytest.raises(RowError, match=r"leaves out some of the assistant's tool calls \('weather'\)"):
        renderer_of("gpt-oss").documents(sample(user("Hi"), twice))
    assert shown(renderer_of("qwen2.5"), user("Hi"), twice)[0].count("weather") == 2


def test_arguments_are_json_where_a_template_takes_them_as_text():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "deep": [True, None]}}}
    added = shown(renderer_of("deepseek-r1"), user("Weather?"), assistant("", tool_calls=[call]))
    assert 'weather\n{"city": "Bern", "deep": [true, null]}<｜end▁of▁sentence｜>⟧' in added[0]
    # `~` and {{ }} turn a dict into Python's text without any error
    silent = TEMPLATES["deepseek-r1"].replace("+ call.function.arguments +", "~ call.function.arguments ~")
    assert shown(Renderer(make_tokenizer("deepseek-r1", silent)), user("Weather?"), assistant("", tool_calls=[call])) == added


@pytest.mark.parametrize(
    ("family", "talk", "tools", "reason"),
    [
        ("smollm2", TALK[:2], (TOOL,), "leaves out the tools \\('weather'\\)"),
        ("smollm2", (user("Hi"), assistant("", tool_calls=[CALL])), (), "leaves out the assistant's tool calls \\('weather'\\)"),
        ("gemma-3", (user("Hi"), user("Hi"), assistant("Yes.")), (), "roles must alternate"),
        ("mistral", ({"role": "system", "content": "x"}, *TALK), (), "Only user and assistant roles are supported!"),
        ("llama-3.2", (user("Hi"), assistant("", tool_calls=[CALL, CALL])), (), "single tool-calls at once"),
    ],
)
def test_rows_that_a_template_cannot_write_are_named(family, talk, tools, reason):
    with pytest.raises(RowError, match=reason):
        renderer_of(family).documents(sample(*talk, tools=tools))


def test_text_that_a_template_drops_is_counted():
    renderer = renderer_of("llama-3.2")
    [text] = shown(renderer, user("Hi"), assistant("Let me look.", tool_calls=[CALL]))
    assert "Let me look." not in text and renderer.notes[notes.BESIDE_CALLS] == 1
    without_system = Renderer(
        make_tokenizer("smollm2", "{% for m in messages %}{% if m.role != 'system' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}")
    )
    without_system.documents(sample({"role": "system", "content": "Be short."}, *TALK[:2]))
    assert without_system.notes[notes.LEFT_OUT] == 1


def test_the_date_is_frozen():
    a, b = renderer_of("llama-3.2", date="2024-02-29"), renderer_of("llama-3.2", date="2024-03-01")
    assert "Today Date: 29 Feb 2024\n" in a.tokenizer.decode(a.prompt_ids([user("Hi")]))
    assert a.prints_date and a.fingerprint != b.fingerprint
    # where none is printed, tomorrow's run finds today's cache
    assert renderer_of("qwen3", date="2024-02-29").fingerprint == renderer_of("qwen3", date="2024-03-01").fingerprint


def test_the_fingerprint_is_over_all_that_decides_tokens():
    first = renderer_of("qwen3").fingerprint
    assert renderer_of("qwen3").fingerprint == first
    tokenizer_of("qwen3")(["a", "b c"], padding=False, truncation=True, max_length=4)  # leaves its trace in the backend
    assert renderer_of("qwen3").fingerprint == first
    others = [
        renderer_of("qwen3", thinking="drop"),
        renderer_of("qwen3", stop_ids=[5]),
        renderer_of("qwen3-thinking"),
        renderer_of("qwen2.5"),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == 5


def test_rows_together_are_rows_one_by_one():
    rows = [
        sample(*TALK),
        sample(user("Hi <|im_end|>"), assistant("a")),
        sample(user("x"), assistant("  b", "hm")),
        Sample("a.txt:1", text="Text."),
    ]
    bad = sample(user("Hi"), assistant("", tool_calls=[CALL]))
    renderer = renderer_of("qwen3")
    found = renderer.documents_of([rows[0], bad, *rows[1:]])
    assert isinstance(found.pop(1), RowError)
    assert found == [renderer_of("qwen3").documents(row) for row in rows]
    assert all(isinstance(document, Document) for documents in found for document in documents)  # type: ignore[union-attr]


def test_the_builtin_model(builtin_model):
    """SmolLM2's own tokenizer and template, against apply_chat_template and the border that the documentation names."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(builtin_model)
    renderer = Renderer(tokenizer)
    for text in [*TEXTS, "What's 12345 + 67890?"]:
        talk = [user(text), assistant("Yes, " + text), user("Why?"), assistant("So.")]
        [document] = renderer.documents(sample(*talk))
        whole = tokenizer.apply_chat_template(talk)["input_ids"]
        assert whole[: len(document.ids)] == document.ids
        assert [tokenizer.decode(document.ids[slice(*span)]) for span in document.spans] == [f"Yes, {text}<|im_end|>", "So.<|im_end|>"]
    assert renderer.notes == {}
    [document] = renderer.documents(sample(user("Hi"), assistant("  indented")))
    assert tokenizer.decode(document.ids[slice(*document.spans[0])]) == "  indented<|im_end|>"
    assert renderer.notes == {notes.JOINT_DIFFERS: 1}


def test_an_answer_that_ends_with_another_special_token_gets_a_stop_token():
    """A tool call's end that stops nothing; several calls are one answer."""
    template = (
        TEMPLATES["deepseek-r1"]
        .replace("<｜Assistant｜><｜call｜>' +", "<｜call｜>' +")
        .replace("+ '<｜end▁of▁sentence｜>' }}\n{%- endfor", "+ '<｜tool｜>' }}\n{%- endfor")
    )
    template = template.replace("<think>\\n", "").replace("<｜Assistant｜><think>\n' }}", "' }}")
    renderer = Renderer(make_tokenizer("deepseek-r1", template))
    call = {"type": "function", "function": {"name": "a", "arguments": {}}}
    [text] = shown(renderer, user("Hi"), assistant("", tool_calls=[call, call]))
    assert text.endswith("⟦<｜call｜>a\n{}<｜tool｜><｜call｜>a\n{}<｜tool｜><｜end▁of▁sentence｜>⟧")
    assert renderer.notes[notes.NO_STOP] == 1


# --- what a client sets for the template ---


def test_a_client_s_variables_reach_the_template_and_change_nothing_that_is_ours():
    renderer, talk = renderer_of("qwen3"), [user("Hi")]
    plain = renderer.prompt_ids(talk)
    switched = renderer.prompt(talk, (), {"enable_thinking": False})
    assert switched.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert renderer.prompt_ids(talk, (), {"enable_thinking": False})[: len(plain)] == plain
    ours = {"messages": [user("No")], "tools": [1], "add_generation_prompt": False, "eos_token": "x", "unheard": 1}
    assert renderer.prompt_ids(talk, (), ours) == plain


def test_habits_can_be_asked_for():
    habits = renderer_of("qwen3-thinking").habits()
    assert habits is not None and habits.opened
    tokenizer = make_tokenizer("mistral")
    tokenizer.chat_template = None
    assert Renderer(tokenizer).habits() is None
