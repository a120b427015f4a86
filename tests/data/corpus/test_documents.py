import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.corpus import documents as module
from tunesmith.data.corpus import pieces, store
from tunesmith.data.corpus.batches import make_row
from tunesmith.data.corpus.blocks import open_sources
from tunesmith.data.corpus.documents import Documents, Prepared
from tunesmith.data.formats import conll
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.notes import SPECIAL_TEXT
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.data.sources import understand
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


# --- files ---

ARRAYS = ("ids_N", "learned_N", "begin_D", "end_D", "learned_D", "file_D", "line_D")


def write_files(folder: Path) -> Path:
    """Rows of all fates in lines, a table and an array of JSON, and a bad one in each."""
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"Question {n}" + " more" * (n % 70), "completion": f"Answer {n} <|im_end|>"[: 12 + n % 9]} for n in range(120)]
    system = [{"role": "system", "content": LONG}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    lines = [json.dumps(row) for row in [*rows, {"messages": system}, {"prompt": "no answer"}]]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.csv").write_text("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows) + "alone,\n")
    (folder / "c.json").write_text(json.dumps([*rows, 7], indent=2))
    return folder


def from_files(renderer: Renderer, *names: Path | str, **how: Any) -> Prepared:
    sources = open_sources([str(name) for name in names], understand())
    return module.prepare(sources, renderer, **({"max_length": 60} | how))


def same_arrays(one: Prepared, other: Prepared) -> bool:
    pairs = [(getattr(one.documents, name), getattr(other.documents, name)) for name in ARRAYS]
    pairs += [(getattr(one, name), getattr(other, name)) for name in ("row_D", "unended_D", "file_R", "line_R", "fate_R")]
    return all(mine.dtype == theirs.dtype and np.array_equal(mine, theirs) for mine, theirs in pairs)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("files") / "data")


@pytest.mark.parametrize(("workers", "block"), [(0, 700), (1, 1 << 20), (2, 1000)])
def test_processes_and_blocks_change_nothing(renderer, files, monkeypatch, tmp_path, workers, block):
    whole = from_files(renderer, files)
    monkeypatch.setattr("tunesmith.data.corpus.blocks.BLOCK", block)
    seen: list[tuple[int, int]] = []
    again = from_files(renderer, files, workers=workers, cache=tmp_path / "cache", progress=lambda *done: seen.append(done))
    assert same_arrays(again, whole) and again.documents.fingerprint == whole.documents.fingerprint
    assert again.facts == whole.facts and again.reports == whole.reports
    assert seen == sorted(seen) and {of for _, of in seen} == {sum(path.stat().st_size for path in files.iterdir())}
    assert (len(seen) > 10) == (block < 10_000)
    kept = from_files(renderer, files, cache=tmp_path / "cache")
    assert same_arrays(kept, whole) and kept.facts == json.loads(json.dumps(whole.facts)) and kept.reports == whole.reports


def test_every_row_of_every_file_is_accounted_for(renderer, files):
    prepared = from_files(renderer, files)
    assert [(report.rows, report.good, len(report.bad)) for report in prepared.reports] == [(122, 121, 1), (121, 120, 1), (121, 120, 1)]
    rows = np.arange(prepared.rows)
    report = prepared.report(rows, prepared.of_rows(rows))
    assert report["rows"] == 364 == report["kept"] + report["cut"] + report["split"] + len(report["dropped"])
    assert [row["origin"].rpartition("/")[2] for row in report["dropped"]] == ["a.jsonl:122", "b.csv:122", "c.json:482", "a.jsonl:121"]
    assert report["cut"] == len(report["cut_origins"]) > 50
    assert [file["file"] for file in report["files"]] == ["a.jsonl", "b.csv", "c.json"]
    with pytest.raises(UserError) as caught:
        prepared.refuse("error", 60)
    assert len(caught.value.problems) == 4 and "3 bad rows of 364" in caught.value.problems[-1]
    prepared.refuse("skip", 60)


