import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export.fitted import Fit, fit_lora
from tunesmith.export.live import listen
from tunesmith.models import load as loading
from tunesmith.tuned import open_tuned

STRONG = {"train.learning_rate": 0.02}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


MADE: dict[str, Path] = {}


def trained(model: Path, data: Path, out: Path, method: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    """A run of these settings, made once: nothing is written into it."""
    key = json.dumps([str(model), str(data), method, changes])
    if key not in MADE:
        runs.finish(runs.settings(model, data, out, STRONG | {"method": method} | (changes or {})))
        MADE[key] = out
    return MADE[key]


def opened_again(fit: Fit, run: Path) -> None:
    """The folder as `open_tuned` finds it is as far from the live one as was said."""
    live, again = listen(open_tuned(str(run))), open_tuned(str(fit.folder), dtype="float32")
    assert live.apart(live.ask(again.model)) == fit.apart
    assert {type(module).__name__ for module in again.tuning.adapter.values()} == {"LoRA"}
    assert {module.A.shape[0] for module in again.tuning.adapter.values()} == {fit.rank}  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("method", "error"),
    [({"name": "dora", "rank": 4}, 0.3), ({"name": "pissa", "rank": 4}, 0.35), ({"name": "lora", "rank": 8}, 0.3)],
    ids=["dora", "pissa", "lora"],
)
def test_changes_of_matrices_by_singular_values(method: dict[str, Any], error: float, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = trained(tiny_llama, data, tmp_path / "run", method)
    fit = fit_lora(str(run), None, tmp_path / "lora")
    assert (fit.method, fit.how, fit.lost, len(fit.layers)) == (method["name"], "singular values", {}, 14)
    assert fit.energy is not None and 0.95 <= fit.energy < 1 and max(fit.layers.values()) < error
    assert fit.apart.decides.mean_kl < 0.02 * fit.without.decides.mean_kl
    opened_again(fit, run)
    about = json.loads((tmp_path / "lora/tunesmith.json").read_text())
    assert about["base"]["layers"] == 2 and about["fitted"] == json.loads(json.dumps(fit.facts()))
    assert (about["fitted"]["to"], about["fitted"]["method"], about["fitted"]["relative_error"]) == ("run", method["name"], fit.layers)
    [sentence] = fit.sentences()
    assert f"a LoRA of rank {fit.rank} fitted to {run} ({method['name']}) by singular values in 14 layers; it holds 9" in sentence


def test_a_rank_that_is_enough_is_exact(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = trained(tiny_llama, data, tmp_path / "run", {"name": "pissa", "rank": 3})
    fit = fit_lora(str(run / "adapter"), 6, tmp_path / "lora")  # B·A - B0·A0
    assert fit.rank == 6 and max(fit.layers.values()) < 1e-3 and fit.apart.rows is None
    assert fit.apart.prompts.mean_kl < 1e-9 < fit.without.prompts.mean_kl


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers under an old name
def test_peft_opens_it(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    run = trained(tiny_llama, data, tmp_path / "run", {"name": "dora", "rank": 4})
    fit_lora(str(run), 5, tmp_path / "lora")
    ids = torch.arange(3, 40)[None]
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), tmp_path / "lora")
    with torch.no_grad():
        ours = open_tuned(str(tmp_path / "lora"), dtype="float32").model(input_ids=ids).logits
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours, rtol=1e-4, atol=1e-4)


