import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import runs
from tests.rows import row, write
from tests.runs import own_cache  # noqa: F401
from tests.templates import make_tokenizer
from tunesmith import config, events, hardware
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import Interrupted, UserError
from tunesmith.train import checkpoint, corpora, folder, loop
from tunesmith.train.corpora import Corpus
from tunesmith.train.setting import decide

LONG = "word " * 60


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


def run_of(data: Any, **train: Any) -> config.Run:
    """Settings in which only the data matters."""
    data = data if isinstance(data, dict) else {"train": data}
    return config.parse({"model": {"source": "none"}, "data": {"max_length": 60} | data, "train": train})


def opened(run: config.Run, renderer: Renderer, how: Any = corpora.read) -> Corpus:
    return how(run, corpora.training(run), renderer)


def wants_stream(run: config.Run) -> tuple[bool, str]:
    return corpora.stream(run, corpora.training(run))


def read(renderer: Renderer, data: Any) -> Corpus:
    return opened(run_of(data), renderer)


def origins(corpus: Corpus) -> Counter[str]:
    return Counter(Path(origin).name for origin in corpus.documents.origins)


def adds_up(report: dict[str, Any]) -> bool:
    fates = report["kept"] + report["cut"] + report["split"] + len(report["dropped"])
    return report["rows"] == fates and report["rows_read"] == report["rows"] + sum(report["set_aside"].values())


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """a.jsonl of 40 rows, b.jsonl of 20, c.jsonl of 10."""
    for name, count in (("a", 40), ("b", 20), ("c", 10)):
        write(tmp_path / f"{name}.jsonl", [row(number) for number in range(count)])
    return tmp_path


def sources(place: Path, **weights: float) -> list[dict[str, Any]]:
    return [{"source": str(place / f"{name}.jsonl"), "weight": weight} for name, weight in weights.items()]


def by_file(counts: Counter[str]) -> dict[str, Counter[int]]:
    """How many rows of each file come how often."""
    found: dict[str, Counter[int]] = {}
    for origin, count in counts.items():
        found.setdefault(origin.partition(".")[0], Counter())[count] += 1
    return found


# --- weights and replay ---


def test_weights_say_how_often_rows_are_learned(renderer, three):
    corpus = read(renderer, {"train": sources(three, a=0.25, b=1, c=2.5)})
    assert by_file(origins(corpus)) == {"a": {1: 10}, "b": {1: 20}, "c": {2: 5, 3: 5}}
    report = corpus.report
    assert (report["rows"], report["documents"]) == (40, 55) and report["set_aside"] == {"weight": 30}
    assert report["rows_read"] == 70 and adds_up(report)
    again = read(renderer, {"train": sources(three, a=0.25, b=1, c=2.5)})
    assert again.documents.fingerprint == corpus.documents.fingerprint
    larger = read(renderer, {"train": sources(three, a=0.5)})
    assert {origin for origin in origins(corpus) if origin.startswith("a")} < set(origins(larger)) and len(larger.documents) == 20


def test_replay_is_a_share_of_the_others(renderer, three):
    corpus = read(renderer, {"train": sources(three, b=2), "replay": str(three / "a.jsonl"), "replay_share": 0.25})
    assert by_file(origins(corpus)) == {"b": {2: 20}, "a": {1: 10}}
    assert corpus.report["set_aside"] == {"weight": 30} and adds_up(corpus.report)
    corpus = read(renderer, {"train": str(three / "a.jsonl"), "replay": str(three / "c.jsonl"), "replay_share": 0.9})
    assert by_file(origins(corpus)) == {"a": {1: 40}, "c": {1: 10}}  # there are no more than it has


