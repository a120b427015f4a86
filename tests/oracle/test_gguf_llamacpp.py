"""Every family's GGUF file, opened by llama.cpp: token ids, distributions and greedy answers are those of transformers."""

from pathlib import Path

import pytest

from tests.export.gguf.made_models import CONFIGS, made_model, renderer_of, truth_of
from tunesmith.export.gguf.model_file import write_model
from tunesmith.export.gguf.opened import proof

pytest.importorskip("xllamacpp")


@pytest.mark.parametrize("name", CONFIGS)
def test_llamacpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    folder = made_model(name, tmp_path / "model")
    written = write_model(folder, tmp_path / "model.gguf", "f32")
    found = proof(written.file, "f32", truth_of(folder), renderer_of(folder))
    assert found.failures == ()
    assert found.figures["top1_agreement"] == 1.0
    assert found.figures["mean_kl"] < 1e-5