def test_whole_models_say_what_no_lora_can_hold(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = trained(tiny_llama, data, tmp_path / "run", {"name": "freeze", "layers": 1})
    fit = fit_lora(str(run), None, tmp_path / "lora")
    assert {path.split(".")[2] for path in fit.layers} == {"1"}, "layers that were trained, and no others"
    assert set(fit.lost) == {f"model.layers.1.{name}_layernorm.weight" for name in ("input", "post_attention")}
    before, after = load_file(tiny_llama / "model.safetensors"), load_file(run / "model/model.safetensors")
    for name, size in fit.lost.items():
        assert size == pytest.approx(((after[name] - before[name]).norm() / before[name].norm()).item(), rel=1e-4)
    assert fit.apart.decides.mean_kl < 0.1 * fit.without.decides.mean_kl
    assert fit.sentences()[1].startswith("no LoRA can hold what was trained at model.layers.1.") and "is left out" in fit.sentences()[1]
    opened_again(fit, run)


def test_a_base_that_is_another_is_refused(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    run = trained(base, data, tmp_path / "run", {"name": "freeze"}, {"train.steps": 1})
    weights = {name: tensor.flip(0).contiguous() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no longer the model that the run began with: the weights differ by"):
        fit_lora(str(run), 4, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_tokens_and_whole_modules_are_named(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    method = {"name": "dora", "rank": 4, "trainable_tokens": [256, 257], "modules_to_save": ["model.norm"]}
    fit = fit_lora(str(trained(tiny_llama, data, tmp_path / "run", method)), 4, tmp_path / "lora")
    assert set(fit.lost) == {"model.embed_tokens (2 rows)", "model.norm.weight"} and all(0 < size < 1 for size in fit.lost.values())
    assert fit.facts()["not_held"] == fit.lost


@pytest.mark.parametrize("name", ["prompt", "prefix", "adapter"])
def test_what_changes_no_matrix_is_learned(name: str, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = trained(tiny_llama, data, tmp_path / "run", {"name": name}, {"train.learning_rate": 0.05})
    fit = fit_lora(str(run), 8, tmp_path / "lora", steps=12)
    assert (fit.method, fit.how, fit.rank, fit.layers, fit.energy) == (name, "distillation", 8, {}, None)
    assert fit.distilled is not None and fit.distilled.after < 0.6 * fit.distilled.before
    assert fit.apart.decides.mean_kl < 0.6 * fit.without.decides.mean_kl
    opened_again(fit, run)
    about = json.loads((tmp_path / "lora/tunesmith.json").read_text())["fitted"]
    assert (about["how"], about["distilled"]["after"]) == ("distillation", fit.distilled.after)
    assert f"KL on {fit.distilled.held_out_documents} held out: " in fit.sentences()[0]


def test_a_head_goes_along(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"text": f"number {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(20)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = trained(tiny_llama, tmp_path / "labels.jsonl", tmp_path / "run", {"name": "ptuning_v2"}, {"task": {"name": "classify"}})
    fit = fit_lora(str(run), 4, tmp_path / "lora", steps=4)
    before, again = open_tuned(str(run)).head, open_tuned(str(tmp_path / "lora"), dtype="float32").head
    assert before is not None and again is not None and torch.equal(before.weight, again.weight) and again.labels == before.labels
    assert fit.distilled is not None and fit.distilled.after <= fit.distilled.before


def test_over_nf4_it_is_measured_where_it_is_served(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = trained(tiny_llama, data, tmp_path / "run", {"name": "dora", "rank": 4}, {"model.quantize": "nf4"})
    fit = fit_lora(str(run), 16, tmp_path / "lora")
    assert max(fit.layers.values()) < 0.3, "of the change itself, not of what NF4 rounds"
    live, served = listen(open_tuned(str(run))), open_tuned(str(tmp_path / "lora"), dtype="float32")
    assert not served.base.quantized and live.apart(live.ask(served.model)).prompts == fit.apart.prompts


def test_what_there_is_nothing_to_fit_to(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a model by itself: a LoRA is fitted to an adapter"):
        fit_lora(str(tiny_llama), None, tmp_path / "lora")
    run = trained(tiny_llama, data, tmp_path / "run", {"name": "prompt"}, {"train.steps": 1})
    with pytest.raises(UserError, match="a LoRA learns to answer alike, from rows; name the run's folder"):
        fit_lora(str(run / "adapter"), None, tmp_path / "lora")
    with pytest.raises(UserError, match=r"none\.jsonl"):
        fit_lora(str(run), None, tmp_path / "lora", data=str(tmp_path / "none.jsonl"))
    fit = fit_lora(str(run / "adapter"), None, tmp_path / "lora", data=str(data), steps=1)
    assert fit.rank == 16 and fit.distilled is not None


@pytest.mark.parametrize("method", [{"name": "dora", "rank": 4}, {"name": "prompt"}], ids=["singular values", "distillation"])
def test_two_models_never_stand_in_memory_at_once(
    method: dict[str, Any], tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tiny_llama, data, tmp_path / "run", method, {"train.steps": 1} if method["name"] == "prompt" else None)
    models: list[Any] = []
    load = loading.load

    def counted(*arguments: Any, **named: Any) -> Any:
        gc.collect()
        assert not [one for one in models if one() is not None], "another model is still there"
        base = load(*arguments, **named)
        models.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(loading, "load", counted)
    fit_lora(str(run), 2, tmp_path / "lora", steps=1)
    assert len(models) == 2
