import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rows import row, write
from tests.templates import make_tokenizer
from tunesmith.data.corpus import pieces, store
from tunesmith.data.corpus import stream as module
from tunesmith.data.corpus.blocks import open_sources
from tunesmith.data.corpus.documents import prepare
from tunesmith.data.corpus.pieces import Tokenise
from tunesmith.data.corpus.stream import Chunks, Stream, open_chunks
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sources import understand
from tunesmith.errors import UserError

Opened = Callable[..., Stream]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 5)
    monkeypatch.setattr(module, "CHUNK", 700)
    monkeypatch.setattr(module.Workers, "calm", lambda workers: None)  # other tests of this machine would come first


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


@pytest.fixture
def opened(tmp_path: Path, renderer: Renderer) -> Iterator[Opened]:
    """Opens a stream over named files, with a cache in the test's folder."""
    streams = []

    def open_it(
        *names: Any, seed: int = 0, step: int = 300, cache: str = "cache", workers: int = 0, beside: bool = True, **how: Any
    ) -> Stream:
        work = Tokenise(how.pop("renderer", renderer), how.pop("max_length", 90), how.pop("on_overlength", "truncate"))
        weights = how.pop("weights", [1.0] * len(names))
        bad = how.pop("on_bad_row", "error")
        sources = open_sources([str(name) for name in names], understand(**how))
        chunks, key = open_chunks(
            sources, lambda rows: weights, work, tmp_path / cache, seed=seed, on_bad_row=bad, workers=workers, beside=beside
        )
        streams.append(Stream(chunks, step, 512, seed, key=key))
        return streams[-1]

    yield open_it
    for stream in streams:
        stream.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "a.jsonl", [row(number) for number in range(100)])


def lines_of(stream: Stream, steps: int) -> list[list[int]]:
    """The lines that the documents of each step come from."""
    return [stream.step_documents(step).line_D.tolist() for step in range(steps)]


def tokens_of(stream: Stream, steps: int) -> list[bytes]:
    taken = [stream.step_documents(step) for step in range(steps)]
    return [each.ids_N.tobytes() + each.learned_N.tobytes() + each.lengths_D.tobytes() for each in taken]


def first_epoch(stream: Stream) -> list[int]:
    """The lines in the order of the first epoch, and a bit of the second."""
    lines: list[int] = []
    step = 0
    while len(lines) < len(stream.chunks.order_E):
        lines += stream.step_documents(step).line_D.tolist()
        step += 1
    return lines


# --- which documents a step sees ---


