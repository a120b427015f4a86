"""Virtual tokens behind an encoder: what is trained, what is kept, what is saved. `test_prompt.py` tries both in packed rows."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tests.tiny_models import tiny
from tunesmith import config
from tunesmith.methods import method, ptuning
from tunesmith.methods.layouts import layout
from tunesmith.methods.prompt import size_of
from tunesmith.methods.settings import PTuning as Settings
from tunesmith.methods.tuning import Start
from tunesmith.models import slots
from tunesmith.train import checkpoint

PATH = "model.embed_tokens"


def begun(model: Any, **settings: Any) -> Any:
    chosen = Settings(**settings)
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    return tuning


@pytest.mark.parametrize(("encoder", "sizes"), [("mlp", 64 * 64 * 3 + 64 * 3), ("lstm", 10 * 64 * 64 + 36 * 64 * 64 + 34 * 64 + 64)])
def test_the_encoder_is_as_wide_as_the_model_unless_told(encoder, sizes):
    model = tiny("llama")
    tuning = method.build(model, Settings(tokens=7, encoder=encoder), quantized=True, device="meta")
    assert tuning.count == 7 * 64 + sizes and tuning.virtual_tokens == 7 and tuning.layout == "prompt"
    assert method.build(model, Settings(tokens=7, encoder=encoder, hidden=8), quantized=False).count < tuning.count / 3


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_virtual_tokens_begin_as_large_as_the_models_own(encoder):
    model = tiny("llama")
    model.get_input_embeddings().weight.mul_(7)
    tuning = begun(model, encoder=encoder)
    [module] = tuning.adapter.values()
    assert module.table_PC().square().mean().sqrt().item() == pytest.approx(size_of(model), rel=1e-5)
    [ratio] = set(tuning.learning_rate_ratios.values())
    assert ratio == pytest.approx(size_of(model) / module.encoder.natural_size)
    assert {name.rpartition(".")[0] for name in tuning.learning_rate_ratios} == {f"{PATH}.encoder.mlp.{len(module.encoder.mlp) - 1}"}
    assert set(tuning.learning_rate_ratios) < set(tuning.parameters)


def test_an_encoder_with_one_step_moves_all_virtual_tokens():
    model = tiny("llama")
    tuning = begun(model, tokens=3)
    method.place(model, tuning)
    [module] = tuning.adapter.values()
    before = module.table_PC().detach()
    ids = torch.tensor([[*slots.virtual_ids(model), 5, 6]])
    model.get_input_embeddings()(ids)[0, 0].sum().backward()  # only the first one is asked for
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter -= 0.1 * parameter.grad
    assert (module.table_PC() != before).any(1).all()


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_a_run_keeps_its_encoder_to_go_on_and_saves_the_table_alone(encoder, tiny_llama, tmp_path):
    rows = runs.write_rows(tmp_path / "rows.jsonl")
    changes = {"method": {"name": "ptuning", "tokens": 4, "encoder": encoder, "hidden": 8}}
    out = tmp_path / "run"
    runs.finish(runs.settings(tiny_llama, rows, out, changes))
    stored = load_file(out / "adapter" / layout.WEIGHTS)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {"prompt_embeddings": (4, 64)}
    said = json.loads((out / "adapter" / layout.CONFIG).read_text())
    assert (said["peft_type"], said["encoder_reparameterization_type"], said["encoder_hidden_size"]) == ("P_TUNING", encoder.upper(), 8)
    kept = checkpoint.load(out)
    assert kept is not None
    model = tiny("llama")
    tuning = ptuning.build(model, Settings(tokens=4, encoder=encoder, hidden=8))
    method.restore(tuning, kept.trained, "the checkpoint")
    [module] = tuning.adapter.values()
    torch.testing.assert_close(module.table_PC().detach(), stored["prompt_embeddings"], rtol=1e-6, atol=1e-7)  # type: ignore[operator]


def test_what_goes_on_from_its_folder_is_a_plain_table(tiny_llama, tmp_path):
    rows = runs.write_rows(tmp_path / "rows.jsonl")
    first, second = tmp_path / "first", tmp_path / "second"
    runs.finish(runs.settings(tiny_llama, rows, first, {"method": {"name": "ptuning", "tokens": 4, "hidden": 8}}))
    runs.finish(runs.settings(tiny_llama, rows, second, {"method": {"name": "prompt"}, "model.adapter": str(first), "train.steps": 1}))
    went_on = config.load(second / "run.yaml").run.method
    assert went_on.name == "prompt" and went_on.tokens == 4
    before, after = (load_file(folder / "adapter" / layout.WEIGHTS)["prompt_embeddings"] for folder in (first, second))
    assert before.shape == after.shape and 0 < (after - before).abs().max() < 0.2, "it began where the first one ended"
    assert json.loads((second / "adapter" / layout.CONFIG).read_text())["peft_type"] == "PROMPT_TUNING"


def test_a_stretch_of_a_row_is_changed_as_a_document_is():
    model = tiny("llama")
    chosen = Settings(tokens=3, hidden=16)
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    [module] = tuning.adapter.values()
    embedding, ids = model.get_input_embeddings(), torch.tensor([[97, 5, 96]])
    assert torch.equal(module.changed(embedding, ids, embedding(ids.clamp(max=95))), module(embedding, ids))  # type: ignore[operator]
