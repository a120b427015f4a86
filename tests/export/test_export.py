"""The order of an export: checked before anything is read, heard before anything is written, and what the proof says is kept."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.runs import quiet
from tunesmith.errors import ProofFailed, UserError
from tunesmith.export import export as exporting
from tunesmith.export.export import check, export
from tunesmith.export.target import Options, Proof
from tunesmith.methods.tuning import Tuning


def source(name: str = "clerk", base: str = "base") -> Any:
    return SimpleNamespace(
        name=name, given=name, base=Path(base), base_name=base, adapter=Path("adapter"), tuning=Tuning({}, {}), quantized=False
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order, with a target that says so."""
    happened: list[str] = []

    def write(sources: Any, folder: Path, options: Any, tell: Any) -> dict[str, Any]:
        happened.append("write")
        (folder / "file").write_text("x")
        return {"bytes": 1}

    def prove(sources: Any, truths: Any, folder: Path, options: Any, tell: Any) -> Proof:
        happened.append("prove")
        return Proof("judge 1.0", {"mean_kl": 0.0}, tuple(failures))

    def truth(source: Any, merged: bool, tell: Any) -> Any:
        happened.append(f"truth {merged}")
        return SimpleNamespace(from_trained={"prompts": {"mean_kl": 0.5}}, logits=(torch.zeros(1, 1),))

    failures: list[str] = []
    module = SimpleNamespace(SEVERAL=False, QUANTIZE=("q8",), check=lambda *given: happened.append("check"), write=write, prove=prove)
    module.merges = lambda sources, options: True
    module.can_prove = lambda options: None
    monkeypatch.setitem(exporting.TARGETS, "judged", module)
    monkeypatch.setattr(exporting, "truth_of", truth)
    monkeypatch.setattr(exporting, "failures_of_the_judge", failures, raising=False)
    return happened


def fill(out: Path, write: Any) -> None:
    out.mkdir()
    write(out)


def test_answers_are_heard_before_anything_is_written(done: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = export("judged", [source()], out, Options(quantize="q8"), verify=True, fill=fill, tell=quiet, fitted={"clerk": {"rank": 4}})
    assert done == ["truth True", "write", "prove"]
    assert exported.proof is not None and exported.proof.failures == ()
    facts = json.loads((out / "export.json").read_text())
    assert facts == json.loads(json.dumps(exported.facts, default=str))
    assert facts["written"] == {"bytes": 1} and facts["options"] == {"quantize": "q8"} and facts["fitted"] == {"clerk": {"rank": 4}}
    assert facts["from_trained"] == {"clerk": {"prompts": {"mean_kl": 0.5}}}
    assert facts["proof"] == {"opened_by": "judge 1.0", "figures": {"mean_kl": 0.0}, "failures": [], "notes": []}


def test_a_failed_proof_leaves_the_folder_and_says_why(done: list[str], tmp_path: Path) -> None:
    exporting.failures_of_the_judge.append("it says no")  # type: ignore[attr-defined]
    with pytest.raises(ProofFailed, match=r"judge 1\.0 opened it, and it is not the model that was trained") as failed:
        export("judged", [source()], tmp_path / "out", Options(), verify=True, fill=fill, tell=quiet)
    assert "it says no" in str(failed.value) and failed.value.exit_code == 3
    assert json.loads((tmp_path / "out" / "export.json").read_text())["proof"]["failures"] == ["it says no"]
    assert (tmp_path / "out" / "file").exists()


def test_a_proof_that_could_not_be_made_is_no_proof(done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*given: Any) -> Proof:
        raise UserError("judge is not installed")

    monkeypatch.setattr(exporting.TARGETS["judged"], "prove", absent)
    with pytest.raises(UserError, match="judge is not installed"):
        export("judged", [source()], tmp_path / "out", Options(), verify=True, fill=fill, tell=quiet)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["proof"] == "it could not be made: judge is not installed"


def test_who_could_not_prove_it_says_so_before_anything_is_heard(done: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(options: Options) -> None:
        raise UserError("judge is not installed")

    monkeypatch.setattr(exporting.TARGETS["judged"], "can_prove", absent)
    with pytest.raises(UserError, match="judge is not installed"):
        export("judged", [source()], tmp_path / "out", Options(), verify=True, fill=fill, tell=quiet)
    assert done == [] and not (tmp_path / "out").exists()
    export("judged", [source()], tmp_path / "out", Options(), verify=False, fill=fill, tell=quiet)
    assert done == ["write"]


def test_without_a_proof_nothing_is_loaded(done: list[str], tmp_path: Path) -> None:
    export("judged", [source()], tmp_path / "out", Options(), verify=False, fill=fill, tell=quiet)
    assert done == ["write"] and json.loads((tmp_path / "out" / "export.json").read_text())["proof"] == "left out: --no-verify"


def test_all_that_does_not_fit_is_said_at_once(done: list[str]) -> None:
    options = Options(quantize="q9", adapter_only=True, keep_base=True, vllm_python="python")
    with pytest.raises(UserError) as refused:
        check("judged", [source("a"), source("a", "other")], options)
    told = "\n".join(refused.value.problems)
    for part in (
        "--quantize q9",
        "it takes q8",
        "--adapter-only is for --to gguf",
        "--keep-base puts",
        "--vllm-python is for the proof of --to vllm",
        "takes one DIR",
        "of one base",
        "called a",
    ):
        assert part in told
    assert done == [], "the target itself was not asked"
    check("judged", [source()], Options(quantize="q8"))
    assert done == ["check"]


def test_names_that_stand_in_commands(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.TARGETS["judged"], "SEVERAL", True)
    check("judged", [source("clerk-2.1_b"), source("other")], Options())
    for odd in ("my clerk", "a;b", "a=b", "-x", "a,b"):
        with pytest.raises(UserError, match="becomes a name in commands"):
            check("judged", [source(odd)], Options())
