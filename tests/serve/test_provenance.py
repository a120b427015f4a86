"""What a folder tells of itself: where its weights lie, hashes that move with what matters, facts that are missing left out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.errors import UserError
from tunesmith.serve.provenance import facts_of, hashes, result


def weights(folder: Path, config: str = "adapter_config.json", value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.full((3,), value)}, folder / "model.safetensors")
    (folder / config).write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    return folder


def test_where_the_weights_of_a_run_an_adapter_and_a_model_lie(tmp_path: Path) -> None:
    assert result(weights(tmp_path / "run" / "adapter").parent) == tmp_path / "run" / "adapter"
    assert result(weights(tmp_path / "full" / "model", "config.json").parent) == tmp_path / "full" / "model"
    assert result(weights(tmp_path / "plain")) == tmp_path / "plain"
    (tmp_path / "plain" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="its weights as safetensors are missing"):
        result(tmp_path / "plain")


def test_hashes_are_of_bytes_and_not_of_places(tmp_path: Path) -> None:
    one, same, other = weights(tmp_path / "a"), weights(tmp_path / "b"), weights(tmp_path / "c", value=2.0)
    assert hashes(one) == hashes(same)
    assert hashes(one)[0] != hashes(other)[0] and hashes(one)[1] != hashes(other)[1]
    (same / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert hashes(one)[0] == hashes(same)[0] and hashes(one)[1] != hashes(same)[1]
    (one / "notes.txt").write_text("beside", encoding="utf-8")
    assert hashes(one) == hashes(weights(tmp_path / "d"))


def test_facts_that_are_missing_or_damaged_are_left_out(tmp_path: Path) -> None:
    run = weights(tmp_path / "run" / "adapter").parent
    assert facts_of(run) == {"method": "lora"}
    (run / "run.yaml").write_text("method: dora\n", encoding="utf-8")
    (run / "scores.json").write_text("{", encoding="utf-8")
    (run / "data.json").write_text('{"rows": 3, "stream_sha256": "ef", "notes": []}', encoding="utf-8")
    (run / "plan.json").write_text('{"base": {"layers": 2}}', encoding="utf-8")
    wanted = {"run": {"method": "dora"}, "method": "dora", "data": {"rows": 3, "stream_sha256": "ef"}, "base": {"layers": 2}}
    assert facts_of(run) == wanted
