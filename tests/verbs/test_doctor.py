import argparse
import json
from pathlib import Path

import pytest

from tunesmith.verbs import doctor
from tunesmith.verbs.doctor import CHECKS, Finding, examine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, and no measuring."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.hardware.matmul_flops", lambda device, dtype, m, n, k: 2e9 if "float32" in str(dtype) else 1e9)
    monkeypatch.setattr("tunesmith.hardware.cpu_flags", lambda: set())


def said(name: str) -> Finding:
    return next(finding for finding in examine() if finding.name == name)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(words))


def test_every_line_has_its_state_and_a_cure_where_one_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    names = [line["name"] for line in found]
    assert names[:3] == ["python", "torch", "transformers"]
    assert {"device", "cores", "memory", "matrix product", "NF4", "cache", "built-in model", "hub"} <= set(names)
    assert all(line["state"] == "ok" or line["cure"] for line in found)
    assert run() == 0
    assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_nf4_is_tried() -> None:
    assert said("NF4").state == "ok" and "gives back" in said("NF4").text


def test_wrong_nf4_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional
    import torch

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda codes, state: torch.zeros(64, 64))
    assert said("NF4").state == "missing" and run() == 2


def test_the_cache_and_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("cache").state == "ok" and "make setup" in said("built-in model").cure
    (tmp_path / "cache/models/smollm2-135m-instruct-v1").mkdir(parents=True)
    assert said("built-in model").state == "ok"
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    assert said("cache").state == "missing" and "TUNESMITH_CACHE" in said("cache").cure


def test_a_dtype_that_measures_faster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("matrix product").state == "ok" and "float32 2 GFLOP/s, bfloat16 1 GFLOP/s" in said("matrix product").text
    monkeypatch.setattr("tunesmith.hardware.cpu_flags", lambda: {"avx512_bf16"})
    assert said("matrix product").cure == "float32 was faster here: model.dtype=float32"


def test_the_hub_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert said("hub").cure == "unset HF_HUB_OFFLINE"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert "not tried" in said("hub").text


def test_a_broken_check_is_a_line_like_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(CHECKS, "cores", lambda: 1 / 0)
    assert run() == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]
    assert "ZeroDivisionError" in line
