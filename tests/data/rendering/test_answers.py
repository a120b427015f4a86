"""Where an answer begins, what may be missing of it, and its thinking."""

from collections.abc import Sequence
from typing import Any

import pytest

from tunesmith.data.rendering import notes
from tunesmith.data.rendering.answers import behind, check_answer, check_prompt, thought_and_spoken, with_thinking
from tunesmith.data.rendering.template import CLOSE, OPEN, Habits
from tunesmith.data.sample import RowError


def habits(**found: Any) -> Habits:
    none = {"after": "", "asks": "", "tells": "", "held": "", "lead": "", "empty": "", "opened": False, "closed": False}
    values: dict[str, Any] = {"stop": "<end>", "nine": False, "thinking": "plain", "block": None} | none | found
    return Habits(**values)


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


CALL = {"type": "function", "function": {"name": "find", "arguments": {"q": 1}}}
TALK = (said("system", "Be short."), said("user", "Hi"), said("assistant", "So.", reasoning_content="hm"), said("user", "Why?"))
LAST = said("assistant", "Yes.")


def plain(messages: Sequence[dict[str, Any]], tools: Any, generation: bool) -> str:
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + ("<assistant>" if generation else "")


def test_an_answer_stands_behind_its_prompt():
    assert behind(plain, plain(TALK, (), True), (*TALK, LAST), (), habits()) == ("Yes.", "")


def test_what_the_generation_prompt_holds_and_the_template_does_not_write():
    prompt = plain(TALK, (), True) + "<think>"
    assert behind(plain, prompt, (*TALK, LAST), (), habits(held="<think>")) == ("Yes.", "<think>")


def test_history_that_is_written_otherwise_once_an_answer_follows():
    def forgetful(messages: Sequence[dict[str, Any]], tools: Any, generation: bool) -> str:
        """The system prompt goes when an answer is there, thinking too."""
        rest = [m for m in messages if generation or m["role"] != "system"]
        thoughts = "".join(m.get("reasoning_content", "") for m in messages[:-1]) if generation else ""
        return thoughts + plain([m | {"content": "[call]"} if "tool_calls" in m else m for m in rest], tools, generation)

    prompt = forgetful(TALK, (), True)
    assert prompt.startswith("hm<system>")
    for answer, body in ((LAST, "Yes."), (said("assistant", "", tool_calls=[CALL]), "[call]")):
        assert behind(forgetful, prompt, (*TALK, answer), (), habits()) == (body, "")


def test_words_are_the_last_resort_with_what_the_template_puts_before_them():
    def changing(messages: Sequence[dict[str, Any]], tools: Any, generation: bool) -> str:
        lead = "".join(f"<final>{m['content']}" for m in messages[-1:] if m["role"] == "assistant")
        thought = "".join(f"<thought>{m['reasoning_content']}</thought>" for m in messages[-1:] if "reasoning_content" in m)
        return f"{len(messages)}{generation}" + thought + lead + "<end>"

    prompt = changing(TALK, (), True)
    thinks = habits(block=("<thought>", "</thought><final>"), lead="<final>")
    assert behind(changing, prompt, (*TALK, LAST), (), habits()) == ("Yes.<end>", "")
    assert behind(changing, prompt, (*TALK, LAST), (), thinks) == ("<final>Yes.<end>", "")
    thoughtful = LAST | {"reasoning_content": "hm"}
    assert behind(changing, prompt, (*TALK, thoughtful), (), thinks) == ("<thought>hm</thought><final>Yes.<end>", "")
    for lost in (said("assistant", ""), said("assistant", "Yes.", tool_calls=[CALL])):
        with pytest.raises(RowError, match="writes other things in front of the answer"):
            behind(changing, prompt, (*TALK, lost), (), habits())


def test_a_history_that_the_template_refuses_is_passed_over():
    def strict(messages: Sequence[dict[str, Any]], tools: Any, generation: bool) -> str:
        if messages[0]["role"] != "system":
            raise RowError("a system prompt is needed")
        return f"{generation}" + plain(messages, tools, False)

    assert behind(strict, strict(TALK, (), True), (*TALK, LAST), (), habits()) == ("Yes.", "")


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (said("assistant", "Yes."), ("", "Yes.")),
        (said("assistant", "Yes.", reasoning_content="hm"), ("hm", "Yes.")),
        (said("assistant", "\n<think>\nhm\n\nwell\n</think>\n\nYes."), ("hm\n\nwell", "Yes.")),
        (said("assistant", "<think></think>Yes."), ("", "Yes.")),
        # a block that stands elsewhere, or does not end, is text
        (said("assistant", "Write <think>x</think>."), ("", "Write <think>x</think>.")),
        (said("assistant", "<think>hm"), ("", "<think>hm")),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, ("", "")),
    ],
)
def test_thinking_and_words_of_a_message(message, found):
    assert thought_and_spoken(message) == found


