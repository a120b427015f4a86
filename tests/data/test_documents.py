import dataclasses
import hashlib
import json

import numpy as np
import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data import documents as module
from tunesmith.data import pieces
from tunesmith.data.documents import Documents, Prepared
from tunesmith.data.notes import SPECIAL_TEXT
from tunesmith.data.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.errors import UserError


def chat(line: int, *contents: str) -> Sample:
    roles = ["user", "assistant"] * len(contents)
    return Sample(f"a.jsonl:{line}", tuple({"role": role, "content": content} for role, content in zip(roles, contents, strict=False)))


LONG = "word " * 200
ROWS = [
    chat(1, "Hi", "Yes."),
    chat(2, LONG, "Words."),
    chat(3, "Hi <|im_end|>", "Yes.", "Why?", "So."),
    Sample("b.txt:1", text=LONG),
    Sample("a.jsonl:4", ({"role": "system", "content": LONG}, *chat(4, "Hi", "Yes.").messages)),
]


def prepare(samples, renderer, *, on_bad_row="error", **how) -> tuple[Documents, dict]:
    """All documents and their `data.json`."""
    prepared: Prepared = module.prepare(samples, renderer, **how)
    prepared.refuse(on_bad_row, how["max_length"])
    documents = prepared.of_rows(np.arange(prepared.rows))
    return documents, prepared.report(np.arange(prepared.rows), documents)


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


def test_flat_arrays_hold_the_documents_and_the_fates_add_up(renderer):
    seen = []
    documents, report = prepare(ROWS, renderer, max_length=100, progress=lambda done, rows: seen.append((done, rows)))
    assert seen[-1] == (5, 5)
    assert {key: report[key] for key in ("rows", "kept", "cut", "split")} == {"rows": 5, "kept": 2, "cut": 1, "split": 1}
    [dropped] = report["dropped"]
    assert dropped["origin"] == "a.jsonl:4" and "system prompt" in dropped["reason"]
    assert report["cut_origins"] == ["a.jsonl:2"] and report["notes"] == {SPECIAL_TEXT: 1}

    assert len(documents) == report["documents"] == len(documents.origins) == len(documents.end_D)
    assert documents.begin_D[0] == 0 and documents.end_D[-1] == documents.tokens == report["tokens"] == documents.lengths_D.sum()
    assert (documents.ids_N.dtype, documents.learned_N.dtype, documents.end_D.dtype) == (np.uint32, np.bool_, np.int64)
    assert documents.learned_tokens == report["learned_tokens"] == documents.learned_N.sum()
    assert not documents.learned_N[documents.begin_D].any()  # a first token has nothing before it
    assert documents.lengths_D.max() == report["longest"] <= 100
    third = slice(documents.begin_D[2], documents.end_D[2])
    learned = documents.ids_N[third][documents.learned_N[third]]
    assert renderer.tokenizer.decode(learned.tolist()) == "Yes.<|im_end|>So.<|im_end|>"
    assert documents.origins[:3] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"] and set(documents.origins[3:]) == {"b.txt:1"}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_change_nothing(renderer, monkeypatch, batch):
    whole, report = prepare(ROWS, renderer, max_length=100)
    monkeypatch.setattr(module, "BATCH", batch)
    monkeypatch.setattr(pieces, "BATCH", batch + 1)
    documents, same = prepare(ROWS, renderer, max_length=100)
    assert same == report and documents.fingerprint == whole.fingerprint and documents.origins == whole.origins
    assert report["proof"] == {"documents": len(documents), "spans": 4, "approximate": 0} and report["answers_without_end"] == 0


def test_hashes_are_over_what_they_name(renderer):
    documents, report = prepare(ROWS, renderer, max_length=100)
    assert report["template_sha256"] == hashlib.sha256(TEMPLATES["qwen2.5"].encode()).hexdigest()
    assert report["mask_sha256"] == documents.fingerprint
    other = dataclasses.replace(documents, learned_N=~documents.learned_N)
    assert other.fingerprint != documents.fingerprint
    assert prepare(ROWS, Renderer(make_tokenizer("qwen2.5")), max_length=100)[0].fingerprint == documents.fingerprint