def test_what_is_kept_is_found_by_content_and_settings_alone(renderer, tmp_path, monkeypatch):
    folder, cache = write_files(tmp_path / "data"), tmp_path / "cache"
    from_files(renderer, folder, cache=cache)

    def never(*arguments):
        raise AssertionError("tokenised again")

    gather = module._gather
    monkeypatch.setattr(module, "_gather", never)
    os.utime(folder / "a.jsonl")  # touched, not changed
    from_files(Renderer(make_tokenizer("qwen2.5")), folder, cache=cache, workers=2)
    for other in (
        lambda: from_files(renderer, f"{folder}#5", cache=cache),
        lambda: from_files(renderer, folder / "a.jsonl", cache=cache),
        lambda: from_files(renderer, folder, cache=cache, max_length=61),
        lambda: from_files(renderer, folder, cache=cache, on_overlength="drop"),
        lambda: from_files(Renderer(make_tokenizer("qwen3")), folder, cache=cache),
    ):
        with pytest.raises(AssertionError, match="tokenised again"):
            other()
    monkeypatch.setattr(module.store, "code", lambda: "another")  # which may read rows in another way
    with pytest.raises(AssertionError, match="tokenised again"):
        from_files(renderer, folder, cache=cache)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_gather", gather)
    content = (folder / "a.jsonl").read_bytes()
    (folder / "a.jsonl").write_bytes(content.replace(b"Question 7", b"Question 8"))
    changed = from_files(renderer, folder, cache=cache)
    (folder / "a.jsonl").write_bytes(content)
    assert changed.documents.fingerprint != from_files(renderer, folder, cache=cache).documents.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_data_named_by_data_info_is_kept_too(renderer, tmp_path, monkeypatch):
    write_files(tmp_path)
    book = tmp_path / "dataset_info.json"
    book.write_text(json.dumps({"mine": {"file_name": "b.csv", "columns": {"prompt": "prompt", "response": "completion"}}}))

    def start() -> Prepared:
        return module.prepare(open_sources(["mine"], understand(), str(book)), renderer, max_length=60, cache=tmp_path / "cache", workers=1)

    first = start()
    monkeypatch.setattr(module, "_gather", None)
    assert same_arrays(start(), first) and first.rows == 120


def test_a_file_that_changes_meanwhile_is_named_and_nothing_is_kept(renderer, tmp_path, monkeypatch):
    folder = write_files(tmp_path / "data")
    gather = module._gather

    def slowly(*arguments):
        with open(folder / "a.jsonl", "a") as file:
            file.write('\n{"prompt": "late", "completion": "row"}')
        return gather(*arguments)

    monkeypatch.setattr(module, "_gather", slowly)
    with pytest.raises(UserError, match=r"a\.jsonl: changed or vanished while it was read"):
        from_files(renderer, folder, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("workers", "stop"), [(0, RuntimeError), (0, KeyboardInterrupt), (2, KeyboardInterrupt)])
def test_what_is_interrupted_leaves_nothing_behind(renderer, files, tmp_path, monkeypatch, workers, stop):
    monkeypatch.setattr("tunesmith.data.corpus.blocks.BLOCK", 2000)

    def progress(done, of):
        raise stop

    with pytest.raises(stop):
        from_files(renderer, files, cache=tmp_path, workers=workers, progress=progress)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_becomes_full_changes_nothing(renderer, files, tmp_path, monkeypatch):
    whole = from_files(renderer, files)
    monkeypatch.setattr("tunesmith.data.corpus.blocks.BLOCK", 700)
    write, calls = store._write, []

    def full(file, content):
        calls.append(file)
        if len(calls) > 40:
            write(file, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(store, "_write", full)
    again = from_files(renderer, files, cache=tmp_path)
    assert len(calls) == 41 and same_arrays(again, whole) and again.facts == whole.facts
    assert not list(tmp_path.iterdir())


def test_two_processes_may_prepare_the_same_at_once(renderer, files, tmp_path):
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(from_files, Renderer(make_tokenizer("qwen2.5")), files, cache=tmp_path) for _ in range(2)]
        one, other = (future.result() for future in futures)
    assert same_arrays(one, other) and same_arrays(one, from_files(renderer, files, cache=tmp_path))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_tokens_make_room_for_new_ones(renderer, files, tmp_path, monkeypatch):
    from_files(renderer, files, cache=tmp_path)
    [old] = tmp_path.iterdir()
    os.utime(old, (1, 1))
    monkeypatch.setattr(store.trim, "__defaults__", (1000,))
    from_files(renderer, files, cache=tmp_path, max_length=61)
    assert old not in tmp_path.iterdir() and len(list(tmp_path.iterdir())) == 1


def write_large(path: Path) -> Path:
    """60 MB of rows, most of it in a column that is not learned."""
    note = "a note that nobody learns, " * 740
    with open(path, "w") as file:
        for number in range(3000):
            if path.suffix == ".csv":
                file.write(f"Question {number},Yes.,{number}{note.replace(',', ';')}\n" if number else "prompt,completion,note\n")
            else:
                row = json.dumps({"prompt": f"Question {number}", "completion": "Yes.", "note": f"{number}{note}"})
                file.write(row + "\n" if path.suffix == ".jsonl" else (",\n" if number else "[") + row)
        file.write("]" if path.suffix == ".json" else "")
    return path


def test_memory_does_not_grow_with_the_file(tmp_path):
    """In memory stand a few blocks and a little for each row."""
    paths = [write_large(tmp_path / f"large.{suffix}") for suffix in ("jsonl", "json", "csv")]
    script = textwrap.dedent("""
        import sys, threading, time
        import psutil
        from tests.data.corpus.test_documents import from_files, make_tokenizer, Renderer
        renderer = Renderer(make_tokenizer("qwen2.5"))
        from_files(renderer, "builtin:tickets")
        own, highest = psutil.Process(), 0
        before = own.memory_full_info().uss

        def watch():
            global highest
            while True:
                highest = max(highest, own.memory_full_info().uss)
                time.sleep(0.005)

        threading.Thread(target=watch, daemon=True).start()
        rows = [from_files(renderer, path).rows for path in sys.argv[1:]]
        print(*rows, highest - before)
    """)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, *map(str, paths)]
    *rows, grown = map(int, subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout.split())
    assert rows == [3000, 3000, 2999] and min(path.stat().st_size for path in paths) > 59_000_000 and grown < 30_000_000, grown


