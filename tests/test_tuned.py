import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import config, tuned
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import UserError
from tunesmith.models import load as loading
from tunesmith.models.nf4 import Nf4Linear
from tunesmith.tuned import open_tuned

IDS = torch.arange(3, 40)[None] * 7 % 256


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished QLoRA run with dropout whose template's date was frozen."""
    out = tmp_path_factory.mktemp("done") / "run"
    changes = {"method": {"name": "qlora", "rank": 4, "dropout": 0.5}, "data.date": "2020-02-02", "data.thinking": "drop"}
    runs.finish(runs.settings(tiny_llama, data, out, changes))
    return out


@pytest.fixture(scope="module")
def full(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("full") / "run"
    runs.finish(runs.settings(tiny_llama, data, out, {"method": "full", "train.steps": 2}))
    return out


def test_a_run_is_opened_as_it_was_trained(done: Path) -> None:
    found = open_tuned(str(done))
    assert (found.name, found.base.dtype, found.base.quantized, found.has_adapter) == ("run", torch.float32, True, True)
    assert isinstance(found.model.model.layers[0].self_attn.q_proj, Nf4Linear)
    assert found.run is not None and found.run.method.name == "lora"
    assert (found.renderer.date, found.renderer.thinking) == ("2020-02-02", "drop"), "prompts are those of the training"
    trained = load_file(done / "checkpoints/step-6/trained.safetensors")
    for name, parameter in found.tuning.parameters.items():
        assert torch.equal(parameter, trained[name]) and not parameter.requires_grad
    assert torch.equal(logits(found.model), logits(found.model)), "dropout is off"


def test_the_base_is_there_without_the_adapter(done: Path, tiny_llama: Path) -> None:
    found = open_tuned(str(done))
    bare = loading.load(tiny_llama, dtype=torch.float32, quantize=True).model
    live = logits(found.model)
    with found.without_adapter():
        assert torch.equal(logits(found.model), logits(bare))
    assert torch.equal(logits(found.model), live) and not torch.equal(live, logits(bare))


def test_an_adapter_folder_brings_its_base(done: Path, tiny_llama: Path, tmp_path: Path) -> None:
    found = open_tuned(str(done / "adapter"), dtype="float32")
    assert (found.name, found.located.folder, found.run) == ("adapter", tiny_llama.resolve(), None)
    moved = tmp_path / "moved"
    shutil.copytree(done / "adapter", moved)
    values = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match=r"does not name its base model \(base_model_name_or_path\); give it with --model"):
        open_tuned(str(moved))
    given = open_tuned(str(moved), model=str(tiny_llama), dtype="float32")
    assert torch.equal(logits(given.model), logits(found.model))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_made_by_peft_gives_peft_s_logits(rslora: bool, tiny_llama: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    settings = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], lora_dropout=0.3, use_rslora=rslora, init_lora_weights=False,
        rank_pattern={"layers.1.mlp.down_proj": 2}, alpha_pattern={"q_proj": 3}, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), settings).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    found = open_tuned(str(tmp_path / "adapter"), dtype="float32")
    ours, wanted = logits(found.model), logits(theirs)
    assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (wanted - logits(loading.load(tiny_llama, dtype=torch.float32).model)).abs().max() > 0.01 * wanted.abs().max()


def test_another_base_is_refused_with_shapes(done: Path, tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    narrow = AutoConfig.from_pretrained(other)
    narrow.intermediate_size = 96
    AutoModelForCausalLM.from_config(narrow).save_pretrained(other)
    with pytest.raises(UserError) as refused:
        open_tuned(str(done / "adapter"), model=str(other))
    assert "was made for another base model" in refused.value.problems[0]
    assert "  model.layers.0.mlp.gate_proj: made for (64, 128), the layer is (64, 96) (in, out)" in refused.value.problems


def test_another_fine_tune_of_the_base_is_refused_before_it_is_loaded(
    done: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: t + 0.1 * t.std() * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}, other / "model.safetensors"
    )
    monkeypatch.setattr(tuned.loading, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError) as refused:
        open_tuned(str(done / "adapter"), model=str(other))
    assert refused.value.problems[0] == f"{done / 'adapter'} was made for another base model ({tiny_llama}):"
    assert refused.value.problems[1].startswith(f"  {other}: the weights differ by ")
    assert refused.value.problems[2].startswith(f"  name the base that it was made for ({tiny_llama})")


def test_the_same_base_in_another_number_format_is_taken(done: Path, tiny_llama: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    save_file({name: t.bfloat16() for name, t in load_file(other / "model.safetensors").items()}, other / "model.safetensors")
    assert open_tuned(str(done / "adapter"), model=str(other), dtype="float32").has_adapter


def test_a_broken_adapter_is_said_before_the_model_is_loaded(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run/adapter/adapter_model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(tuned.loading, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_tuned(str(tmp_path / "run"))


def test_a_run_without_a_result_says_how_to_get_one(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "run.yaml").write_text(config.dump(runs.settings(tiny_llama, "rows.jsonl", tmp_path)))
    with pytest.raises(UserError, match=f"holds a run without a result yet; finish it with `tunesmith resume {tmp_path}`"):
        open_tuned(str(tmp_path))


def test_a_fully_tuned_run_is_its_own_model(full: Path) -> None:
    found = open_tuned(str(full))
    assert not found.has_adapter and found.located.folder == full / "model"
    written = load_file(full / "model/model.safetensors")
    assert torch.equal(found.model.get_parameter("lm_head.weight"), written["lm_head.weight"])
    with (
        pytest.raises(UserError, match="trained the base's own weights, so the base is not in it; name it: --against "),
        found.without_adapter(),
    ):
        pass


def test_a_model_alone(tiny_llama: Path) -> None:
    found = open_tuned(str(tiny_llama), dtype="float32")
    assert (found.name, found.has_adapter, found.run) == (str(tiny_llama), False, None)
    assert isinstance(found.renderer, Renderer)
    with found.without_adapter():
        assert torch.equal(logits(found.model), logits(loading.load(tiny_llama, dtype=torch.float32).model))


def test_a_run_made_on_a_gpu_is_read_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (tuned._device("cuda:1"), tuned._device("cpu")) == ("auto", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert tuned._device("cuda:1") == "cuda:1"


def test_a_base_models_template_prints_todays_date(tiny_llama: Path) -> None:
    before = datetime.date.today().isoformat()
    assert before <= open_tuned(str(tiny_llama)).renderer.date <= datetime.date.today().isoformat()
