import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli, config, hardware
from tunesmith.train import checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = ["model.dtype=float32", "train.threads=1", "train.learning_rate=2e-4"]
QUICK += ["train.steps=4", "train.tokens_per_step=200", "method.rank=4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the verb. Do not write into it."""
    out = tmp_path_factory.mktemp("done") / "run"
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(out), *QUICK]) == 0
    return out


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


# --- the ways through ---


def test_the_result_is_one_line_and_the_folder_is_whole(
    tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(out), *QUICK]) == 0
    result, progress = said(capsys)
    assert re.fullmatch(rf"{out}: 4 steps, loss \d\.\d{{4}}, [\d,]+ tokens in \d+ s \([\d,]+ tokens/s\), peak memory \d\.\d\d GB\n", result)
    assert f"next: tunesmith chat {out} --compare" in progress and "step 4/4" in progress
    names = {"run.yaml", "plan.json", "data.json", "events.jsonl", "adapter", "checkpoints", "loss.png", "README.md"}
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == names


def test_a_dry_run_writes_nothing_and_its_figures_are_the_plan_s(
    done: Path, tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(out), *QUICK, "--dry-run"]) == 0
    shown, _ = said(capsys)
    assert not any(tmp_path.iterdir())
    plan, report = json.loads((done / "plan.json").read_text()), json.loads((done / "data.json").read_text())
    assert f"{plan['total_parameters']:,} parameters, float32 on cpu" in shown
    assert f"lora: {plan['trainable_parameters']:,} trainable parameters" in shown
    assert f"steps    {plan['steps']} of about 200 tokens, {plan['tokens']:,} tokens in all" in shown
    assert f"{report['documents']} documents, {report['tokens']:,} tokens, {report['learned_tokens']:,} learned" in shown
    assert f"writes   {out}/: run.yaml" in shown


def test_a_dry_run_says_that_the_folder_is_taken(done: Path, tiny_llama: Path, data: Path, capsys: Any) -> None:
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(done), *QUICK, "--dry-run"]) == 2
    assert "already holds a run" in said(capsys)[1]