# --- documents of labels ---


def labelled(task="classify", input="text", labels=("neg", "pos")) -> Labelled:
    return Labelled(Renderer(make_tokenizer("llama-3.2")), task, labels, input)


@pytest.fixture
def labels_file(tmp_path) -> Path:
    rows = [{"text": f"text {number} " + "long " * 40 * (number == 3), "label": ["neg", "pos", "pos"][number % 3]} for number in range(40)]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("input", ["text", "chat"])
def test_documents_of_labels(labels_file, tmp_path, input):
    renderer, cache = labelled(input=input), tmp_path / "cache"
    sources = open_sources([str(labels_file)], understand())
    made = [module.prepare(sources, renderer, max_length=90, cache=cache, workers=workers) for workers in (0, 2, 0)]
    prepared = made[0]
    documents = prepared.of_rows(np.arange(prepared.rows))
    assert documents.labelled and len(documents) == 40 and documents.learned_tokens == 40
    assert documents.targets_M.tolist() == [[0, 1, 1][number % 3] for number in range(40)]
    assert documents.take(np.array([5, 0])).targets_M.tolist() == [1, 0]
    begin, end = documents.begin_D[7], documents.end_D[7]
    fed = renderer.feed(renderer.sample("text 7 ")).ids
    assert documents.ids_N[begin:end].tolist() == [*fed, 1] and documents.lengths_D[7] == len(fed)
    assert np.flatnonzero(documents.learned_N[begin:end]).tolist() == [len(fed) - 1]
    report = prepared.report(np.arange(prepared.rows), documents)
    assert report["labels"] == {"neg": 14, "pos": 26} and (report["input"], report["cut"]) == (input, 1)
    assert report["longest"] <= 90 and report["tokens"] == documents.lengths_D.sum() and report["answers_without_end"] == 0
    assert report["proof"] == {"documents": 40, "spans": 40, "approximate": 0}
    for other in made[1:]:  # by other processes, and out of the cache
        assert other.documents.fingerprint == documents.fingerprint and other.documents.labelled
        assert other.report(np.arange(40), other.documents) == report


def test_rows_of_labels(labels_file):
    prepared = module.prepare(open_sources([str(labels_file)], understand()), labelled(), max_length=90)
    row = make_row(prepared.documents, [0, 1], range(500, 503))
    first, second = prepared.documents.lengths_D[:2].tolist()
    assert row.targets_N.tolist() == [0, 1] and row.hidden_N.tolist() == [3 + first - 1, 6 + first + second - 1]
    assert row.lengths == (3 + first, 3 + second) and row.tokens == first + second


def test_tags_as_documents():
    rows = [conll.to_sample({"tokens": ["Angela", "saw", "Paris"], "tags": ["B-PER", "O", "B-LOC"]}, f"a.txt:{n}") for n in range(3)]
    prepared = module.prepare(rows, labelled("tag", labels=("O", "B-PER", "I-PER", "B-LOC", "I-LOC")), max_length=90)
    assert prepared.documents.targets_M.tolist() == [1, 0, 3] * 3 and prepared.documents.learned_D.tolist() == [3, 3, 3]


def test_labels_that_the_head_does_not_have_are_refused_by_their_lines(labels_file):
    prepared = module.prepare(open_sources([str(labels_file)], understand()), labelled(labels=("neg", "new")), max_length=90)
    with pytest.raises(UserError) as refused:
        prepared.refuse("error", 90)
    first, row, *_ = refused.value.problems
    assert first == "26 rows cannot be learned from by a head:" and "labels.jsonl:2: label 'pos' is none of the 2" in row
    prepared.refuse("skip", 90)
    assert len(prepared.documents) == 14


def test_what_is_kept_of_labels_is_not_taken_for_another_head(labels_file, tmp_path):
    sources = open_sources([str(labels_file)], understand())
    kinds: list[Any] = [labelled(), labelled(labels=("pos", "neg")), labelled(input="chat"), labelled().renderer]
    made = [module.prepare(sources, renderer, max_length=90, cache=tmp_path / "cache") for renderer in kinds]
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert [prepared.documents.labelled for prepared in made] == [True, True, True, False]


def test_samples_that_differ_in_their_labels_alone_are_not_the_same(tmp_path):
    rows = [conll.to_sample({"tokens": ["a", "b", "a"], "tags": tags}, "a:1") for tags in (["B-X", "O", "O"], ["O", "O", "B-X"])]
    renderer = labelled("tag", labels=("O", "B-X", "I-X"))
    one, other = (module.prepare([sample], renderer, max_length=90, cache=tmp_path) for sample in rows)
    assert (one.documents.targets_M.tolist(), other.documents.targets_M.tolist()) == ([1, 0, 0], [0, 0, 1])
