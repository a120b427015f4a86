"""What asking a template finds out, family by family."""

import datetime
from typing import Any

import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.rendering.template import CLOSE, OPEN, Habits, compile_template, probe
from tunesmith.data.rendering.tokens import Encoder
from tunesmith.data.sample import RowError
from tunesmith.errors import UserError

NONE: dict[str, Any] = {
    "after": "",
    "asks": "",
    "tells": "",
    "nine": False,
    "held": "",
    "thinking": "plain",
    "block": None,
    "lead": "",
    "empty": "",
    "opened": False,
    "closed": False,
}
EMPTY = "<think>\n\n</think>\n\n"

FOUND: dict[str, dict[str, Any]] = {
    "smollm2": {"stop": "<|im_end|>"},
    "qwen2.5": {"stop": "<|im_end|>"},
    "qwen3": {"stop": "<|im_end|>", "thinking": "written", "block": (OPEN, CLOSE), "lead": EMPTY, "empty": EMPTY},
    "qwen3-thinking": {"stop": "<|im_end|>", "thinking": "written", "block": ("", CLOSE), "lead": CLOSE, "empty": CLOSE, "opened": True},
    "deepseek-r1": {"stop": "<｜end▁of▁sentence｜>", "thinking": "removed", "block": (OPEN, CLOSE), "held": OPEN, "opened": True},
    "llama-3.2": {"stop": "<|eot_id|>"},
    "gemma-3": {"stop": "<end_of_turn>"},
    "mistral": {"stop": "</s>", "lead": " "},
    "mistral-v3": {"stop": "</s>", "lead": " ", "nine": True},
    "phi-3": {"stop": "<|end|>"},
    "glm": {"stop": "", "lead": "\n"},
    "cohere2": {"stop": "<|END_OF_TURN_TOKEN|>"},
    "gpt-oss": {
        "stop": "<|return|>",
        "thinking": "written",
        "block": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        "lead": "<|channel|>final<|message|>",
    },
}


def asked(template: str, family: str = "smollm2", stops: tuple[str, ...] = ()) -> Habits:
    tokenizer = make_tokenizer(family, template)
    return probe(compile_template(template, tokenizer, "2026-11-24"), Encoder(tokenizer), {tokenizer.eos_token, *stops})


@pytest.mark.parametrize("family", TEMPLATES)
def test_habits_of_each_family(family):
    assert asked(TEMPLATES[family], family) == Habits(**(NONE | FOUND[family]))


def test_text_behind_an_answer_is_known_where_nothing_stops():
    habits = asked(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert (habits.stop, habits.after) == ("", "\n")


CHAT = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}ENDS{% endfor %}"


def ends(of_all: str, of_last: str = "", between: str | None = None) -> str:
    """A template in GLM's tokens that closes all messages with one text, and the last one with another behind it."""
    own = "{% if loop.last %}{{ '" + of_last + "' }}{% else %}{{ '" + (between or "") + "' }}{% endif %}"
    return CHAT.replace("ENDS", "{{ '" + of_all + "' }}" + own)


@pytest.mark.parametrize(
    ("template", "stops", "stop"),
    [
        # both close every answer; the second stops a server
        (ends("<sop>[gMASK]"), ("[gMASK]",), "[gMASK]"),
        # a server stops at the first already
        (ends("<sop>[gMASK]"), ("<sop>", "[gMASK]"), "<sop>"),
        # nobody says which: both
        (ends("<sop>[gMASK]"), (), "[gMASK]"),
        # the tokenizer's own end behind the last message only, not between them
        (ends("<sop>\\n", "<|endoftext|>"), (), "<sop>"),
        (ends("<sop>", "<|endoftext|>"), ("<sop>",), "<sop>"),
        # another token between messages than behind the last
        (ends("", "<|endoftext|>", "<sop>"), (), "<|endoftext|>"),
        (ends("", "<sop>", "[gMASK]"), (), "<sop>"),
        (ends("", "<sop>[gMASK]", "<|system|>"), ("[gMASK]",), "[gMASK]"),
        # the header of an answer follows whether it is asked for or not
        (ends("<sop>\\n", "<|user|>"), (), "<sop>"),
        # text between an answer and its end
        (ends(" <sop>"), (), "<sop>"),
        # a template for one question only
        ("{{ raise_exception('one') if messages | length > 2 }}" + ends("<sop>[gMASK]"), ("[gMASK]",), "[gMASK]"),
        # none
        (ends("\\n"), (), ""),
    ],
)
def test_the_token_that_ends_an_answer(template, stops, stop):
    habits = asked(template, "glm", stops)
    assert (habits.stop, habits.asks, habits.tells) == (stop, "", "")