def test_every_row_comes_once_an_epoch(opened, data):
    stream = opened(data)
    lines = [line for step in lines_of(stream, 80) for line in step]
    assert len(stream.chunks) > 8
    epochs = [lines[first : first + 100] for first in range(0, len(lines) - 100, 100)]
    assert len(epochs) >= 4 and all(sorted(epoch) == list(range(1, 101)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs) and epochs[0] != sorted(epochs[0])
    bounds = stream.chunks.bounds
    largest = int(np.argmax(np.diff(bounds)))
    together = set((stream.chunks.order_E[bounds[largest] : bounds[largest + 1]] + 1).tolist())
    inside = {tuple(line for line in epoch if line in together) for epoch in epochs}
    assert len(together) >= 4 and len(inside) == len(epochs)  # those of one chunk, too, come in another order each time


def test_steps_hold_the_tokens_that_were_asked_for(opened, data):
    stream = opened(data)
    for step in range(30):
        lengths_D = stream.step_documents(step).lengths_D
        assert lengths_D.sum() >= 300 > lengths_D[:-1].sum()
        rows = stream.rows(step)
        assert sum(each.tokens for each in rows) == lengths_D.sum() and sum(len(each.lengths) for each in rows) == len(lengths_D)


def test_the_order_is_a_function_of_the_seed(opened, data):
    assert lines_of(opened(data), 40) == lines_of(opened(data, cache="other"), 40)
    assert lines_of(opened(data, seed=1), 5) != lines_of(opened(data), 5)
    assert lines_of(opened(data, seed=1), 5) == lines_of(opened(data, seed=1, cache="third"), 5)


def test_documents_are_those_that_are_prepared_at_once(opened, data, renderer):
    whole = prepare(open_sources([str(data)], understand()), renderer, max_length=90).documents
    expected = {
        int(whole.line_D[d]): (whole.ids_N[b:e].tolist(), whole.learned_N[b:e].tolist())
        for d, (b, e) in enumerate(zip(whole.begin_D, whole.end_D, strict=True))
    }
    seen = {}
    stream = opened(data)
    for step in range(20):
        taken = stream.step_documents(step)
        for d, (begin, end) in enumerate(zip(taken.begin_D.tolist(), taken.end_D.tolist(), strict=True)):
            seen[int(taken.line_D[d])] = (taken.ids_N[begin:end].tolist(), taken.learned_N[begin:end].tolist())
            assert taken.learned_D[d] == taken.learned_N[begin:end].sum() and taken.origin(d) == f"{data}:{taken.line_D[d]}"
    assert seen == expected


def test_who_tokenises_changes_nothing(opened, data):
    expected = tokens_of(opened(data, cache="alone"), 45)
    stream = opened(data, workers=2)
    found = []
    for step in range(45):
        stream.rows(step)
        found += tokens_of(stream, step + 1)[step:]
    assert found == expected and stream.chunks._pool is None  # all is made: no process is kept
    assert stream.report(45) == opened(data, cache="alone").report(45)


def test_a_step_does_not_depend_on_what_was_there_before(opened, data):
    """A resumed run asks for its own step first, and finds the chunks made, partly made or gone."""
    expected = tokens_of(opened(data), 50)
    for step in (0, 7, 23, 41, 49):
        stream = opened(data)
        taken = stream.step_documents(step)
        assert taken.ids_N.tobytes() + taken.learned_N.tobytes() + taken.lengths_D.tobytes() == expected[step]
    fresh = opened(data, cache="empty")
    assert tokens_of(fresh, 50)[49] == expected[49]
    other = opened(data, cache="late")
    assert other.step_documents(49).ids_N.tobytes() == fresh.step_documents(49).ids_N.tobytes()


def test_without_packing_the_documents_of_a_step_are_the_same(opened, data):
    stream = opened(data)
    alone = stream.alone()
    assert len(alone.rows(3)) == len(stream.step_documents(3)) > len(stream.rows(3))
    assert lines_of(alone, 10) == lines_of(stream, 10)


def test_the_second_start_tokenises_nothing(opened, data, monkeypatch):
    expected = tokens_of(opened(data), 40)
    monkeypatch.setattr(Tokenise, "__call__", None)
    assert tokens_of(opened(data), 40) == expected
    monkeypatch.undo()
    assert len(list((data.parent / "cache").iterdir())) == 1


# --- chunks ---


def test_no_more_is_tokenised_than_is_asked_for(opened, data):
    stream = opened(data)
    assert not stream.chunks.lengths
    stream.rows(0)
    assert len(stream.chunks.lengths) <= 2 < len(stream.chunks)


def test_long_rows_do_not_make_the_first_chunk_large(opened, tmp_path, monkeypatch):
    """The first step is taken after seconds, be there 256 rows in a megabyte or in a gigabyte."""
    monkeypatch.setattr(module, "FIRST", 256)
    path = write(tmp_path / "books.jsonl", [{"text": "A book. " * 500} for _ in range(100)])
    chunks = opened(path).chunks
    assert chunks.bounds == list(range(101))


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.write_bytes(b"")]
)
def test_chunks_that_were_damaged_or_removed_are_made_anew(opened, data, damage):
    expected = tokens_of(opened(data), 40)
    [folder] = [path for path in (data.parent / "cache").glob("*.stream/*") if path.name != "index"]
    for path in sorted(folder.iterdir())[::3]:
        damage(path)
    assert tokens_of(opened(data), 40) == expected
    stream = opened(data)  # and while it is at work
    lines_of(stream, 10)
    for path in folder.iterdir():
        damage(path)
    assert tokens_of(stream, 40) == expected and stream.report(40)["rows"] == 100


def test_a_stream_in_use_is_not_removed_to_make_room(opened, data, tmp_path):
    stream = opened(data)
    stream.rows(0)
    [folder] = (tmp_path / "cache").iterdir()
    os.utime(folder, (1, 1))
    stream.rows(1)
    store.trim(tmp_path / "cache", limit=0)
    assert folder.exists()
    os.utime(folder, (1, 1))
    opened(data)
    store.trim(tmp_path / "cache", limit=0)
    assert folder.exists()


def test_a_cache_that_cannot_be_written_is_said(opened, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="TUNESMITH_CACHE"):
        opened(data, cache="file/cache")