@pytest.mark.parametrize(
    ("found", "setting", "held", "thought", "body", "answer", "note"),
    [
        ({}, "keep", "", "", "Yes.", "Yes.", ""),
        # the template writes an empty block
        ({"empty": OPEN + CLOSE}, "keep", "", "", OPEN + CLOSE + "Yes.", OPEN + CLOSE + "Yes.", ""),
        ({"empty": OPEN + CLOSE}, "drop", "", "", OPEN + CLOSE + "Yes.", "Yes.", ""),
        ({"block": (OPEN, CLOSE)}, "empty", "", "", "Yes.", OPEN + CLOSE + "Yes.", ""),
        # the template cuts thinking out, and its generation prompt opens it
        ({"block": (OPEN, CLOSE), "opened": True}, "keep", OPEN, "hm", "Yes.", "hm" + CLOSE + "Yes.", ""),
        ({"block": (OPEN, CLOSE), "opened": True}, "keep", OPEN, "", "Yes.", CLOSE + "Yes.", notes.THINK_OPENED),
        ({"block": (OPEN, CLOSE), "opened": True}, "drop", OPEN, "", "Yes.", CLOSE + "Yes.", notes.THINK_OPENED),
        ({"block": (OPEN, CLOSE), "opened": True}, "keep", "\n", "", "</think>Yes.", "</think>Yes.", notes.THINK_OPENED),
        # the generation prompt closes it
        ({"block": (OPEN, CLOSE), "closed": True}, "keep", "", "hm", "Yes.", "Yes.", notes.THINK_CLOSED),
    ],
)
def test_the_answer_with_its_thinking(found, setting, held, thought, body, answer, note):
    assert with_thinking(body, held, thought, habits(**found), setting) == (answer, note)


def test_what_a_prompt_leaves_out():
    result = said("tool", '18 "°C"')
    assert check_prompt([said("user", " Hi "), result], [{"name": "find"}], 'find Hi 18 \\"°C\\"') == 0
    assert check_prompt([said("system", "Be short."), said("user", "Hi")], (), "Hi") == 1
    assert check_prompt([said("assistant", "thinking aside, yes")], (), "") == 0  # templates strip history
    for messages, tools, prompt, reason in (
        ([], [{"function": {"name": "find"}}], "", r"the tools \('find'\)"),
        ([said("assistant", "", tool_calls=[CALL])], (), "", r"earlier tool calls \('find'\)"),
        ([result], (), "18", "a tool's result"),
    ):
        with pytest.raises(RowError, match="leaves out " + reason):
            check_prompt(messages, tools, prompt)


def test_what_an_answer_leaves_out():
    assert not check_answer(said("assistant", " Yes. "), "Yes.<end>")
    assert not check_answer(said("assistant", "Look:", tool_calls=[CALL]), "Look: find")
    assert check_answer(said("assistant", "Look:", tool_calls=[CALL]), "find")
    for message, answer, reason in (
        (said("assistant", "Yes."), "yes", "leaves out or changes the answer's text"),
        (said("assistant", "", tool_calls=[CALL]), "", r"the assistant's tool calls \('find'\)"),
        (said("assistant", "", tool_calls=[CALL, CALL]), "find", r"some of the assistant's tool calls \('find'\)"),
        (said("assistant", "I find.", tool_calls=[CALL]), "I find.", r"the assistant's tool calls \('find'\)"),
        (said("assistant", "", tool_calls=[CALL], reasoning_content="I find."), "I find.", r"the assistant's tool calls \('find'\)"),
    ):
        with pytest.raises(RowError, match=reason):
            check_answer(message, answer)
    with pytest.raises(RowError, match="tool calls"):
        check_answer(said("assistant", "", tool_calls=[CALL]), "I find.", "I find.")