def test_the_next_message_s_first_token_ends_an_answer_where_servers_stop_there():
    habits = asked(TEMPLATES["glm"], "glm", ("<|user|>", "<|observation|>"))
    assert habits == Habits(**(NONE | {"stop": "", "lead": "\n", "asks": "<|user|>", "tells": "<|observation|>"}))
    assert asked(TEMPLATES["glm"], "glm", ("<|user|>",)).tells == ""
    # a text stands between: whether the model would write it is not known
    assert asked(ends("", "", "Next:"), "glm", ("<|user|>",)).asks == ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content", "not valid"),
        ("{{ raise_exception('needs a picture') }}", "needs a picture"),
        ("{{ messages[0].content }}", "leaves out the assistant's answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, reason):
    with pytest.raises(UserError, match=reason):
        asked(template)


def test_rendering_is_what_transformers_renders():
    today = datetime.date.today().isoformat()
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "hm", "name": None, "learn": True},
        {"role": "user", "content": "Why?"},
    ]
    served = [{key: value for key, value in message.items() if key != "learn"} for message in talk]
    tools = [{"type": "function", "function": {"name": "find", "description": "é <b>"}}]
    for family, template in TEMPLATES.items():
        tokenizer = make_tokenizer(family)
        render = compile_template(template, tokenizer, today)
        for messages in (talk, talk[:2]):
            for generation in (True, False):
                expected = tokenizer.apply_chat_template(
                    served[: len(messages)], tools=tools, add_generation_prompt=generation, tokenize=False
                )
                assert render(messages, tools, generation) == expected


def called(arguments: dict[str, Any], content: str = "") -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content, "tool_calls": [call]}]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("call.arguments | tojson", '{"q": "é"}'),
        ("call.arguments.q", "é"),
        # Python's own text where JSON was meant, and an error
        ("call.arguments", '{"q": "é"}'),
        ("'' ~ call.arguments", '{"q": "é"}'),
        ("'' + call.arguments", '{"q": "é"}'),
    ],
)
def test_arguments_are_an_object_unless_the_template_takes_text(written, found):
    one = "{% set call = c.function %}{{ " + written + " }}"
    text = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}" + one + "{% endfor %}{% endfor %}"
    render = compile_template(text, make_tokenizer("smollm2"), "2026-11-24")
    # words that look like Python's {'q': ...} are no sign of how arguments are written
    for content in ("", "I shall ask {'q': 'é'}."):
        assert render(called({"q": "é"}, content), (), False) == "Hi" + content + found


def test_a_template_that_iterates_over_no_tools_is_not_taken_for_one_that_wants_text():
    text = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    render = compile_template("{% for t in tools %}{% endfor %}" + text, make_tokenizer("smollm2"), "2026-11-24")
    assert render(called({"q": 1}), ({"name": "find"},), False) == 'Hi{"q": 1}'


def test_what_a_template_raises_is_the_row_s_reason():
    tokenizer = make_tokenizer("gemma-3")
    render = compile_template(TEMPLATES["gemma-3"], tokenizer, "2026-11-24")
    with pytest.raises(RowError, match="refuses it: Conversation roles must alternate"):
        render([{"role": "assistant", "content": "Hi"}], (), False)


def test_the_sandbox_holds():
    """A template comes from the hub; it gets at nothing through what we hand over."""
    tokenizer = make_tokenizer("smollm2")
    message = {"role": "user", "content": "Hi"}
    for attempt in ("messages.append(1)", "messages[0].update(role=1)", "strftime_now.__class__.__mro__", "strftime_now.__self__.year"):
        with pytest.raises(RowError, match="refuses it"):
            compile_template("{{ " + attempt + " }}", tokenizer, "2026-11-24")([message], (), False)
    assert message == {"role": "user", "content": "Hi"}