def test_replay_of_so_many_rows_is_so_many(renderer, three):
    corpus = read(renderer, {"train": str(three / "c.jsonl"), "replay": f"{three / 'a.jsonl'}#7", "replay_share": 0.1})
    assert by_file(origins(corpus)) == {"c": {1: 10}, "a": {1: 7}} and corpus.report["set_aside"] == {"sample": 33}
    odd = write(three / "odd#name.jsonl", [row(number) for number in range(40)])  # a path that is there counts before a number
    corpus = read(renderer, {"train": str(three / "b.jsonl"), "replay": str(odd), "replay_share": 0.1})
    assert by_file(origins(corpus)) == {"b": {1: 20}, "odd#name": {1: 2}}


def test_samples_are_the_same_rows_always(renderer, three):
    few, more = (read(renderer, {"train": f"{three / 'a.jsonl'}#{count}"}) for count in (5, 15))
    assert len(few.documents) == 5 and set(origins(few)) < set(origins(more)) and len(more.documents) == 15
    assert more.report["set_aside"] == {"sample": 25} and more.report["rows_read"] == 40


# --- evaluation ---


def test_a_fraction_is_held_out_and_never_learned(renderer, three):
    corpus = read(renderer, {"train": sources(three, a=3, b=1), "evaluate": 0.2})
    assert corpus.evaluation is not None
    held_out = {Path(origin).name for origin in corpus.evaluation.origins}
    assert len(held_out) == len(corpus.evaluation) == 12 and not held_out & set(origins(corpus))
    learned = by_file(origins(corpus))
    assert learned["a"].keys() == {3} and learned["b"].keys() == {1} and learned["a"][3] + learned["b"][1] == 48
    assert corpus.report["set_aside"] == {"evaluation": 12} and adds_up(corpus.report) and corpus.report["rows_read"] == 60
    told = corpus.report["evaluation"]
    assert told["rows"] == told["documents"] == 12 and told["mask_sha256"] == corpus.evaluation.fingerprint
    assert told["tokens"] == corpus.evaluation.tokens > told["learned_tokens"] == corpus.evaluation.learned_tokens > 0
    again = read(renderer, {"train": sources(three, a=3, b=1), "evaluate": 0.2})
    assert again.evaluation is not None and again.evaluation.fingerprint == corpus.evaluation.fingerprint


def test_a_file_is_evaluated_on_whole(renderer, three):
    corpus = read(renderer, {"train": str(three / "a.jsonl"), "evaluate": str(three / "c.jsonl")})
    assert corpus.evaluation is not None and len(corpus.evaluation) == 10 and len(corpus.documents) == 40
    assert corpus.report["set_aside"] == {} and corpus.report["rows_read"] == 40 and corpus.report["evaluation"]["rows"] == 10
    sample = read(renderer, {"train": str(three / "a.jsonl"), "evaluate": f"{three / 'c.jsonl'}#4"})
    assert sample.evaluation is not None and len(sample.evaluation) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluate": 0.99}, "would leave none of the 2 rows to train on"),
        ({"evaluate": "{}/none.jsonl"}, "none.jsonl: no such file"),
        ({"evaluate": "{}/bad.jsonl"}, "data.on_bad_row=skip"),
        ({"evaluate": "{}/long.jsonl", "on_overlength": "drop"}, "no row is left to learn from"),
        ({"train": [{"source": "{}/two.jsonl", "weight": 0.1}]}, "no row is left to learn from"),
        ({"train": "{}/half.jsonl", "evaluate": 0.5, "on_overlength": "drop"}, None),
    ],
)
def test_nothing_left_is_said(renderer, tmp_path, change, said):
    write(tmp_path / "two.jsonl", [row(1), row(2)])
    write(tmp_path / "bad.jsonl", [row(1), {"prompt": "no answer"}])
    write(tmp_path / "long.jsonl", [{"prompt": LONG, "completion": "x"}])
    write(tmp_path / "half.jsonl", [row(1), {"prompt": LONG, "completion": "x"}])
    data = json.loads(json.dumps({"train": "{}/two.jsonl"} | change).replace("{}", str(tmp_path)))
    with pytest.raises(UserError) as caught:
        read(renderer, data)
    assert said is None or said in str(caught.value)


# --- what became of every row ---

