"""README.md shows what benchmarks/results says, and its words are the program's."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MACHINE: dict[str, Any] = {
    "cpu": "A CPU",
    "physical_cores": 2,
    "bf16_instructions": [],
    "memory_bytes": 16 * 10**9,
    "gpus": [],
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
COMMON: dict[str, Any] = {"measured": "2026-01-02", "machine": MACHINE, "threads": 2}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_was_measured(script: ModuleType) -> None:
    assert script.filled(README) == README, "results changed: run `python benchmarks/readme.py`"


def test_every_table_has_its_place(script: ModuleType) -> None:
    assert re.findall(r"<!-- bench:(\w+) -->", README) == [name for name in script.TABLES for _ in range(2)]


def test_results_without_a_table_are_not_forgotten(script: ModuleType) -> None:
    stems = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert stems <= set(script.TABLES), f"benchmarks/results: no table shows {sorted(stems - set(script.TABLES))}"


def test_a_miss_is_shown(script: ModuleType, tmp_path: Path) -> None:
    def contender(title: str, rate: float, over: float) -> dict[str, Any]:
        last = {"first_token_seconds": {"p50": 0.5, "p95": 2.0}, "between_tokens_seconds": {"p50": 0.0801, "p95": 0.2}}
        median = {"tokens_per_second": rate, "peak_memory_bytes": 1.5e9}
        return {"title": title, "rounds": [last], "median": median, "ours_8_over_this": over}

    contenders = {"ours_8": contender("Tunesmith", 80.4, 1), "vllm_8": contender("vLLM", 100.0, 0.804)}
    facts = {"clients": 16, "seconds": 40.0, "prompt_tokens": [8, 24], "answer_tokens": [48, 96], "contenders": contenders}
    (tmp_path / "serve.json").write_text(json.dumps(COMMON | facts))
    text = script.filled("<!-- bench:serve -->\nold\n<!-- bench:serve -->\n", tmp_path)
    assert "| vLLM | 100.0 | 0.80× | 0.50 s, 2.00 s | 80 ms, 200 ms | 1.50 GB |" in text
    assert "| Tunesmith | 80.4 |  | 0.50 s, 2.00 s | 80 ms, 200 ms | 1.50 GB |" in text
    assert "prompts of 8 to 24 tokens" in text and "no bfloat16 instructions" in text and "old" not in text
    assert script.filled(text, tmp_path) == text


def test_who_fails_and_whose_curve_differs_is_shown(script: ModuleType, tmp_path: Path) -> None:
    def contender(title: str, rate: float, agrees: bool = True) -> dict[str, Any]:
        median = {"tokens_per_second": rate, "peak_memory_bytes": 1.5e9, "seconds_to_first_step": 2.04}
        ratios = {"tokens_per_second": 300 / rate, "peak_memory_bytes": 0.5, "process_seconds": 1.0}
        gate = {"agrees": agrees, "why": "step 2: 1.5000, the reference has 1.9000", "largest": 0.2}
        return {"title": title, "median": median, "ours_over_this": ratios, "gate": gate, "share_of_roofline": 0.701}

    contenders = {
        "tunesmith": contender("Tunesmith", 300.0),
        "trl-default": contender("TRL", 60.0),
        "trl-best": contender("TRL, packed", 100.0, agrees=False),
        "axolotl-best": {"title": "Axolotl", "error": "a line\nno wheel | here"},
    }
    facts = {"documents": 64, "tokens": 14126, "learned_tokens": 11000, "rows_per_step": 16, "matmul_flops": 366e9, "one_in": 4}
    case = {"title": "LoRA", **facts, "contenders": contenders}
    found = {**COMMON, "suite": "cpu", "level": "full", "rounds": 3, "dtype": "float32", "cases": {"lora": case}}
    (tmp_path / "bench_cpu.json").write_text(json.dumps(found))
    text = script.block("bench_cpu", tmp_path)
    assert "| Tunesmith | 300 |  | 1.50 GB |  | 2.0 s | 70% | agrees |" in text
    assert "| TRL | 60 | 5.00× | 1.50 GB | 0.50× | 2.0 s | 70% | agrees |" in text
    assert "| TRL, packed | 100 | 3.00× | 1.50 GB | 0.50× | 2.0 s | 70% | differs: does not count |" in text
    assert "- TRL, packed: the curve differs: step 2: 1.5000" in text
    assert "| Axolotl | not measured, see below |" in text and "- Axolotl: no wheel   here" in text
    assert "14,126 tokens" in text and "366 GFLOP/s" in text and "one row in 4" in text and "medians of 3 rounds" in text


def test_what_a_gpu_cannot_do_is_shown(script: ModuleType, tmp_path: Path) -> None:
    probes = {
        "gemm": {"unit": "TFLOP/s", "results": {"qkv": 612.3, "fp8": None}, "whole": True},
        "nf4": {"unit": "GB/s", "results": {}, "error": "RuntimeError: no kernel", "whole": True},
    }
    (tmp_path / "gpu_probe.json").write_text(json.dumps({**COMMON, "probes": probes}))
    text = script.block("gpu_probe", tmp_path)
    assert "| gemm | qkv | 612.3 TFLOP/s |" in text and "|  | fp8 | cannot be done here |" in text
    assert "| nf4 |  | ended with RuntimeError: no kernel |" in text


def test_speed_and_scores_are_rendered(script: ModuleType, tmp_path: Path) -> None:
    median = {"tokens_per_second": 321.7, "share_of_matmul_rate": 0.71, "peak_memory_bytes": 1.7e9, "seconds_to_first_step": 9.04}
    (tmp_path / "speed.json").write_text(json.dumps({**COMMON, "rows": 64, "repeats": 3, "runs": {"lora": {"median": median}}}))
    assert "| lora | 322 | 71% | 1.70 GB | 9.0 s |" in script.block("speed", tmp_path)
    task = {
        "title": "T",
        "rows": 300,
        "commands": ["tunesmith train --data DATA/x"],
        "training": {"tokens": 199000, "loop_seconds": 1200},
        "before": {"scores": {"loss": 4.0444, "accuracy": 0.5}},
        "after": {"scores": {"loss": None, "accuracy": 0.4}},
        "difference": {"accuracy": {"value": -0.1, "interval": [-0.15, -0.05]}},
    }
    (tmp_path / "before_after.json").write_text(json.dumps({**COMMON, "tasks": {"t": task}}))
    text = script.block("before_after", tmp_path)
    assert "| T | loss | 4.04 | not finite |  | 199,000 tokens, 20 min |" in text
    assert "|  | accuracy | 50.0 % | 40.0 % | -10.0 (-15.0 to -5.0) |  |" in text
    assert "tunesmith train --data DATA/x" in text


def test_every_verb_is_shown() -> None:
    assert [verb for verb in cli.VERBS if f"tunesmith {verb}" not in README and f"make {verb}" not in README] == []


def test_the_quickstart_has_its_place() -> None:
    assert README.count("<!-- quickstart -->") == 2
