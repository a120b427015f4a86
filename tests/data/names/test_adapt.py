import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.names import info
from tunesmith.data.names.resolve import resolve
from tunesmith.data.sample import FileReport, RowError, Sample
from tunesmith.data.sources import Reading, read_samples
from tunesmith.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "llamafactory.json").read_text(encoding="utf-8"))
DEMO = Path(__file__).resolve().parents[4] / "shared" / "data" / "llamafactory_demo"


def adapt(tmp_path, entry):
    book = info.Book(tmp_path / "dataset_info.json", {"mine": {"file_name": "x.json"} | entry})
    return info.entry(book, "mine").adapt


ALPACA = {"columns": {"prompt": "ask", "query": "context", "response": "reply", "system": "sys", "history": "past"}}
CHAT = {"formatting": "sharegpt"}
TAGGED = {
    "formatting": "sharegpt",
    "columns": {"messages": "turns", "system": "sys", "tools": "tools"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "A", "observation_tag": "O", "function_tag": "F"},
}


def test_alpaca(tmp_path):
    row = {"ask": "Add", "context": "1 2", "reply": "3", "sys": "Be brief.", "past": [["a", "b"]], "id": 7}
    expected = {"instruction": "Add", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["a", "b"]]}
    assert adapt(tmp_path, ALPACA)(row) == expected
    assert adapt(tmp_path, ALPACA)({"ask": None, "context": "Only this?", "reply": "Yes"}) == {"instruction": "Only this?", "output": "Yes"}
    assert adapt(tmp_path, {})({"instruction": "Hi", "input": "", "output": "Hello"}) == {"instruction": "Hi", "output": "Hello"}


def test_alpaca_with_tools_is_a_conversation(tmp_path):
    adapter = adapt(tmp_path, {"columns": {"prompt": "q", "response": "a", "tools": "t", "history": "h"}})
    assert adapter({"q": "Weather?", "a": "Sunny", "t": '[{"name": "w"}]', "h": [["Hi", "Hello"]]}) == {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Weather?"},
            {"from": "gpt", "value": "Sunny"},
        ],
        "tools": '[{"name": "w"}]',
    }
    assert adapter({"q": "Weather?", "a": "Sunny", "t": "", "h": None}) == {"instruction": "Weather?", "output": "Sunny"}


def test_only_a_prompt_is_raw_text(tmp_path):
    assert adapt(tmp_path, {"columns": {"prompt": "body"}})({"body": "Once upon", "url": "x"}) == {"text": "Once upon"}


def test_pairs(tmp_path):
    named = {"prompt": "q", "query": "more", "chosen": "yes", "rejected": "no", "history": "h"}
    adapter = adapt(tmp_path, {"ranking": True, "columns": named})
    assert adapter({"q": "Q", "more": "M", "yes": "1", "no": "2"}) == {"prompt": "Q\nM", "chosen": "1", "rejected": "2"}
    found = adapter({"q": "Q", "more": "", "yes": "1", "no": "2", "h": [["a", "b"]]})
    assert [turn["value"] for turn in found["conversations"]] == ["a", "b", "Q"] and found["rejected"] == {"from": "gpt", "value": "2"}
    chats = adapt(tmp_path, {"ranking": True, "formatting": "sharegpt"})
    turns = [{"from": "human", "value": "Q"}]
    pair = {"chosen": {"from": "gpt", "value": "1"}, "rejected": {"from": "gpt", "value": "2"}}
    assert chats({"conversations": turns} | pair) == {"conversations": turns} | pair
    assert chats({"conversations": turns, "chosen": "1", "rejected": [{"from": "gpt", "value": "2"}]}) == {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "1"},
        "rejected": [{"from": "gpt", "value": "2"}],
    }
    with pytest.raises(RowError, match="'rejected' is absent: the pair lacks its rejected side"):
        chats({"conversations": turns, "chosen": "1"})
    with pytest.raises(RowError, match="'no' is null: there is nothing to learn"):
        adapter({"q": "Q", "yes": "1", "no": None})


def test_answers_judged_one_by_one(tmp_path):
    adapter = adapt(tmp_path, {"columns": {"prompt": "q", "response": "a", "kto_tag": "good"}})
    assert adapter({"q": "Q", "a": "A", "good": False}) == {"prompt": "Q", "completion": "A", "label": False}
    assert adapter({"q": "Q", "a": "A", "good": "TRUE"})["label"] is True
    with pytest.raises(RowError, match="'good' is the text 'maybe'; whether an answer is good is true or false"):
        adapter({"q": "Q", "a": "A", "good": "maybe"})
    chat = adapt(tmp_path, {"formatting": "sharegpt", "columns": {"messages": "m", "kto_tag": "ok"}})
    assert chat({"m": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "ok": True})["label"] is True