FILES = ("lines.jsonl", "table.csv", "array.json", "texts.txt")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every fate in files of several kinds."""
    place = tmp_path_factory.mktemp("files")
    rows: list[Any] = [row(number) for number in range(30)]
    rows[3] = {"prompt": LONG, "completion": "cut"}
    rows[7] = {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]}
    rows[11], rows[12], rows[13] = {"prompt": "no answer"}, "{", ""
    rows[20] = {"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}
    write(place / "lines.jsonl", rows)
    (place / "table.csv").write_text(
        "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in map(row, range(20))) + "a,b,c\n"
    )
    (place / "array.json").write_text(json.dumps([*map(row, range(15)), 7, {"prompt": LONG, "completion": "cut"}]))
    (place / "texts.txt").write_text("A line of text.\n" * 50)
    return place


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    named=st.lists(
        st.tuples(st.sampled_from(FILES), st.sampled_from(["", "#1", "#9", "#500"]), st.sampled_from([0.3, 1, 1.7, 3])),
        min_size=1,
        max_size=4,
    ),
    replay=st.sampled_from([None, "lines.jsonl", "array.json#5"]),
    evaluate=st.sampled_from([None, 0.1, 0.5, "table.csv", "lines.jsonl#8"]),
    on_overlength=st.sampled_from(["truncate", "drop"]),
)
def test_the_fates_of_all_rows_add_up(renderer, files, named, replay, evaluate, on_overlength):
    """data.json accounts for every row of every file, whatever is mixed, taken, held out, cut or dropped."""
    data: dict[str, Any] = {"on_bad_row": "skip", "on_overlength": on_overlength, "documents": "line", "replay_share": 0.5}
    data["train"] = [{"source": f"{files / name}{part}", "weight": weight} for name, part, weight in named]
    data["replay"] = replay and str(files / replay)
    data["evaluate"] = str(files / evaluate) if isinstance(evaluate, str) else evaluate
    try:
        corpus = read(renderer, data)
    except UserError as error:
        assert any(said in str(error) for said in ("would leave none", "no row is left"))
        return
    report = corpus.report
    assert adds_up(report)
    lines = {"lines.jsonl": 29, "table.csv": 21, "array.json": 17, "texts.txt": 50}
    used = [name for name, _, _ in named] + ([replay.partition("#")[0]] if replay else [])
    assert report["rows_read"] == sum(lines[name] for name in used) == sum(file["rows"] for file in report["files"])
    assert all(file["rows"] == file["good"] + len(file["bad"]) for file in report["files"])
    rows = Counter(corpus.documents.origins)
    kept = report["kept"] + report["cut"] + report["split"]
    assert report["documents"] == len(corpus.documents) == rows.total() and len(rows) <= kept
    assert not any("lines.jsonl:21" in origin for origin in rows)  # a judged answer
    if isinstance(evaluate, float):
        assert report["evaluation"]["rows"] == report["set_aside"]["evaluation"]


def test_bad_rows_and_their_reasons_stand_in_the_report(renderer, files):
    report = read(renderer, {"train": str(files / "lines.jsonl"), "on_bad_row": "skip"}).report
    named = {row["origin"].rpartition(":")[2]: row["reason"] for row in report["dropped"]}
    assert set(named) == {"8", "12", "13", "21"} and "judged answer" in named["21"] and "system prompt" in named["8"]
    assert (report["rows"], report["kept"], report["cut"]) == (29, 24, 1)
    with pytest.raises(UserError) as caught:
        read(renderer, str(files / "lines.jsonl"))
    assert "3 bad rows of 29" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_judged_answers_are_refused_with_the_cure(renderer, tmp_path, stream):
    write(tmp_path / "pairs.jsonl", [{"prompt": f"Hi {n}", "chosen": "Yes.", "rejected": "No."} for n in range(9)])
    run = run_of({"train": str(tmp_path / "pairs.jsonl"), "stream": stream}, steps=3)
    with pytest.raises(UserError, match=r"(?s)preference pairs.*data\.columns=\{prompt: THEIR_PROMPT, completion: chosen\}"):
        opened(run, renderer, corpora.open_stream if stream else corpora.read)
    data = {"train": str(tmp_path / "pairs.jsonl"), "columns": {"prompt": "prompt", "completion": "chosen"}}
    assert len(read(renderer, data).documents) == 9


# --- whether it is streamed, and with how many processes ---


def test_only_large_data_is_streamed_by_itself(three, monkeypatch):
    data = str(three / "a.jsonl")
    assert wants_stream(run_of(data, steps=5)) == (False, "everything is tokenised first")
    monkeypatch.setattr(corpora, "STREAMED", 1000)
    wanted, why = wants_stream(run_of(data, steps=5))
    assert wanted and "train.steps is given" in why
    for others in (run_of(data), run_of(f"{data}#9", steps=5), run_of({"train": data, "evaluate": 0.1}, steps=5)):
        assert wants_stream(others)[0] is False
    assert wants_stream(run_of({"train": data, "evaluate": data}, steps=5))[0] is True


def test_a_stream_that_cannot_be_is_refused_for_all_reasons_at_once(three):
    data = {"train": str(three / "a.jsonl"), "stream": True}
    assert wants_stream(run_of(data, steps=5)) == (True, "")
    with pytest.raises(UserError) as caught:
        wants_stream(run_of(data | {"train": f"{three / 'a.jsonl'}#9", "evaluate": 0.1}))
    sample, fraction, steps = caught.value.problems
    assert "PATH#N" in sample and "data.evaluate" in fraction and "train.steps" in steps
    with pytest.raises(UserError, match=r"PATH#N"):
        wants_stream(run_of(data | {"replay": f"{three / 'b.jsonl'}#9"}, steps=5))


def test_processes_are_started_where_it_pays(monkeypatch):
    monkeypatch.setattr(hardware, "physical_cores", lambda: 6)
    assert [corpora.workers(run_of("x"), size) for size in (0, corpora.LARGE - 1, corpora.LARGE)] == [0, 0, 6]
    monkeypatch.setattr(hardware, "physical_cores", lambda: 64)
    assert corpora.workers(run_of("x"), 1 << 40) == 8
    assert (
        corpora.workers(run_of({"train": "x", "workers": 0}), 1 << 40) == 0
        and corpora.workers(run_of({"train": "x", "workers": 3}), 1) == 3
    )


def test_streamed_documents_are_weighted_as_read_ones(renderer, three, monkeypatch):
    monkeypatch.setattr("tunesmith.data.corpus.stream.CHUNK", 400)
    data = {"train": sources(three, a=0.5, b=2), "replay": str(three / "c.jsonl"), "replay_share": 0.1, "evaluate": str(three / "c.jsonl")}
    whole, streamed = read(renderer, data), opened(run_of(data, steps=5), renderer, corpora.open_stream)
    assert streamed.chunks is not None and len(streamed.chunks) > 5
    streamed.chunks.wait_for(len(streamed.chunks) - 1)
    lines: Counter[str] = Counter()
    for number in range(len(streamed.chunks)):
        piece = streamed.chunks.piece(number)
        lines.update(f"{'abc'[file]}.jsonl:{line}" for file, line in zip(piece.file_R.tolist(), piece.line_R.tolist(), strict=True))
    assert lines == origins(whole)
    assert streamed.evaluation is not None and whole.evaluation is not None
    assert streamed.evaluation.fingerprint == whole.evaluation.fingerprint and not streamed.is_text
    report = streamed.chunks.report(len(streamed.chunks))
    assert {key: report[key] for key in ("rows", "kept", "documents", "tokens", "learned_tokens", "longest", "notes")} == {
        key: whole.report[key] for key in ("rows", "kept", "documents", "tokens", "learned_tokens", "longest", "notes")
    }  # fmt: skip
    assert streamed.report["provisional"] and adds_up(streamed.report) and streamed.report["rows_read"] == 70


# --- whole runs ---

STREAM = {"data.stream": True, "data.max_length": 128}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.corpus.stream.CHUNK", 500)
    monkeypatch.setattr("tunesmith.data.corpus.stream.FIRST", 4)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1000 tokens: an epoch ends inside the fifth step of 200."""
    return runs.write_rows(tmp_path_factory.mktemp("lines") / "rows.jsonl", 26)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stopped_after", [(1, 4), (6,)])
