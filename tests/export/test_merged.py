from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import runs
from tests.conftest import write_byte_tokenizer
from tests.runs import own_cache  # noqa: F401
from tunesmith.export import bases, merged
from tunesmith.export.difference import Difference
from tunesmith.export.live import Apart
from tunesmith.export.merge import Merged


@pytest.fixture(scope="module")
def low(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose file is bfloat16, as nearly all are."""
    folder = tmp_path_factory.mktemp("low") / "model"
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def reported(run: Path, out: Path, **named: Any) -> merged.Report:
    found = bases.trial(str(run), **named)
    return merged.prove(found, out, bases.write(found, out))


def test_what_rounding_alone_costs(low: Path, tmp_path: Path) -> None:
    """The base's file holds bfloat16: the merged one does too, and nothing else is lost."""
    data = runs.write_rows(tmp_path / "rows.jsonl")
    runs.finish(runs.settings(low, data, tmp_path / "run", {"train.learning_rate": 0.05}))
    report = reported(tmp_path / "run", tmp_path / "out")
    facts, kl = report.facts(), report.apart.decides.mean_kl
    assert facts["rounding"]["to"] == "bfloat16" and facts["rounding"]["rows"]["mean_kl"] == kl > 1e-8
    assert report.sentences(tmp_path / "out")[-1] == f"rounding to the file's bfloat16 alone costs KL {kl:.2e} nats, all of that"


def test_rounding_is_told_apart_from_quantisation(low: Path, tmp_path: Path) -> None:
    """Over the original weights after NF4: what NF4 changed is most of it, and known without the file's rounding."""
    data = runs.write_rows(tmp_path / "rows.jsonl")
    runs.finish(runs.settings(low, data, tmp_path / "run", {"train.learning_rate": 0.05, "method": {"name": "qlora", "rank": 4}}))
    report = reported(tmp_path / "run", tmp_path / "out", base="original")
    rounding, whole = report.rounding.decides.mean_kl, report.apart.decides.mean_kl
    assert 1e-9 < rounding < whole and report.facts()["rounding"]["rows"]["mean_kl"] == rounding
    assert any("rounding to the file's" in sentence for sentence in report.sentences(tmp_path / "out")) == (rounding > 0.1 * whole)
    assert "--base original was asked for" in report.sentences(tmp_path / "out")[1]


def test_nothing_is_said_of_rounding_that_hardly_counts(tmp_path: Path) -> None:
    small, large = (Apart(Difference(1, 0.0, kl, 1.0), None) for kl in (0.001, 0.02))
    trial: Any = SimpleNamespace(apart={}, beside=None, kind="original", trained_over="nf4")
    report = merged.Report(trial, Merged(tmp_path, 1, 2), large, small, "bfloat16")
    assert len(report.sentences(tmp_path)) == 1
    assert report.facts()["rounding"]["prompts"]["mean_kl"] == 0.001, "it stands in merge.json all the same"
    assert "5% of that" not in "".join(report.sentences(tmp_path))
    told = replace(report, rounding=Apart(Difference(1, 0.0, 0.01, 1.0), None)).sentences(tmp_path)
    assert told[-1] == "rounding to the file's bfloat16 alone costs KL 1.00e-02 nats, 50% of that"
    assert "rounding" not in replace(report, file="").facts()