def test_the_second_start_reads_the_cache(renderer, tmp_path, monkeypatch):
    documents, report = prepare(ROWS, renderer, max_length=100, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob("*/*.json")] == ["report.json"]
    json.dumps(report)

    def never(*arguments):
        raise AssertionError("rendered again")

    monkeypatch.setattr(module, "_gather", never)
    again, same = prepare(ROWS, Renderer(make_tokenizer("qwen2.5")), max_length=100, cache=tmp_path / "cache")
    assert same == report and again.origins == documents.origins
    for name in ("ids_N", "learned_N", "begin_D", "end_D", "learned_D"):
        assert (
            np.array_equal(getattr(again, name), getattr(documents, name)) and getattr(again, name).dtype == getattr(documents, name).dtype
        )
    changed = [
        lambda: prepare(ROWS[:3], renderer, max_length=100, cache=tmp_path / "cache"),
        lambda: prepare(ROWS, renderer, max_length=99, cache=tmp_path / "cache"),
        lambda: prepare(ROWS, renderer, max_length=100, on_overlength="drop", cache=tmp_path / "cache"),
        lambda: prepare(ROWS, Renderer(make_tokenizer("qwen2.5"), thinking="drop"), max_length=100, cache=tmp_path / "cache"),
        lambda: prepare([chat(1, "Hi", "No."), *ROWS[1:]], renderer, max_length=100, cache=tmp_path / "cache"),
    ]
    for change in changed:
        with pytest.raises(AssertionError, match="rendered again"):
            change()


@pytest.mark.parametrize("name", ["report.json", "ids_N.uint32", "learned_N.bool", "row_D.int64", "fate_R.uint8"])
def test_a_broken_cache_is_made_anew(renderer, tmp_path, name):
    documents, report = prepare(ROWS, renderer, max_length=100, cache=tmp_path)
    [path] = tmp_path.glob(f"*/{name}")
    whole = path.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    for broken in (b"", whole[: len(whole) // 2], flipped):
        path.write_bytes(broken)
        again, same = prepare(ROWS, renderer, max_length=100, cache=tmp_path)
        assert again.fingerprint == documents.fingerprint and same["mask_sha256"] == report["mask_sha256"]
        assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_stops_nothing(renderer, tmp_path):
    (tmp_path / "file").write_text("")
    documents, _ = prepare(ROWS, renderer, max_length=100, cache=tmp_path / "file" / "cache")
    assert documents.tokens > 0


def test_rows_that_cannot_be_written_are_all_named(renderer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    bad = [
        Sample(f"a.jsonl:{n}", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}))
        for n in range(30)
    ]
    renderer = Renderer(make_tokenizer("smollm2"))
    with pytest.raises(UserError) as caught:
        prepare([*bad, chat(99, "Hi", "Yes.")], renderer, max_length=100)
    first, *rows = caught.value.problems
    assert first.startswith("30 rows cannot be written") and rows[0].strip().startswith("a.jsonl:0: ") and "10 more" in rows[-2]
    assert "data.on_bad_row=skip" in rows[-1]
    documents, report = prepare([*bad, chat(99, "Hi", "Yes.")], renderer, max_length=100, on_bad_row="skip")
    assert documents.origins == ["a.jsonl:99"] and len(report["dropped"]) == 30 and report["rows"] == 31
    assert "weather" in report["dropped"][0]["reason"]


@pytest.mark.parametrize("how", ["error", "split"])
def test_long_rows_are_refused_with_the_cure(renderer, how):
    with pytest.raises(UserError) as caught:
        prepare(ROWS, renderer, max_length=100, on_overlength=how)
    message = str(caught.value)
    assert "a.jsonl:2: " in message and "data.max_length 100" in message and "data.on_overlength" in message
    assert ("b.txt:1" in message) == (how == "error")


def test_nothing_left_is_an_error(renderer):
    with pytest.raises(UserError, match="no row is left"):
        prepare([ROWS[4]], renderer, max_length=100)
    with pytest.raises(UserError, match="no usable rows"):
        prepare([], renderer, max_length=100)