def test_a_full_disk_is_said(opened, data):
    stream = opened(data)
    stream.rows(0)
    shutil.rmtree(stream.chunks.folder)
    with pytest.raises(UserError, match=r"cannot be written.*make room"):
        tokens_of(stream, 40)


def test_data_that_changes_under_the_run_stops_it(opened, data):
    stream = opened(data)
    stream.rows(0)
    write(data, [row(number + 1) for number in range(100)])
    with pytest.raises(UserError, match=r"a\.jsonl: changed or vanished"):
        tokens_of(stream, 40)


def test_other_data_is_another_stream(opened, data):
    key = opened(data).key
    assert opened(data).key == key == opened(data, on_bad_row="skip", workers=1).key
    keys = [
        opened(data, seed=1).key,
        opened(data, max_length=80).key,
        opened(data, on_overlength="drop").key,
        opened(data, weights=[2.0]).key,
    ]
    write(data, [row(number) for number in range(99)])
    assert len({key, *keys, opened(data).key}) == 6


# --- files of every kind, several of them ---


def test_other_kinds_of_files_give_the_same_documents(opened, tmp_path, data, renderer):
    rows = [row(number) for number in range(60)]
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "c.csv").write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows))
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    for name in ("b.json", "c.csv", "d.jsonl.gz"):
        path = tmp_path / name
        whole = prepare(open_sources([str(path)], understand()), renderer, max_length=90).documents
        stream = opened(path)
        found = Counter[tuple[str, bytes]]()
        for step in range(100):
            taken = stream.step_documents(step)
            for d in range(len(taken)):
                if found.total() < 60:
                    found[taken.origin(d), taken.ids_N[taken.begin_D[d] : taken.end_D[d]].tobytes()] += 1
        expected = Counter((whole.origin(d), whole.ids_N[whole.begin_D[d] : whole.end_D[d]].tobytes()) for d in range(len(whole)))
        assert found == expected, name


def test_two_files_are_mixed(opened, tmp_path, data):
    other = write(tmp_path / "b.jsonl", [row(number) for number in range(100, 150)])
    stream = opened(data, other)
    origins = [origin for step in range(40) for origin in stream.step_documents(step).origins][:150]
    assert Counter(origin.rpartition(":")[0] for origin in origins) == {str(data): 100, str(other): 50} and len(set(origins)) == 150
    halves = [sum(origin.startswith(str(other)) for origin in origins[first : first + 75]) for first in (0, 75)]
    assert min(halves) > 15  # not one after the other
    assert [file["rows"] for file in stream.report(40)["files"]] == [100, 50]


# --- weights ---


def test_weights_say_how_often_a_row_comes(opened, tmp_path, data):
    other = write(tmp_path / "b.jsonl", [row(number) for number in range(100, 140)])
    stream = opened(data, other, weights=[0.25, 2.5])
    origins = []
    for step in range(100):
        origins += stream.step_documents(step).origins
    counts = Counter(origins[: len(stream.chunks.order_E)])
    assert len(stream.chunks.order_E) == 25 + 100
    assert Counter(count for origin, count in counts.items() if origin.startswith(str(data))) == {1: 25}
    assert Counter(count for origin, count in counts.items() if origin.startswith(str(other))) == {2: 20, 3: 20}
    report = stream.report(100)
    assert report["rows"] == report["kept"] == 65 and report["set_aside"] == {"weight": 75} and report["rows_read"] == 140
    assert [file["rows"] for file in report["files"]] == [25, 40]
    assert report["documents"] == 125


def test_a_bad_row_of_a_source_that_comes_twice_is_one_bad_row(opened, tmp_path):
    rows = [row(number) for number in range(30)] + [{"prompt": "no answer"}, "{"]
    stream = opened(write(tmp_path / "a.jsonl", rows), weights=[3.0], on_bad_row="skip")
    lines_of(stream, 60)
    report = stream.report(60)
    assert report["rows"] == report["rows_read"] == 32 and report["kept"] == 30 and len(report["dropped"]) == 2
    assert report["files"][0]["rows"] == 32 and report["files"][0]["good"] == 30


# --- bad rows, and what became of every row ---


def adds_up(report: dict[str, Any]) -> bool:
    fates = report["kept"] + report["cut"] + report["split"] + len(report["dropped"])
    return report["rows"] == fates and report["rows_read"] == report["rows"] + sum(report["set_aside"].values())