def test_the_printed_settings_are_the_same_run(done: Path, tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--model", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / "run"), *QUICK]
    assert cli.main(["train", *words, "--print-config"]) == 0
    (tmp_path / "again.yaml").write_text(said(capsys)[0])
    assert config.load(tmp_path / "again.yaml").run.train.steps == 4
    assert cli.main(["train", str(tmp_path / "again.yaml")]) == 0
    assert runs.contents(tmp_path / "run") == runs.contents(done)


def test_run_yaml_of_a_finished_run_trains_again_to_the_same(done: Path, tmp_path: Path) -> None:
    assert cli.main(["train", str(done / "run.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert runs.contents(tmp_path / "run") == runs.contents(done)
    assert runs.steps_of(tmp_path / "run") == runs.steps_of(done)
    kept, again = config.load(done / "run.yaml").run, config.load(tmp_path / "run" / "run.yaml").run
    assert again == kept.model_copy(update={"out": str(tmp_path / "run")})


def test_run_yaml_says_where_settings_came_from(done: Path) -> None:
    lines = (done / "run.yaml").read_text().splitlines()
    assert "  rank: 4  # method.rank=4" in lines and any(re.fullmatch(r"  device: cpu  # auto: this machine", line) for line in lines)
    assert yaml.safe_load("\n".join(lines))["train"]["steps"] == 4


def test_a_normal_run_in_a_process_of_its_own(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """stdout has results only; stderr has our own lines only, and nothing of the libraries' warnings."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("TRANSFORMERS_", "HF_HUB_DISABLE", "TOKENIZERS_"))
    }
    words = ["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / "run"), *QUICK, "--then", "merge"]
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = done.stdout.splitlines()
    assert [line.split(":")[0] for line in results] == [str(tmp_path / "run"), str(tmp_path / "run" / "merged")]
    ours = r"… (loading .*|reading and tokenising the data|asking the adapter)|run: 4 steps, .* GFLOP/s measured|step [14]/4  loss .*left"
    assert [line for line in done.stderr.splitlines() if not re.fullmatch(ours, line)] == []
    assert (tmp_path / "run/merged/model.safetensors").is_file() and (tmp_path / "run/merge.json").is_file()


# --- bad input: exit 2, one clear message, nothing lost ---


def file(content: str, name: str = "rows.jsonl") -> Callable[[Path], list[str]]:
    """Words that train on a file of that content."""

    def words(place: Path) -> list[str]:
        (place / name).write_text(content)
        return ["--data", str(place / name)]

    return words


def pickled(place: Path) -> list[str]:
    (place / "pickled").mkdir()
    (place / "pickled" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (place / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (place / "pickled" / "tokenizer.json").write_text("{}")
    return ["--model", str(place / "pickled")]


def run_file(place: Path) -> list[str]:
    (place / "run.yaml").write_text("train:\n  steps: 4\n  optimiser: adamw\ndata:\n  max_length: long\n")
    return [str(place / "run.yaml")]


def taken(place: Path) -> list[str]:
    (place / "taken").mkdir()
    (place / "taken" / "run.yaml").write_text("")
    return ["--out", str(place / "taken")]


def foreign(place: Path) -> list[str]:
    (place / "foreign").mkdir()
    (place / "foreign" / "thesis.tex").write_text("")
    return ["--out", str(place / "foreign")]


def behind_a_file(place: Path) -> list[str]:
    (place / "a-file").write_text("")
    return ["--out", str(place / "a-file" / "run")]


ROLE = '{"messages": [{"role": "usr", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "missing file": (lambda place: ["--data", str(place / "none.jsonl")], r"none\.jsonl: no such file"),
    "empty file": (file(""), r"rows\.jsonl.*empty"),
    "wrong format": (file("{'prompt': 'a'}\n{'prompt': 'b'}\n"), r"rows\.jsonl:1"),
    "shape nobody knows": (file('{"left": 1, "right": 2}\n'), r"rows\.jsonl.*(left|columns)"),
    "unknown role": (file(ROLE), r"rows\.jsonl:1: .*usr"),
    "unknown model": (lambda place: ["--model", str(place / "none")], r"none: no such folder or file"),
    "pickle-only model": (pickled, r"pytorch_model\.bin, a pickle"),
    "full over nf4": (lambda place: ["--method", "full", "model.quantize=nf4"], r"NF4 codes have no gradient"),
    "unknown key": (lambda place: ["train.stepz=3"], r"train\.stepz: no such setting; did you mean 'steps'\?"),
    "unknown method": (lambda place: ["--method", "lora2"], r"no method 'lora2'; did you mean 'lora'\?"),
    "keys of a run file": (
        run_file,
        r"(?s)run\.yaml:5: data\.max_length.*run\.yaml:3: train\.optimiser: no such setting; did you mean 'optimizer'",
    ),
    "target that is not there": (lambda place: ["method.targets=[fc1]"], r"no linear layer fc1 in this model; roles: q k v o gate up down"),
    "folder with a run": (taken, r"already holds a run .*: go on with `tunesmith resume"),
    "folder with something else": (foreign, r"foreign is not empty and holds no run; take another --out"),
    "folder that cannot be made": (behind_a_file, r"a-file/run: cannot be written \(.*\); take another --out"),
    "adapter that is none": (lambda place: [f"model.adapter={place}"], r"neither a run folder nor an adapter folder"),
    "whole model and merge": (
        lambda place: ["--method", "full", "--then", "merge"],
        r"--then merge: method full already gives a whole model",
    ),
    "paged optimizer on a CPU": (
        lambda place: ["train.optimizer=paged_adamw_8bit"],
        r"train\.optimizer: paged_adamw_8bit .* adamw_8bit or adamw",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD[name]
    words = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    given = ["--model", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / "run"), *QUICK, *words]
    if "--method" in words:
        given.remove("method.rank=4")
    code = cli.main(["train", *given])
    out, err = said(capsys)
    assert code == 2, err
    problem = "\n".join(line for line in err.splitlines() if not line.startswith("…"))
    assert problem.startswith("tunesmith: ") and "Traceback" not in err and "Error" not in err
    assert re.search(message, problem), problem
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_a_model_too_large_for_memory(tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1000)
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / "run"), *QUICK]) == 2
    assert "tiny-llama: its weights need" in said(capsys)[1] and not any(tmp_path.iterdir())


def test_a_full_disk(tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second checkpoint; the first stays whole, and the run can go on once there is room."""
    out, real, calls = tmp_path / "run", checkpoint.save_file, []

    def full(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        words = ["--model", str(tiny_llama), "--data", str(data), "--out", str(out), *QUICK, "train.checkpoint_every=2"]
        assert cli.main(["train", *words]) == 2
    assert "step-4: the disk is full; what was saved before is whole. Free some space, then `tunesmith resume`" in said(capsys)[1]
    last = checkpoint.load(out)
    assert last is not None and last.progress.step == 2
    assert cli.main(["resume", str(out)]) == 0
    assert [step["step"] for step in runs.steps_of(out)] == [1, 2, 3, 4]


def test_a_disk_that_is_full_for_the_log(
    tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith import events

    def full(self: Any, event: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(events.EventLog, "write", full)
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / "run"), *QUICK]) == 2
    assert "events.jsonl: the disk is full" in said(capsys)[1]


def test_a_run_is_not_overwritten_but_gone_on_with(done: Path, tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    before = runs.contents(out)
    assert cli.main(["train", "--model", str(tiny_llama), "--data", str(data), "--out", str(out), *QUICK]) == 2
    assert (
        f"already holds a run (it has a checkpoint of step 4): go on with `tunesmith resume {out}`, or take another --out"
        in said(capsys)[1]
    )
    assert runs.contents(out) == before