def test_a_streamed_run_goes_on_bit_for_bit(tiny_llama: Path, lines: Path, tmp_path: Path, monkeypatch: Any, stopped_after: Any) -> None:
    """Also behind the end of an epoch, and where the chunks that it began with are gone."""
    changes = STREAM | {"train.steps": 8, "method": {"name": "lora", "rank": 4, "dropout": 0.1}}
    runs.finish(runs.settings(tiny_llama, lines, tmp_path / "whole", changes))
    run = runs.settings(tiny_llama, lines, tmp_path / "parts", changes)
    happening, done = loop.train(run, stop=runs.stop_after(stopped_after[0]), tell=runs.quiet), stopped_after[0]
    for upto in (*stopped_after[1:], 8):
        with pytest.raises(Interrupted):
            list(happening)
        before = folder.read_json(tmp_path / "parts" / "data.json")
        assert adds_up(before) and before["rows_read"] == 26
        monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / f"cache{upto}"))
        happening = loop.resume(tmp_path / "parts", stop=runs.stop_after(upto - done), tell=runs.quiet)
        done = upto
    list(happening)
    assert runs.steps_of(tmp_path / "parts") == runs.steps_of(tmp_path / "whole")
    assert runs.contents(tmp_path / "parts") == runs.contents(tmp_path / "whole")
    report = folder.read_json(tmp_path / "whole" / "data.json")
    assert "provisional" not in report and report["set_aside"] == {} and adds_up(report) and report["rows"] == 26
    seen = [step["tokens"] for step in runs.steps_of(tmp_path / "whole")]
    assert sum(seen[:4]) < report["tokens"] < sum(seen[:7])  # a second epoch was begun


