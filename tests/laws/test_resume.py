"""Law: a run that was stopped and resumed is, to the bit, the run that nobody stopped. With settings that are not the defaults of their
methods; the defaults of every method are in `test_every_method.py`."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import config, events
from tunesmith.errors import Interrupted
from tunesmith.train import checkpoint, loop

ROOT = Path(__file__).resolve().parent.parent.parent
FULL = {"method": "full", "train.learning_rate": 0.001}
# name -> (tied embeddings, settings)
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "lora, dropout": (False, {"method": {"name": "lora", "rank": 4, "dropout": 0.2, "plus_ratio": 4.0}, "train.weight_decay": 0.01}),
    "lora, dropout, blocks recomputed, one document a row": (
        False,
        {"method": {"name": "lora", "rank": 4, "dropout": 0.2}, "train.recompute": "blocks", "data.pack": False},
    ),
    "lora, bf16, adamw_8bit": (False, {"method": {"name": "lora", "rank": 64}, "model.dtype": "bfloat16", "train.optimizer": "adamw_8bit"}),
    "qlora": (False, {"method": "qlora", "data.evaluate": 0.2, "evaluate.every": 2}),
    "qlora, bf16, dropout": (True, {"method": {"name": "qlora", "dropout": 0.1}, "model.dtype": "bfloat16"}),
    "full": (False, FULL),
    "full, tied": (True, FULL | {"data.evaluate": 0.2, "evaluate.every": 2}),
    "full, bf16": (False, FULL | {"model.dtype": "bfloat16"}),
    "full, bf16, tied, adamw_8bit": (True, FULL | {"model.dtype": "bfloat16", "train.optimizer": "adamw_8bit"}),
    "freeze": (False, {"method": {"name": "freeze", "layers": 1, "head": True}, "train.schedule": "linear"}),
    "freeze, tied, bf16": (True, {"method": {"name": "freeze", "layers": 1, "embeddings": True}, "model.dtype": "bfloat16"}),
}


@pytest.fixture(scope="module")
def tied_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` with one matrix for embedding and head."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tied-llama"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_undisturbed_one(name: str, tiny_llama: Path, tied_llama: Path, tmp_path: Path) -> None:
    tied, changes = CASES[name]
    model, data = tied_llama if tied else tiny_llama, runs.write_rows(tmp_path / "rows.jsonl")
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    runs.finish(runs.settings(model, data, whole, changes))

    with pytest.raises(Interrupted) as stopped:
        list(loop.train(runs.settings(model, data, broken, changes), stop=runs.stop_after(4), tell=runs.quiet))
    assert stopped.value.exit_code == 130
    assert [step["step"] for step in runs.steps_of(broken)] == [1, 2, 3, 4]
    torch.rand(7)  # whatever else a process draws
    happened = list(loop.resume(broken, tell=runs.quiet))

    assert isinstance(happened[0], events.Resumed) and happened[0].step == 4
    assert isinstance(happened[-1], events.Finished) and happened[-1].steps == 6
    assert runs.steps_of(broken) == runs.steps_of(whole)
    assert len({step["loss"] for step in runs.steps_of(whole)}) == 6, "the losses are real"
    left, right = runs.contents(broken), runs.contents(whole)
    assert left.keys() == right.keys()
    assert [path for path in left if left[path] != right[path]] == []
    assert {"checkpoints/step-6/trained.safetensors", "checkpoints/step-6/optimizer.safetensors", "checkpoints/step-6/state.json"} <= set(
        left
    )


KILLED_WHILE_SAVING = """
import os, signal, sys
from tunesmith.train import checkpoint
calls, flush = [], checkpoint._flush
def killing(folder):
    calls.append(folder.parent.name)
    if calls.count("checkpoints") == 2:  # the first is whole; of the second everything is there but its name
        os.kill(os.getpid(), signal.SIGKILL)
    flush(folder)
checkpoint._flush = killing
from tunesmith.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_killed_at_any_moment_loses_nothing_but_steps(tiny_llama: Path, tmp_path: Path) -> None:
    """`kill -9` somewhere in the middle, then while a checkpoint is being saved, then to the end."""
    changes = {"train.steps": 60, "train.checkpoint_every": 7, "method": {"name": "lora", "rank": 4, "dropout": 0.1}}
    changes |= {"data.evaluate": 0.2, "evaluate.every": 20}
    data, out, whole = runs.write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", tmp_path / "whole"
    (tmp_path / "run.yaml").write_text(config.dump(runs.settings(tiny_llama, data, out, changes)), encoding="utf-8")

    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "train", str(tmp_path / "run.yaml")], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (out / "checkpoints" / "step-7").exists():
        time.sleep(0.002)
    time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    first = len(runs.steps_of(out))
    assert first >= 7

    words = [sys.executable, "-c", KILLED_WHILE_SAVING, "resume", str(out)]
    assert subprocess.run(words, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    assert [path for path in (out / "checkpoints").iterdir() if path.name.endswith(".new")], "it died while saving"
    restored = checkpoint.newest(out)
    assert restored % 7 == 0 and len(runs.steps_of(out)) == restored + 7

    happened = list(loop.resume(out, tell=runs.quiet))
    assert isinstance(happened[0], events.Resumed) and happened[0].step == restored
    runs.finish(runs.settings(tiny_llama, data, whole, changes))
    assert [step["step"] for step in runs.steps_of(out)] == list(range(1, 61))
    assert runs.steps_of(out) == runs.steps_of(whole)
    assert runs.contents(out) == runs.contents(whole)
    assert not [path.name for path in out.rglob(".*") if path.name != ".lock"], "nothing half-written is left"
