"""A compiled run is the run itself, faster: resumed by another process it goes on to the bit."""

import os
from pathlib import Path

import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import Interrupted
from tunesmith.step import compiled
from tunesmith.train import folder, loop

pytestmark = pytest.mark.skipif(bool(compiled.impossible(torch.device("cpu"))), reason="no C++ compiler")


def test_a_compiled_run_is_the_plain_one_and_resumes_to_the_bit(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    data = runs.write_rows(tmp_path / "rows.jsonl")
    wished = {"train.compile": True, "train.recompute": "blocks"}
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "plain"))
    torch._dynamo.reset()
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "whole", wished))
    plan = folder.read_json(tmp_path / "whole" / folder.PLAN)
    assert "compiled blocks" in plan["accelerations"]["on"], plan
    assert any((Path(os.environ["TUNESMITH_CACHE"]) / "compiled").iterdir()), "what was compiled is kept with the project's other caches"
    ours, theirs = runs.steps_of(tmp_path / "whole"), runs.steps_of(tmp_path / "plain")
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in theirs], rel=1e-4)

    torch._dynamo.reset()
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, data, tmp_path / "cut", wished), stop=runs.stop_after(4), tell=runs.quiet))
    torch._dynamo.reset()  # what was compiled is gone, as in another process
    list(loop.resume(tmp_path / "cut", tell=runs.quiet))
    assert runs.steps_of(tmp_path / "cut") == ours
    assert (
        runs.contents(tmp_path / "cut")["adapter/adapter_model.safetensors"]
        == runs.contents(tmp_path / "whole")["adapter/adapter_model.safetensors"]
    )