def with_bad_rows(folder: Path) -> Path:
    rows: list[Any] = [row(number) for number in range(100)]
    rows[17], rows[60], rows[61], rows[80] = {"prompt": "no answer"}, "{", "", {"prompt": "long " * 100, "completion": "Yes."}
    return write(folder / "bad.jsonl", rows)


def test_a_bad_row_stops_the_run_when_its_chunk_is_met(opened, tmp_path):
    stream = opened(with_bad_rows(tmp_path))
    met = None
    for step in range(40):
        try:
            stream.rows(step)
        except UserError as error:
            met = error
            break
    assert met is not None and ("bad.jsonl:18: " in str(met) or "bad.jsonl:61: " in str(met))
    assert "data.on_bad_row=skip" in str(met)
    with pytest.raises(UserError) as again:  # at the same place the next time
        stream.rows(step)
    assert again.value.problems == met.problems
    assert adds_up(stream.report())


def test_bad_rows_that_are_skipped_are_named(opened, tmp_path):
    stream = opened(with_bad_rows(tmp_path), on_bad_row="skip")
    lines = [line for step in lines_of(stream, 24) for line in step]
    assert set(lines) == set(range(1, 101)) - {18, 61, 62}
    report = stream.report(24)
    assert [row["origin"].rpartition(":")[2] for row in sorted(report["dropped"], key=lambda row: row["origin"])] == ["18", "61"]
    assert (report["rows"], report["kept"], report["cut"]) == (99, 96, 1) and adds_up(report)
    assert report["cut_origins"] == [f"{tmp_path / 'bad.jsonl'}:81"]


def test_bad_rows_of_other_kinds_of_files_are_met_at_once(opened, tmp_path):
    """They are found while the file is copied; none is passed over because it is in no chunk."""
    (tmp_path / "a.csv").write_text("prompt,completion\nHi,Yes.\nHi,Yes.,more\n" + "Hi,Yes.\n" * 20)
    with pytest.raises(UserError, match=r"a\.csv:3: .*(\n.*)*data\.on_bad_row=skip"):
        opened(tmp_path / "a.csv")
    stream = opened(tmp_path / "a.csv", on_bad_row="skip")
    assert [len(stream.rows(step)) for step in range(20)]
    report = stream.report(20)
    assert (report["rows"], report["kept"], len(report["dropped"])) == (22, 21, 1) and adds_up(report)


def test_files_that_cannot_be_read_are_named_at_once(opened, tmp_path, data):
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.jsonl: the file is empty"):
        opened(data, tmp_path / "b.jsonl")


def test_long_rows_are_refused_where_that_is_asked(opened, tmp_path):
    rows = [row(number) for number in range(40)]
    rows[30] = {"prompt": "long " * 100, "completion": "Yes."}
    stream = opened(write(tmp_path / "a.jsonl", rows), on_overlength="error", on_bad_row="skip")
    with pytest.raises(UserError, match=r"a\.jsonl:31: .*(\n.*)*data\.on_overlength"):
        lines_of(stream, 40)


def test_reports_add_up_at_any_moment(opened, tmp_path):
    stream = opened(with_bad_rows(tmp_path), on_bad_row="skip")
    reports = [stream.report()]
    for step in range(24):
        stream.rows(step)
        reports.append(stream.report())
    assert all(adds_up(report) and report["rows_read"] == 99 for report in reports)
    assert [report.get("provisional", False) for report in reports] == sorted(
        (report.get("provisional", False) for report in reports), reverse=True
    )
    assert reports[0]["provisional"] and "provisional" not in reports[-1] and not reports[-1]["set_aside"]
    assert reports[0]["rows"] == 0 and reports[0]["set_aside"] == {"not_reached": 99}
    final = stream.report(ended_after=3)
    assert "provisional" not in final and adds_up(final) and 0 < final["set_aside"]["not_reached"] < 99
    assert stream.report(ended_after=24) == {key: value for key, value in reports[-1].items() if key != "provisional"}


def test_what_a_run_has_used_does_not_depend_on_what_was_made_ahead(opened, tmp_path, data):
    short, long = opened(data, cache="one"), opened(data, cache="two")
    lines_of(short, 4)
    lines_of(long, 30)
    assert short.report(ended_after=4) == long.report(ended_after=4)
    assert opened(data).report(ended_after=4) == short.report(ended_after=4)  # of a run that was killed between its last step and its end