def test_tags_become_the_usual_names(tmp_path):
    said = [("system", "S"), ("U", "q"), ("F", '{"name": "f", "arguments": {}}'), ("O", "r"), ("A", "a")]
    row = {"turns": [{"who": who, "says": says} for who, says in said], "sys": "S", "tools": '[{"name": "f"}]'}
    found = adapt(tmp_path, TAGGED)(row)
    assert [turn["from"] for turn in found["conversations"]] == ["system", "human", "function_call", "observation", "gpt"]
    assert found["tools"] == '[{"name": "f"}]' and "system" not in found  # the same system prompt is not said twice
    with pytest.raises(RowError, match="message 1 is from 'human'; the entry 'mine' knows U, A, O, F, system: add it to its tags"):
        adapt(tmp_path, TAGGED)({"turns": [{"who": "human", "says": "q"}]})
    with pytest.raises(RowError, match=r"message 1 has from, value; .*reads the role from 'who' and the text from 'says'"):
        adapt(tmp_path, TAGGED)({"turns": [{"from": "U", "value": "q"}]})


def test_roles_that_no_tag_names(tmp_path):
    turns = [{"from": who, "value": "x"} for who in ("system", "Human", "assistant", "user", "chatgpt", "tool")]
    found = adapt(tmp_path, CHAT)({"conversations": turns})
    assert [turn["from"] for turn in found["conversations"]] == ["system", "human", "gpt", "human", "gpt", "observation"]


def test_openai_messages_keep_what_only_they_have(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "content": "r", "tool_call_id": "1"},
            {"role": "assistant", "content": "a"},
        ]
    }
    assert adapt(tmp_path, {"formatting": "openai"})(row) == row
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    assert adapt(tmp_path, entry)(row) == row  # a ShareGPT turn has no place for calls
    said = {"messages": [{"role": "user", "content": "q"}, {"role": "function_call", "content": '{"name": "f", "arguments": {}}'}]}
    found = adapt(tmp_path, {"formatting": "openai"})(said)["messages"][1]
    assert found == {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}


def test_rows_with_pictures_are_refused_by_name(tmp_path):
    adapter = adapt(tmp_path, {"formatting": "sharegpt", "columns": {"messages": "m", "images": "pics", "audios": "sounds"}})
    with pytest.raises(RowError, match="'pics' names images: only text is learned"):
        adapter({"m": [{"from": "human", "value": "<image>?"}], "pics": ["a.png"], "sounds": []})
    assert adapter({"m": [{"from": "human", "value": "q"}], "pics": []})


def test_a_row_that_does_not_fit_names_the_entry_s_column(tmp_path):
    with pytest.raises(RowError, match=r"no 'reply' \(the row has ask, answer\); the entry 'mine' takes its response from there"):
        adapt(tmp_path, ALPACA)({"ask": "Q", "answer": "A"})
    with pytest.raises(RowError, match="'reply' is empty: there is nothing to learn"):
        adapt(tmp_path, ALPACA)({"ask": "Q", "reply": " "})
    with pytest.raises(RowError, match="'conversations' is a list of turns: say formatting sharegpt"):
        adapt(tmp_path, {})({"conversations": [{}]})
    with pytest.raises(RowError, match="'ask' is the number 3, not a text"):
        adapt(tmp_path, ALPACA)({"ask": 3, "reply": "A"})


def test_it_goes_to_other_processes(tmp_path):
    adapter = adapt(tmp_path, TAGGED)
    assert pickle.loads(pickle.dumps(adapter)) == adapter


# --- against LLaMA-Factory's own converter: golden/make.py ---

THEIR_ROLES = {"user": "user", "assistant": "assistant", "tool": "observation", "system": "system"}


def read(source: str, book: str) -> tuple[list[Sample], list[FileReport]]:
    """The samples of a name in a book, and the reports on its files."""
    samples: list[Sample] = []
    reports: list[FileReport] = []
    for file in resolve(source, book).files:
        reports.append(FileReport(file.name))
        samples += read_samples(file, Reading(adapt=file.adapt, documents=file.documents), reports[-1])
    return samples, reports


