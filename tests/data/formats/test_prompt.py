import pytest

from tunesmith.data.formats.prompt import recognises, to_sample
from tunesmith.data.sample import RowError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_texts_become_two_messages():
    assert to_sample({"prompt": "q", "completion": "a"}, "f:1").messages == (user("q"), assistant("a"))
    assert to_sample({"prompt": "q", "completion": "a", "system": "s"}, "f:1").messages[0] == {"role": "system", "content": "s"}


def test_lists_are_joined_and_only_the_completion_is_learned():
    values = {"prompt": [user("q"), assistant("a"), user("r")], "completion": [assistant("b")]}
    assert to_sample(values, "f:1").messages == (user("q"), assistant("a") | {"learn": False}, user("r"), assistant("b"))


def test_turns_of_sharegpt_and_a_single_message():
    values = {"prompt": [{"from": "human", "value": "q"}], "completion": {"from": "gpt", "value": "a"}}
    assert to_sample(values, "f:1").messages == (user("q"), assistant("a"))
    assert to_sample(values | {"completion": assistant("a")}, "f:1").messages == (user("q"), assistant("a"))


def test_tools_are_kept():
    assert to_sample({"prompt": "q", "completion": "a", "tools": '[{"name": "f"}]'}, "f:1").tools == (
        {"type": "function", "function": {"name": "f"}},
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "q"}, "no 'completion'"),
        ({"prompt": "q", "completion": ""}, "'completion' is empty: there is nothing to learn"),
        ({"prompt": "", "completion": "a"}, "'prompt' is empty"),
        ({"prompt": "q", "completion": 3}, "the number 3, not a text"),
        ({"prompt": "q", "completion": [assistant("a")]}, "'prompt' is the text 'q', but the other side is a list"),
        ({"prompt": [], "completion": [assistant("a")]}, "'prompt' is an empty list"),
        ({"prompt": [user("q")], "completion": [user("a")]}, "holds no assistant message"),
        ({"prompt": [user("q")], "completion": [assistant("")]}, "completion message 1: .*empty"),
        (
            {"prompt": [{"role": "system", "content": "s"}, user("q")], "completion": [assistant("a")], "system": "t"},
            "both in 'system' and in 'prompt'",
        ),
        ({"prompt": "q", "completion": "a", "label": False}, "KTO"),
    ],
)
def test_reasons(values, words):
    with pytest.raises(RowError, match=words):
        to_sample(values, "f:1")


def test_recognises():
    assert recognises({"prompt", "completion", "id"}, {})
    assert not recognises({"prompt", "chosen", "rejected"}, {})
    assert not recognises({"prompt", "completion", "label"}, {"label": False})
    assert recognises({"prompt", "completion", "label"}, {"label": "greeting"})