def test_a_final_report_is_that_of_data_prepared_at_once(opened, tmp_path, renderer):
    """After a whole epoch it says the same, but for the order of the lists and the hash."""
    path = with_bad_rows(tmp_path)
    stream = opened(path, on_bad_row="skip")
    lines_of(stream, 24)
    streamed = stream.report(24)
    prepared = prepare(open_sources([str(path)], understand()), renderer, max_length=90)
    rows = np.arange(prepared.rows)
    whole = prepared.report(rows, prepared.of_rows(rows))
    for report in (streamed, whole):
        report["dropped"] = sorted(report["dropped"], key=lambda row: row["origin"])
        report["files"][0]["bad"] = sorted(report["files"][0]["bad"], key=lambda row: row["line"])
    same = set(whole) - {"mask_sha256", "answers_without_end"}
    assert {key: streamed[key] for key in same} == {key: whole[key] for key in same}


def test_nothing_to_learn_from_is_said_and_does_not_hang(opened, tmp_path):
    rows = [{"prompt": "long " * 100, "completion": "Yes."} for _ in range(20)]
    stream = opened(write(tmp_path / "a.jsonl", rows), on_overlength="drop")
    with pytest.raises(UserError, match="no row is left to learn from"):
        stream.rows(0)


def test_one_row_is_enough(opened, tmp_path):
    stream = opened(write(tmp_path / "a.jsonl", [row(1)]), step=100)
    assert set(lines_of(stream, 1)[0]) == {1} and len(stream.chunks) == 1
    assert stream.report()["rows"] == 1


def test_splits_of_a_text_are_documents_of_one_row(opened, tmp_path):
    stream = opened(write(tmp_path / "a.jsonl", [{"text": "word " * 200} for _ in range(6)]), max_length=40)
    lines_of(stream, 60)
    report = stream.report(60)
    assert report["rows"] == report["split"] == 6 and report["documents"] > 20 and stream.chunks.is_text()


# --- processes ---


def test_chunks_are_made_ahead_beside_the_run_until_it_is_closed(opened, data):
    stream = opened(data, workers=1)
    stream.rows(0)
    asked = dict(stream.chunks._asked)
    assert sorted(asked) == list(range(len(stream.chunks.lengths), len(stream.chunks))) and len(asked) > 5
    asked[min(asked) + 1].result()
    assert (stream.chunks.folder / f"{min(asked) + 1:06}.safetensors").exists()
    processes = stream.chunks._pool._processes
    stream.close()
    assert all(process.returncode is not None for process in processes) and stream.chunks._pool is None
    stream.close()
    stream.chunks.workers = 0
    lines_of(stream, 20)  # and whoever asks on gets more


def test_chunks_are_made_in_bursts_where_the_run_needs_the_processor(opened, data, monkeypatch):
    monkeypatch.setattr(module, "BURST", 4)
    stream = opened(data, workers=1, beside=False, step=50)
    stream.rows(0)
    made = []
    for step in range(1, 60):
        stream.rows(step)
        made.append(len(stream.chunks.lengths))
        assert all(future.done() for future in stream.chunks._asked.values())  # nobody is at work while the run computes
    assert max(np.diff(made)) <= 4 and made[-1] == len(stream.chunks)
    assert tokens_of(stream, 60) == tokens_of(opened(data, cache="alone", step=50), 60)


def test_pieces_are_what_the_names_of_their_files_say(opened, data):
    stream = opened(data)
    lines_of(stream, 20)
    chunks: Chunks = stream.chunks
    for number in range(len(chunks)):
        piece = pieces.load(chunks.folder / f"{number:06}.safetensors")
        assert piece is not None
        assert (piece.line_R - 1).tolist() == chunks.order_E[chunks.bounds[number] : chunks.bounds[number + 1]].tolist()


def test_two_runs_may_stream_the_same_at_once(opened, tmp_path):
    """Even where the second writes the copy of a table again that the first reads from."""
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"Question {n},Answer {n}\n" for n in range(60)))
    expected = tokens_of(opened(tmp_path / "a.csv", cache="alone"), 30)
    first = opened(tmp_path / "a.csv")
    first.rows(0)
    shutil.rmtree(next((tmp_path / "cache").iterdir()) / "index")
    second = opened(tmp_path / "a.csv")
    found = [(tokens_of(first, step + 1)[step], tokens_of(second, step + 1)[step]) for step in range(30)]
    assert found == [(tokens, tokens) for tokens in expected]