@pytest.mark.usefixtures("small_chunks")
def test_the_end_of_a_run_that_was_killed_is_written_by_the_next(tiny_llama: Path, lines: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """After its last checkpoint and before anything else."""
    changes = STREAM | {"train.steps": 3}
    runs.finish(runs.settings(tiny_llama, lines, tmp_path / "whole", changes))
    happening = loop.train(runs.settings(tiny_llama, lines, tmp_path / "killed", changes), tell=runs.quiet)
    for event in happening:
        if isinstance(event, events.Saved):
            break
    happening.close()  # type: ignore[attr-defined]
    assert folder.read_json(tmp_path / "killed" / "data.json").get("provisional") and checkpoint.newest(tmp_path / "killed") == 3
    list(loop.resume(tmp_path / "killed", tell=runs.quiet))
    assert runs.contents(tmp_path / "killed") == runs.contents(tmp_path / "whole")
    report = folder.read_json(tmp_path / "whole" / "data.json")
    assert adds_up(report) and 0 < report["set_aside"]["not_reached"] < 26 and report["rows_read"] == 26


@pytest.mark.usefixtures("small_chunks")
def test_a_bad_row_on_the_way_stops_with_a_checkpoint_and_can_be_skipped(tiny_llama: Path, lines: Path, tmp_path: Path) -> None:
    rows = lines.read_text().splitlines()
    chunks = opened(run_of({"train": str(lines)}, steps=1), Renderer(make_tokenizer("qwen2.5")), corpora.open_stream).chunks
    assert chunks is not None
    late = int(chunks.order_E[-1])
    rows[late] = '{"prompt": "nobody answers"}'
    data = write(tmp_path / "bad.jsonl", rows)
    run = runs.settings(tiny_llama, data, tmp_path / "run", STREAM | {"train.steps": 8, "train.checkpoint_every": 100})
    with pytest.raises(UserError, match=rf"bad\.jsonl:{late + 1}: ") as caught:
        list(loop.train(run, tell=runs.quiet))
    assert "data.on_bad_row=skip" in str(caught.value)
    done = len(runs.steps_of(tmp_path / "run"))
    assert 1 <= done == checkpoint.newest(tmp_path / "run") < 8
    with pytest.raises(UserError, match=rf"bad\.jsonl:{late + 1}: "):  # nothing has changed
        list(loop.resume(tmp_path / "run", tell=runs.quiet))
    settings_file = tmp_path / "run" / "run.yaml"
    text = settings_file.read_text()
    settings_file.write_text(text.replace("on_bad_row: error", "on_bad_row: skip"))
    assert settings_file.read_text() != text
    list(loop.resume(tmp_path / "run", tell=runs.quiet))
    report = folder.read_json(tmp_path / "run" / "data.json")
    assert [row["origin"] for row in report["dropped"]] == [f"{data}:{late + 1}"] and report["kept"] == 25 and adds_up(report)
    assert len(runs.steps_of(tmp_path / "run")) == 8
    skipping = runs.settings(tiny_llama, data, tmp_path / "other", STREAM | {"train.steps": 8, "data.on_bad_row": "skip"})
    runs.finish(skipping)
    assert runs.steps_of(tmp_path / "other") == runs.steps_of(tmp_path / "run")


def test_a_large_file_is_streamed_by_itself_with_processes(tiny_llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The first step comes before most is tokenised, and what was used is the same as without processes."""
    monkeypatch.setattr(corpora, "STREAMED", 1 << 20)
    data = tmp_path / "large.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Question {n}" + "?" * 200, "completion": f"Answer {n}."}) + "\n" for n in range(8000)))
    assert data.stat().st_size > 2_000_000
    monkeypatch.setattr("tunesmith.data.corpus.stream.CHUNK", 8_000)
    monkeypatch.setattr("tunesmith.data.corpus.stream.BURST", 1)
    changes = {"train.steps": 2, "train.tokens_per_step": 5_000, "train.row_tokens": 2048, "data.max_length": 512}
    for workers in (2, 0):
        monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / f"cache-{workers}"))
        runs.finish(runs.settings(tiny_llama, data, tmp_path / str(workers), changes | {"data.workers": workers}))
    assert "stream: true" in (tmp_path / "2" / "run.yaml").read_text()
    assert runs.contents(tmp_path / "2") == runs.contents(tmp_path / "0")
    report = folder.read_json(tmp_path / "2" / "data.json")
    assert adds_up(report) and report["rows_read"] == 8000 and 40 < report["rows"] < 300


def test_a_stopped_run_of_other_data_is_refused(tiny_llama: Path, lines: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", lines.read_text().splitlines())
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, data, tmp_path / "run", STREAM), stop=runs.stop_after(2), tell=runs.quiet))
    write(data, lines.read_text().splitlines()[:-1])
    with pytest.raises(UserError, match="no longer what the run began with"):
        list(loop.resume(tmp_path / "run", tell=runs.quiet))


def test_how_far_it_is_is_told_now_and_then(monkeypatch: Any) -> None:
    clock, told = iter([0.0, 5.0, 12.0, 15.0, 200.0, 201.0]), list[str]()
    monkeypatch.setattr(corpora.time, "monotonic", lambda: next(clock))
    seen = corpora.how_far(told.append)
    for done in (10, 24, 30, 400, 1000):
        seen(done * 1_000_000, 1_000_000_000)
    assert told == ["tokenised 24 of 1,000 MB, about 8 min left", "tokenised 400 of 1,000 MB, about 5 min left"]
    assert next(clock, None) is None


def test_a_dry_run_says_of_which_rows_it_speaks(tiny_llama: Path, lines: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tunesmith.data.corpus.stream.FIRST", 5)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))  # chunks of other sizes stand in the module's
    found = decide(runs.settings(tiny_llama, lines, tmp_path / "run", STREAM), {}, runs.quiet)
    assert found.notes == ["21 rows are tokenised ahead of the run (data.stream): what is said of the data is of the first 5"]