def as_theirs(message: dict[str, Any]) -> tuple[str, Any]:
    """Role and text as LLaMA-Factory has them, where calls are a role of their own with JSON for a text."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return ("function", calls) if calls else (THEIR_ROLES[message["role"]], message["content"])


def theirs(message: dict[str, Any]) -> tuple[str, Any]:
    if message["role"] != "function":
        return message["role"], message["content"]
    calls = json.loads(message["content"])
    calls = calls if isinstance(calls, list) else [calls]
    arguments = [call["arguments"] for call in calls]
    parsed = [json.loads(each) if isinstance(each, str) else each for each in arguments]
    return "function", [{"name": call["name"], "arguments": each} for call, each in zip(calls, parsed, strict=True)]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_the_same_as_llamafactory_s_own_converter(case, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(case["row"]) + "\n")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.jsonl"} | case["entry"]}))
    samples, (report,) = read("mine", str(tmp_path))
    prompt, response = case["theirs"]["prompt"], case["theirs"]["response"]
    if not prompt:  # a row that they leave out with a line in their log is a bad row with its line here
        assert not samples and [bad.line for bad in report.bad] == [1]
        return
    (sample,) = samples
    if not response:  # theirs for pretraining: here raw text
        assert sample.text == prompt[0]["content"] and not sample.messages
        return
    # On purpose: they put "detailed thinking off" behind every OpenAI row's system prompt; here a row's system prompt stays as it is.
    system = (case["theirs"]["system"] or "").removesuffix("detailed thinking off").strip()
    found = [as_theirs(message) for message in sample.messages]
    expected = ([("system", system)] if system else []) + [theirs(message) for message in prompt]
    judged = "kto_tag" in case["entry"].get("columns", {})
    if judged:  # theirs: the answer on the side of the good or of the bad ones, the other side empty
        assert sample.desirable is bool(response[0]["content"])
        response = [message for message in response if message["content"]]
    if case["entry"].get("ranking"):
        assert [as_theirs(message) for message in sample.rejected] == [theirs(response.pop())]
    assert found == expected + [theirs(message) for message in response]
    tools = case["theirs"]["tools"] and [tool.get("function", tool) for tool in json.loads(case["theirs"]["tools"])]
    assert [tool["function"] for tool in sample.tools] == (tools or [])


DEMO_ROWS = {
    "identity": (91, 91, "alpaca"),
    "alpaca_en_demo": (999, 999, "alpaca"),
    "alpaca_zh_demo": (1000, 1000, "alpaca"),
    "glaive_toolcall_en_demo": (300, 300, "sharegpt"),
    "glaive_toolcall_zh_demo": (300, 298, "sharegpt"),  # two rows in which a tool answers that nobody called
    "dpo_en_demo": (299, 299, "preference"),
    "dpo_zh_demo": (300, 300, "preference"),
    "kto_en_demo": (300, 300, "preference"),
    "wiki_demo": (30, 30, "text"),  # a text file of which each line is a document, as for LLaMA-Factory
    "c4_demo": (300, 300, "text"),
}


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo data of LLaMA-Factory is not there")
@pytest.mark.parametrize("name", DEMO_ROWS)
def test_llamafactory_s_demo_data_by_name(name):
    samples, (report,) = read(name, str(DEMO))
    assert (report.rows, len(samples), report.format) == DEMO_ROWS[name]


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo data of LLaMA-Factory is not there")
def test_every_entry_of_llamafactory_s_own_file_is_understood():
    book = info.load(str(DEMO))
    assert book is not None
    entries = [info.entry(book, name) for name in book.entries]
    local = {entry.name for entry in entries if entry.kind == "file" and (DEMO / entry.place).exists()}
    assert (len(entries), local) == (104, set(DEMO_ROWS))


def test_pictures_make_every_row_unusable_by_name(tmp_path):
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat"}]
    rows = [{"messages": turns, "images": ["cat.jpg"]}] * 2
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": tags}
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mllm": entry}))
    samples, (report,) = read("mllm", str(tmp_path))
    assert not samples and [(bad.line, bad.reason.partition(":")[0]) for bad in report.bad] == [
        (2, "'images' names images"),
        (17, "'images' names images"),
    ]


# --- whatever stands in a row or an entry ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", " ", "x", "human", "gpt", "true", "[]", '[{"from": 1}]', "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "tool_calls"]), inner),
    max_leaves=6,
)
NAMES = ["instruction", "input", "output", "history", "conversations", "messages", "system", "tools", "chosen", "rejected", "label"]
ENTRIES: list[dict[str, Any]] = [
    {},
    {"ranking": True},
    {"columns": {"prompt": "instruction", "history": "history", "response": "output", "kto_tag": "label", "tools": "tools"}},
    {"columns": {"prompt": "instruction"}},
    {"formatting": "sharegpt"},
    {"formatting": "sharegpt", "ranking": True},
    {"formatting": "openai", "ranking": True},
    {"formatting": "openai", "columns": {"messages": "messages", "kto_tag": "label", "images": "input"}},
]


@given(st.sampled_from(ENTRIES), st.dictionaries(st.sampled_from(NAMES), JSON))
@settings(derandomize=True, deadline=None, max_examples=400)
def test_a_row_is_adapted_or_refused_with_a_reason(raw: dict[str, Any], row: dict[str, Any]) -> None:
    adapter = info.entry(info.Book(Path("dataset_info.json"), {"mine": {"file_name": "x.json"} | raw}), "mine").adapt
    try:
        assert adapter(row)
    except RowError as error:
        assert str(error)


@given(st.dictionaries(st.sampled_from([*info.KEYS, "more"]), JSON | st.just({"prompt": "q"}) | st.just({"user_tag": "u"})))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_an_entry_is_understood_or_refused_with_a_reason(raw: dict[str, Any]) -> None:
    try:
        assert info.entry(info.Book(Path("dataset_info.json"), {"mine": raw}), "mine").place
    except UserError as error:
        assert all(error.problems)
