"""What rows begin with in common, told without a tokenizer."""

import json

import pytest

from tunesmith.data.look import beginnings
from tunesmith.data.look.beginnings import Begun
from tunesmith.data.look.check import as_json, check
from tunesmith.data.sample import Sample

PROMPT = "You are a careful assistant of a shop that sells lamps. " * 4  # 224 characters


def chat(question, prompt=PROMPT, **more):
    head = ({"role": "system", "content": prompt},) if prompt else ()
    return Sample("a:1", (*head, {"role": "user", "content": question}, {"role": "assistant", "content": "yes"}), **more)


def begun(samples):
    found = Begun()
    for sample in samples:
        found.add(sample)
    return found


def test_a_system_prompt_in_every_row():
    found = begun(chat(f"{i} lamps?") for i in range(12))
    shared = "system: " + PROMPT + "\x1euser: "
    assert found.found() == [(12, shared)]
    assert found.said() == (
        f"12 rows begin with the same {len(shared)} characters (about 70 tokens, "
        "'system: You are a careful assistant of a shop that sells lam...'), which training computes once a step (data.share_prefixes)"
    )
    assert found.as_json() == [
        {"rows": 12, "characters": 239, "tokens_estimated": 70, "text": "system: You are a careful assistant of a shop that sells lam..."}
    ]


def test_two_prompts_and_rows_without_one():
    rows = [chat(f"{i} lamps?") for i in range(6)] + [chat(f"{i} chairs?", "Answer as a carpenter would do. " * 9) for i in range(9)]
    found = begun([*rows, chat("red or green?", "")])
    assert [rows for rows, _ in found.found()] == [9, 6] and "; 1 more beginning in --json" in found.said()


def test_tools_and_raw_texts_count():
    tools = [{"type": "function", "function": {"name": "price", "description": "What something costs. " * 9}}]
    [(rows, text)] = begun(chat(f"{i}?", "", tools=tools) for i in range(5)).found()
    assert rows == 5 and text.startswith('[{"type"')
    assert begun(Sample("a:1", text="A licence text that stands in every file of it. " * 3 + str(i)) for i in range(4)).found()[0][0] == 4


@pytest.mark.parametrize("prompt", ["", "Be brief."])
def test_short_beginnings_are_not_told(prompt):
    found = begun(chat(f"{i} lamps?", prompt) for i in range(12))
    assert found.found() == [] and found.said() == "" and found.as_json() == []
    assert begun([]).said() == ""


def test_of_many_rows_some_are_kept(monkeypatch):
    monkeypatch.setattr(beginnings, "KEPT", 10)
    found = begun(chat(f"{i} lamps?") for i in range(100))
    assert 10 <= len(found.texts) < 20
    assert [rows for rows, _ in found.found()] == [100] and found.said().startswith("about 100 rows")


def test_a_beginning_longer_than_what_is_kept(monkeypatch):
    monkeypatch.setattr(beginnings, "LONGEST", 120)
    found = begun(chat(f"{i} lamps?") for i in range(9))
    assert "the same 120 or more characters" in found.said()


def test_it_stands_in_the_report_of_a_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{PROMPT}{i} lamps?", "completion": "yes"} for i in range(10, 19)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [document] = json.loads(as_json(check([str(file)])))
    assert document["beginnings"][0]["rows"] == 9 and document["beginnings"][0]["text"].startswith("user: You are")
