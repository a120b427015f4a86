"""The benchmarks' suite: its tables, its memory, its gate and its arithmetic. Nothing is trained and nothing installed here."""

import importlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = (
    "measure",
    "cases",
    "contenders",
    "environments",
    "gate",
    "roofline",
    "ledger",
    "rows",
    "job",
    "shapes",
    "reference",
    "bench",
    "gpu_probe",
)


@pytest.fixture(scope="module")
def suite() -> Iterator[Any]:
    """The scripts, which import one another by their plain names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.syspath_prepend(str(BENCHMARKS / "peers"))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in (*NAMES, "record")})
    for name in (*NAMES, "record"):
        sys.modules.pop(name, None)


def run_line(case: str, contender: str, turn: int = 0, **figures: Any) -> dict[str, Any]:
    plain = {"tokens_per_second": 100.0, "peak_memory_bytes": 2e9, "process_seconds": 10.0, "losses": [2.0]}
    gate = {"agrees": True, "why": "", "largest": 0.0}
    return {"kind": "run", "level": "full", "case": case, "contender": contender, "round": turn, "gate": gate} | plain | figures


# --- the tables ---


def test_every_case_has_contenders_rows_and_a_model(suite: Any) -> None:
    for name, case in suite.cases.CASES.items():
        assert set(case.contenders) <= set(suite.contenders.CONTENDERS), name
        assert suite.job.is_ours(case.contenders[0]), f"{name}: the first is what the others are compared with"
        assert case.rows in suite.rows.MAKERS, name
        assert case.model.startswith("builtin:") or case.model in suite.shapes.SHAPES, name
        assert {"smoke", suite.bench.LEVELS[case.suite]} <= set(case.counts), name
    assert {case.suite for case in suite.cases.CASES.values()} == {"cpu", "gpu"}


def test_every_peer_has_a_script_pins_and_both_configurations(suite: Any) -> None:
    configurations: dict[str, set[str]] = {}
    for name, contender in suite.contenders.CONTENDERS.items():
        assert (BENCHMARKS / "peers" / contender.script).is_file(), name
        if contender.environment is not None:
            assert suite.environments.PINS[contender.environment], name
            configurations.setdefault(contender.script, set()).add(contender.configuration)
    assert configurations.pop("torchtune_sft.py") == {"best"}
    assert all(found == {"default", "best"} for found in configurations.values()), configurations
    used = {name for case in suite.cases.CASES.values() for name in case.contenders}
    assert used == set(suite.contenders.CONTENDERS), "a contender that no case measures"


def test_peers_get_whole_rows_of_a_smaller_step_only_where_the_case_says_so(suite: Any) -> None:
    case = suite.cases.CASES["prefix"]
    assert case.count("quick", ours=True) == 54 and case.count("quick", ours=False) == 6
    assert case.per_step("quick", ours=True) == 54 and case.per_step("quick", ours=False) == 6
    assert suite.cases.CASES["lora"].count("full", ours=False) == 64


def test_shapes_are_those_of_the_models_they_are_named_after(suite: Any) -> None:
    from tunesmith.models.load import skeleton

    found = {}
    for name, billions in (
        ("llama-3.1-8b", 8.03),
        ("qwen3-8b", 8.19),
        ("llama-3.3-70b", 70.55),
        ("llama-3.2-1b", 1.236),
        ("smollm2-135m", 0.1345),
    ):
        kind, values = suite.shapes.SHAPES[name]
        config = getattr(importlib.import_module("transformers"), kind)(**values)
        found[name] = sum(parameter.numel() for parameter in skeleton(config).parameters()) / 1e9
        assert found[name] == pytest.approx(billions, rel=0.002), name


# --- the memory ---


def test_a_second_call_goes_on(suite: Any, tmp_path: Path) -> None:
    log, cases = tmp_path / "x.jsonl", {"lora": suite.cases.CASES["lora"]}
    order = [contender for _, contender, turn in suite.ledger.pending(cases, 2, []) if turn == 1]
    everyone = list(cases["lora"].contenders)
    assert order == everyone[1:] + everyone[:1], "another order each round"
    suite.ledger.append(log, run_line("lora", "tunesmith", 0))
    suite.ledger.append(
        log, {"kind": "run", "level": "full", "case": "lora", "contender": "trl-best", "round": 0, "error": "no such thing"}
    )
    left = list(suite.ledger.pending(cases, 2, suite.ledger.read(log)))
    assert ("lora", "tunesmith", 0) not in left and ("lora", "tunesmith", 1) in left
    assert not [each for each in left if each[1] == "trl-best"], "what failed is shown, not tried for ever"
    suite.ledger.forget(log, {"trl-best"})
    assert ("lora", "trl-best", 0) in list(suite.ledger.pending(cases, 2, suite.ledger.read(log)))
    assert suite.ledger.read(log, "quick") == []


def test_a_line_that_a_kill_cut_short_is_not_read_and_not_gone_on_with(suite: Any, tmp_path: Path) -> None:
    log = tmp_path / "x.jsonl"
    suite.ledger.append(log, run_line("lora", "tunesmith", 0))
    with log.open("a") as file:
        file.write('{"kind": "run", "ca')
    assert len(suite.ledger.read(log)) == 1
    suite.ledger.append(log, run_line("lora", "tunesmith", 1))
    assert [line["round"] for line in suite.ledger.read(log)] == [0, 1]


def test_figures_of_another_machine_are_refused(suite: Any, tmp_path: Path) -> None:
    log, machine = tmp_path / "x.jsonl", {"cpu": "one", "torch": "2", "memory_bytes": 5}
    suite.ledger.machine_of(log, machine)
    suite.ledger.machine_of(log, machine | {"memory_bytes": 6})
    with pytest.raises(SystemExit, match=r"another machine.*cpu"):
        suite.ledger.machine_of(log, machine | {"cpu": "two"})


def test_ratios_are_medians_within_rounds(suite: Any) -> None:
    ours = [
        run_line("lora", "tunesmith", turn, tokens_per_second=rate, flops_per_token=2.0) for turn, rate in enumerate((400.0, 100.0, 300.0))
    ]
    theirs = [
        run_line("lora", "trl-best", turn, tokens_per_second=rate, peak_memory_bytes=4e9) for turn, rate in enumerate((100.0, 50.0, 50.0))
    ]
    roof = {"kind": "roofline", "level": "full", "model": "m", "directions": {"forward": 1000.0, "input": 1000.0, "weight": 500.0}}
    facts = {"kind": "case", "case": "lora", "level": "full", "model": "m", "documents": 4, "tokens": 9, "learned_tokens": 5}
    failed = {"kind": "run", "case": "lora", "contender": "trl-default", "round": 0, "error": "no wheel"}
    case = suite.ledger.content([facts, roof, *ours, *theirs, failed])["cases"]["lora"]
    found = case["contenders"]
    assert found["trl-best"]["ours_over_this"] == {"tokens_per_second": 4.0, "peak_memory_bytes": 0.5, "process_seconds": 1.0}
    assert found["tunesmith"]["median"]["tokens_per_second"] == 300.0
    assert found["tunesmith"]["share_of_roofline"] == pytest.approx(300 * 2 / 1000)
    assert found["trl-default"]["error"] == "no wheel" and "median" not in found["trl-default"]
    assert case["tokens"] == 9 and len(found["trl-best"]["rounds"]) == 3


def test_one_round_that_differs_is_what_the_table_says(suite: Any) -> None:
    verdicts = [{"agrees": True, "why": "", "largest": 0.001}, {"agrees": False, "why": "step 2", "largest": 0.5}]
    assert suite.ledger.worst(verdicts)["why"] == "step 2"
    assert not suite.ledger.worst([verdicts[0], None])["agrees"], "a run without its reference does not count yet"


def test_a_run_that_waits_for_its_reference_is_judged_first(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, place = tmp_path / "x.jsonl", suite.job.Place(tmp_path, tmp_path, "full", "cpu", "float32", 1)
    for contender in ("tunesmith", "trl-best"):
        suite.ledger.append(log, run_line("lora", contender, gate=None))
    (tmp_path / "lora-tunesmith-0.job.json").write_text("{}")
    verdict = {"agrees": True, "why": "", "largest": 0.0}
    monkeypatch.setattr(suite.job, "judged", lambda *_: verdict)
    suite.bench.judge_later(log, place, math.inf)
    [line] = suite.ledger.read(log)  # the record of the other is gone
    assert line["contender"] == "tunesmith" and line["gate"] == verdict


def test_full_tuning_is_shown_against_three_products(suite: Any) -> None:
    directions = {"forward": 100.0, "input": 100.0, "weight": 50.0}
    assert suite.roofline.rate(directions, full=False) == pytest.approx(100.0)
    assert suite.roofline.rate(directions, full=True) == pytest.approx(75.0)


def test_the_roofline_measures_every_direction(suite: Any) -> None:
    import torch

    found = suite.roofline.measured(Counter({(8, 16): 3, (16, 8): 1}), 4, torch.float32, torch.device("cpu"), 0.01)
    assert set(found) == {"forward", "input", "weight"} and all(rate > 0 for rate in found.values())
    x, w, dy = torch.randn(4, 16), torch.randn(8, 16), torch.randn(4, 8)
    shapes = {name: tuple(product(x, w, dy).shape) for name, product in suite.roofline.DIRECTIONS.items()}
    assert shapes == {"forward": (4, 8), "input": (4, 16), "weight": (8, 16)}


# --- the gate ---


@pytest.mark.parametrize(
    ("losses", "reference", "agrees"),
    [
        ([2.0, 1.9], [[2.0, 1.9]], True),
        ([2.003, 1.9], [[2.0, 1.9]], True),
        ([2.01, 1.9], [[2.0, 1.9]], False),  # nothing is trained at the first step: it must be the same number
        ([2.0, 1.93], [[2.0, 1.9]], False),
        ([2.0, 1.93], [[2.0, 1.9], [2.0, 1.92]], True),  # what the seeds differ by is noise
        ([2.0], [[2.0, 1.9]], False),
        ([2.0, math.nan], [[2.0, 1.9]], False),
        ([2.0, None], [[2.0, 1.9]], False),
        ([2.0, 1.9, 9.0], [[2.0, 1.9]], True),  # the reference goes no further
        ([], [[2.0]], False),
    ],
)
def test_a_curve_is_held_against_the_reference(suite: Any, losses: list[float], reference: list[list[float]], agrees: bool) -> None:
    verdict = suite.gate.judge(losses, reference, "float32")
    assert verdict.agrees is agrees and verdict.why


def test_a_random_head_is_given_its_noise(suite: Any) -> None:
    assert not suite.gate.judge([4.4], [[4.3], [4.3]], "float32").agrees
    assert suite.gate.judge([4.4], [[4.3], [4.3]], "float32", noise=0.08).agrees


def test_a_run_that_left_documents_out_does_not_count(suite: Any, tmp_path: Path) -> None:
    documents = [{"ids": [1, 2, number], "learned": [0, 1, 1]} for number in range(3, 7)]
    counted = suite.rows.Counted(4, 40, 20, (1, 2), (), tuple(tuple(each["ids"]) for each in documents))
    with_line_break = {"ids": [1, 2, 5, 198], "learned": [0, 1, 1, 1]}
    steps = [{"loss": 2.0, "at": 12.0, "documents": documents[:2]}, {"loss": 1.9, "at": 14.0, "documents": [with_line_break]}]
    record = {"loaded": 9.0, "began": 10.0, "steps": steps}
    job = {"device": "cpu", "out": str(tmp_path)}
    found = suite.job.figures(record, counted, 0.0, job)
    assert found["documents_seen"] == 0.75 and found["tokens_per_second"] == pytest.approx(40 * 0.75 / 4)
    assert found["seconds_to_first_step"] == 3.0 and found["seconds_from_start_to_first_step"] == 12.0
    (tmp_path / "record.json").write_text(json.dumps(record))
    place = suite.job.Place(tmp_path, tmp_path, "full", "cpu", "float32", 1)
    verdict = suite.job.judged(found, suite.cases.CASES["lora"], job, place, 9.0)
    assert verdict == {"agrees": False, "why": "it saw 75.0% of the documents once, and 0 that are not among them", "largest": None}
    assert suite.job.recognised([documents[0]] * 2 + [{"ids": [9]}], counted) == (1, 2)


def test_a_gpus_first_step_is_not_in_its_speed(suite: Any) -> None:
    counted = suite.rows.Counted(2, 30, 10, (), (), ((1,) * 20, (1,) * 10))
    documents = [[{"ids": [1] * 20, "learned": [1] * 20}], [{"ids": [1] * 10, "learned": [1] * 10}]]
    steps = [{"loss": 2.0, "at": 50.0 + 2 * number, "documents": each} for number, each in enumerate(documents)]
    found = suite.job.figures({"loaded": 1.0, "began": 2.0, "steps": steps}, counted, 0.0, {"device": "cuda"})
    assert found["tokens_per_second"] == pytest.approx(10 / 2)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's affair
def test_the_reference_is_the_plain_computation(suite: Any, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    documents = [{"ids": [3, 4, 5, 6], "learned": [0, 0, 1, 1]}, {"ids": [7, 8, 9], "learned": [0, 1, 1]}]
    task = {
        "model": str(tiny_llama), "method": "lora", "quantize": False, "labels": [], "rank": 2, "alpha": 4, "learning_rate": 1e-2,
        "device": "cpu", "total_steps": 2, "steps": [documents, documents],
    }  # fmt: skip
    first, second = suite.reference.curve(task, 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    total = 0.0
    for document in documents:
        logits_TV = model(input_ids=torch.tensor([document["ids"]])).logits[0, :-1].log_softmax(-1)
        total -= sum(logits_TV[at - 1, document["ids"][at]].item() for at, learned in enumerate(document["learned"]) if learned)
    assert first == pytest.approx(total / 4, rel=1e-6) and second < first


# --- what is recorded, and what went wrong ---


def test_packing_and_padding_are_undone(suite: Any) -> None:
    ids = [1, 2, 5, 6, 1, 2, 7, 8, 0, 0]
    labels = [-100, -100, 5, 6, -100, -100, -100, 8, -100, -100]
    found = suite.record.parted(ids, labels, [1, 2])
    assert found == [{"ids": [1, 2, 5, 6], "learned": [0, 0, 1, 1]}, {"ids": [1, 2, 7, 8], "learned": [0, 0, 0, 1]}]


def test_a_peer_that_cannot_be_installed_is_named_with_its_error(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(command: list[str], **named: Any) -> None:
        calls.append(command)
        raise subprocess.CalledProcessError(1, command, stderr="a line\nERROR: No matching distribution found for axolotl\n")

    monkeypatch.setattr(suite.environments.subprocess, "run", run)
    place = suite.job.Place(tmp_path, tmp_path / "peers", "gpu", "cuda", "bfloat16", 1)
    case, counted = suite.cases.CASES["8b-lora"], suite.rows.Counted(1, 1, 1, (), ())
    found = [suite.job.contender_run("axolotl-best", case, {"out": str(tmp_path / "x")}, counted, place, 9.0) for _ in range(2)]
    assert found[0]["error"].endswith("ERROR: No matching distribution found for axolotl") and found[0] == found[1]
    assert len(calls) == 1, "an error is kept, not tried again at every case"


def test_an_error_names_no_folder_of_this_machine(suite: Any) -> None:
    told = suite.environments.told("Traceback\n" + "\n".join(f"  File {Path.cwd()}/peers/x.py, line {n}" for n in range(30)))
    assert str(Path.cwd()) not in told and "x.py" in told and len(told.splitlines()) == suite.environments.TAIL


def test_a_program_is_ended_at_its_limit(suite: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(suite.measure.TooLong, match="stopped after"):
        suite.measure.run(command, cwd=tmp_path, threads=1, log=tmp_path / "x.log", limit=0.5)


def test_made_up_rows_are_of_the_lengths_that_the_case_says(suite: Any) -> None:
    words = ["tree", "house", "river"]
    rows = suite.rows.shared_prefix(3, None, words, 928)
    assert len({row["system"] for row in rows}) == 1 and len(rows[0]["system"].split()) == suite.rows.SYSTEM_TOKENS - 4
    lengths = [len((row["instruction"] + " " + row["output"]).split()) for row in suite.rows.chats(200, None, words, 8000)]
    assert 300 < sorted(lengths)[100] < 900 and max(lengths) <= 4000
    assert suite.rows.chats(5, None, words, 8000) == suite.rows.chats(5, None, words, 8000)
    short = [len((row["instruction"] + " " + row["output"]).split()) for row in suite.rows.chats(200, None, words, 900)]
    assert max(short) <= 900, "no row is longer than a packed row, or peers would cut or drop it"


def test_the_jobs_of_all_contenders_of_a_case_agree(suite: Any, tmp_path: Path) -> None:
    counted = suite.rows.Counted(64, 14000, 9000, (1, 2, 3), ())
    place = suite.job.Place(tmp_path, tmp_path, "full", "cpu", "float32", 2)
    case = suite.cases.CASES["lora"]
    jobs = [suite.job.job_for(name, case, tmp_path / "rows.json", tmp_path, counted, place, tmp_path / name) for name in case.contenders]
    for key in set(jobs[0]) - {"out", "configuration", "settings"}:
        assert len({json.dumps(job[key]) for job in jobs}) == 1, key
    assert jobs[0]["tokens_per_step"] == 3500 and jobs[0]["packed_per_step"] == 3 and jobs[0]["alpha"] == 16


def test_settings_of_ours_are_settings(suite: Any) -> None:
    from tunesmith.config import table

    known = {row.key for row in table()}
    for contender in suite.contenders.CONTENDERS.values():
        assert {setting.partition("=")[0] for setting in contender.settings} <= known


def test_smoke_takes_the_tiny_model(suite: Any) -> None:
    arguments = SimpleNamespace(suite="cpu", cases="", only="trl-best")
    chosen = suite.bench.chosen_cases(arguments, "smoke")
    assert {case.model for case in chosen.values()} == {"tiny"}
    assert chosen["lora"].contenders == ("tunesmith", "trl-best")


def test_a_probe_is_ended_in_time_and_keeps_its_error(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = suite.gpu_probe
    named = [line.split()[1] for line in probe.__doc__.splitlines() if line[:1].isdigit()]
    assert named == list(probe.PROBES) and len(named) == 8

    def figures() -> Iterator[tuple[str, float]]:
        yield "one", 1.0
        yield "two: not on this card", math.nan
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(probe.PROBES, "nf4", (figures, "GB/s"))
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(probe.torch.cuda, name, lambda: None)
    assert probe.probed("nf4", -math.inf) == {"unit": "GB/s", "results": {"one": 1.0}, "whole": False}
    found = probe.probed("nf4", math.inf)
    assert found["results"] == {"one": 1.0, "two: not on this card": None} and found["error"] == "RuntimeError: no such kernel"


def test_scripts_are_short() -> None:
    for path in BENCHMARKS.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.name
