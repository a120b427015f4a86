import json
from typing import Any

import pytest

from tests.shared import SHARED, needs, read
from tunesmith.data.formats.preference import recognises, to_sample
from tunesmith.data.sample import RowError

HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
WORSE = {"role": "assistant", "content": "b"}

PAIRS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"question": "q", "chosen": "a", "rejected": "b"},
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}},
    {"messages": [USER], "chosen": ASSISTANT, "rejected": WORSE},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WORSE]},
    {"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},  # whole conversations
    {"chosen": [HUMAN, GPT], "rejected": [HUMAN, {"from": "gpt", "value": "b"}]},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"chosen_messages": [USER, ASSISTANT], "rejected_messages": [USER, WORSE]},
]


@pytest.mark.parametrize("values", PAIRS)
def test_every_spelling_means_the_same(values):
    assert recognises(set(values), values)
    sample = to_sample(values, "f:1")
    assert (sample.messages, sample.rejected, sample.desirable) == ((USER, ASSISTANT), (WORSE,), None)


def test_what_stands_before_is_fed_to_both():
    history = {"instruction": "q", "chosen": "a", "rejected": "b", "system": "s", "history": [["h", "i"]]}
    before = ({"role": "system", "content": "s"}, {"role": "user", "content": "h"}, {"role": "assistant", "content": "i", "learn": False})
    assert to_sample(history, "f:1").messages == (*before, USER, ASSISTANT)
    whole = [{"role": "system", "content": "s"}, {"role": "user", "content": "h"}, {"role": "assistant", "content": "i"}, USER]
    for shared, more in [(whole, {}), (whole[1:], {"system": "s"})]:
        sample = to_sample({"chosen": [*shared, ASSISTANT], "rejected": [*shared, WORSE]} | more, "f:1")
        assert (sample.messages, sample.rejected) == ((*before, USER, ASSISTANT), (WORSE,))


def test_answers_that_begin_alike_part_at_the_answer():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    seen = {"role": "tool", "content": "1"}
    sample = to_sample({"chosen": [USER, call, seen, ASSISTANT], "rejected": [USER, call, seen, WORSE], "tools": '[{"name": "f"}]'}, "f:1")
    assert [message["role"] for message in sample.messages] == ["user", "assistant", "tool", "assistant"]
    assert sample.rejected == (WORSE,)
    assert len(sample.tools) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [HUMAN, GPT]},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
    ],
)
@pytest.mark.parametrize(("judged", "good"), [({"label": True}, True), ({"kto_tag": False}, False), ({"label": "False"}, False)])
def test_answers_judged_one_by_one(values, judged, good):
    row = values | judged
    assert recognises(set(row), row)
    assert (to_sample(row, "f:1").messages, to_sample(row, "f:1").desirable) == ((USER, ASSISTANT), good)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, "'chosen' and 'rejected' are the same answer"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "are the same conversation"),
        ({"prompt": "q", "chosen": "a"}, r"no 'rejected' \(the row has prompt, chosen\)"),
        ({"prompt": "q", "rejected": "a"}, "no 'chosen'"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "'rejected' is blank"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "'chosen' is null"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "'chosen' is empty"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "'chosen' is the number 3"),
        ({"conversations": [HUMAN], "chosen": GPT | {"value": ""}, "rejected": GPT}, "chosen turn 1: the assistant's answer is empty"),
        ({"conversations": [HUMAN], "chosen": "a", "rejected": "b"}, "'chosen' is the text 'a', but the question is a list of turns"),
        ({"chosen": "a", "rejected": "b"}, "no question: there is none of conversations, messages, prompt"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER | {"content": "r"}, WORSE]}, "do not begin alike"),
        ({"prompt": [USER], "chosen": [{"role": "tool", "content": "x"}], "rejected": [WORSE]}, "'chosen' holds no assistant message"),
        ({"prompt": [ASSISTANT], "chosen": [ASSISTANT], "rejected": [WORSE]}, "with the chosen answer: the conversation begins"),
        ({"text": "t", "label": True}, "no answer that 'label' could judge"),
        ({"prompt": "q", "label": "x"}, "no 'chosen' and 'rejected', and no 'label' that is true or false"),
    ],
)
def test_reasons(values, words):
    with pytest.raises(RowError, match=words):
        to_sample(values, "f:1")


def test_recognises():
    values: dict[str, Any]
    for values in ({"prompt": "q", "chosen": "a"}, {"chosen": 1, "rejected": 2}):
        assert recognises(set(values), values)
    for values in (
        {"text": "t", "label": True},
        {"text": "t", "chosen": True},
        {"prompt": "q", "completion": "a", "label": "greeting"},
        {"prompt": "q", "completion": "a", "rejected": "b"},  # what is left where the chosen answer was named the completion
        {"messages": [USER, ASSISTANT]},
    ):
        assert not recognises(set(values), values)


@needs("llamafactory_demo")
@pytest.mark.parametrize(("file", "good"), [("dpo_en_demo", 299), ("dpo_zh_demo", 300), ("kto_en_demo", 300)])
def test_real_files(file, good):
    samples, report = read(f"llamafactory_demo/{file}.json")
    assert (report.format, report.good, report.bad) == ("preference", good, [])
    rows = json.loads((SHARED / f"llamafactory_demo/{file}.json").read_text(encoding="utf-8"))
    if "label" in rows[0]:
        assert [sample.desirable for sample in samples] == [row["label"] for row in rows]
        return
    answers = [(sample.messages[-1]["content"], sample.rejected[-1]["content"]) for sample in samples]
    assert answers == [(row["chosen"]["value"], row["rejected"]["value"]) for row in rows]


@needs("dirty")
def test_a_real_file_of_broken_pairs():
    samples, report = read("dirty/preference_broken.json")
    rows = json.loads((SHARED / "dirty/preference_broken.json").read_text(encoding="utf-8"))
    kept = [row["chosen"]["value"] for number, row in enumerate(rows, start=1) if number not in (3, 6, 9, 12)]
    assert [sample.messages[-1]["content"] for sample in samples] == kept
    assert [row.reason[:24] for row in report.bad] == [
        "'chosen' and 'rejected' ",
        "no 'rejected' (the row h",
        "chosen turn 1: the assis",
        "'chosen' is the text 'Ba",
    ]
