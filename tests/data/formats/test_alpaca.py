import pytest

from tunesmith.data.formats.alpaca import recognises, to_sample
from tunesmith.data.sample import RowError

ROW = {"instruction": "Translate.", "input": "Good morning", "output": "Bonjour"}


def turns(**changes):
    return [(message["role"], message["content"]) for message in to_sample(ROW | changes, "a:1").messages]


def test_input_stands_under_the_instruction():
    assert turns() == [("user", "Translate.\nGood morning"), ("assistant", "Bonjour")]


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_no_input_no_line(blank):
    assert turns(input=blank, system=blank, history=None)[0] == ("user", "Translate.")
    assert to_sample({"instruction": "Say hi", "output": "hi"}, "a:1").messages[0]["content"] == "Say hi"


@pytest.mark.parametrize("history", [[["Hello", "Salut"], ["Bye", "Ciao"]], '[["Hello", "Salut"], ["Bye", "Ciao"]]'])
def test_system_and_history_come_first_and_history_is_learned(history):
    sample = to_sample(ROW | {"system": "Be French.", "history": history}, "a:1")
    assert [message["content"] for message in sample.messages] == [
        "Be French.",
        "Hello",
        "Salut",
        "Bye",
        "Ciao",
        "Translate.\nGood morning",
        "Bonjour",
    ]
    assert not any("learn" in message for message in sample.messages)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": ""}, "'output' is empty"),
        ({"output": " \n\t"}, "'output' is blank"),
        ({"output": 42}, "'output' is the number 42, not a text"),
        ({"output": ["x"]}, "a list of 1"),
        ({"instruction": None}, "'instruction' is null"),
        ({"instruction": ""}, "'instruction' is empty"),
        ({"input": 3}, "'input' is the number 3"),
        ({"history": [["only one"]]}, "history turn 1"),
        ({"history": [["a", "b"], ["c", ""]]}, "history turn 2 is blank on the assistant's side"),
        ({"history": "not a list"}, "'history' is a text that is no JSON list"),
    ],
)
def test_reasons(changes, words):
    with pytest.raises(RowError, match=words):
        to_sample(ROW | changes, "a:1")


def test_recognises():
    assert recognises(set(ROW), ROW)
    assert not recognises({"instruction", "input"}, {})
    assert not recognises({"instruction", "output", "chosen", "rejected"}, {})
    assert not recognises({"instruction", "output", "label"}, {"label": True})
