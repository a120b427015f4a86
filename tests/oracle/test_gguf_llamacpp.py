"""llama.cpp as the judge of every GGUF file: token ids, distributions and greedy answers are those of transformers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.export.gguf.made_models import CONFIGS, made_model, renderer_of, truth_of
from tests.export.gguf.tokenizers_made import byte_level, characters
from tunesmith.export.gguf.lora_file import write_lora
from tunesmith.export.gguf.model_file import write_model
from tunesmith.export.gguf.opened import HARD_TEXTS, proof
from tunesmith.export.gguf.quantise import KINDS
from tunesmith.export.gguf.splits import NAMES
from tunesmith.export.target import Options, Truth
from tunesmith.methods import lora, method, pissa
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import LoRA, PiSSA
from tunesmith.models.load import quiet
from tunesmith.verbs.export import export_run

pytest.importorskip("xllamacpp")
NO_TALK = Truth((), ([1, 2, 3],), (), ([],), ([],))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family(name: str, tmp_path: Path) -> None:
    folder = made_model(name, tmp_path / "model")
    written = write_model(folder, tmp_path / "model.gguf", "f32")
    found = proof(written.file, "f32", truth_of(folder), renderer_of(folder))
    assert found.failures == () and found.notes == ()
    assert found.figures["top1_agreement"] == 1.0
    assert found.figures["mean_kl"] < (1e-6 if name.startswith("gemma") else 1e-8)  # llama.cpp looks GELU up in a table of 16 bits


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A Llama whose rows are whole K-quant blocks, and what it says."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 4}
    folder = made_model("llama", tmp_path_factory.mktemp("gguf") / "model", sharp=0.3, **shape)
    return folder, truth_of(folder)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "f32"])
def test_every_kind(kind: str, tiny: tuple[Path, Truth], tmp_path: Path) -> None:
    folder, truth = tiny
    written = write_model(folder, tmp_path / "model.gguf", kind)
    found = proof(written.file, kind, truth, renderer_of(folder))
    assert found.failures == ()
    assert 0 < found.figures["mean_kl"] < KINDS[kind].max_kl


@pytest.mark.parametrize(("steps", "ignore_merges"), [(steps, whole) for steps in NAMES for whole in (False, True) if NAMES[steps][whole]])
def test_every_way_to_cut_text(steps: tuple[str, ...], ignore_merges: bool, tmp_path: Path) -> None:
    _same_ids(byte_level(steps, ignore_merges), tmp_path)


PREFIXES: list[dict[str, Any]] = [{"prefix": "always"}, {"prefix": "first"}, {"prefix": "never"}]
PREFIXES += [{"prefix": "never", "gemma": True}, {"prefix": "always", "phi3": True}]


@pytest.mark.parametrize("said", PREFIXES)
def test_sentencepiece(said: dict[str, Any], tmp_path: Path) -> None:
    _same_ids(characters(**said), tmp_path)


def _same_ids(tokenizer: Any, folder: Path) -> None:
    model = made_model("llama_tied", folder / "model", tokenizer)
    written = write_model(model, folder / "model.gguf", "f32")
    found = proof(written.file, "f32", truth_of(model), renderer_of(model))
    assert found.failures == ()
    assert found.figures["texts"] == len(HARD_TEXTS)


def test_a_rule_that_is_not_the_tokenizers_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = list(NAMES)[:2]
    folder = made_model("llama_tied", tmp_path / "model", byte_level(second))
    monkeypatch.setitem(NAMES, second, NAMES[first])
    written = write_model(folder, tmp_path / "model.gguf", "f32")
    failures = proof(written.file, "f32", truth_of(folder), renderer_of(folder)).failures
    assert any("llama.cpp makes other tokens of" in failure and "trained as" in failure for failure in failures)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_tensor_that_is_ten_percent_off_is_seen(kind: str, tiny: tuple[Path, Truth], tmp_path: Path) -> None:
    folder, truth = tiny
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.model.layers[1].mlp.up_proj.weight.data *= 1.1
    model.save_pretrained(tmp_path / "other")
    for path in folder.glob("*token*"):
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    written = write_model(tmp_path / "other", tmp_path / "model.gguf", kind)
    assert any("nats from ours" in failure for failure in proof(written.file, kind, truth, renderer_of(folder)).failures)


def test_a_broken_file_is_a_failure_and_no_end(tiny: tuple[Path, Truth], tmp_path: Path) -> None:
    folder, truth = tiny
    write_model(folder, tmp_path / "model.gguf", "f16")
    whole = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[: len(whole) // 2])
    (failure,) = proof(tmp_path / "model.gguf", "f16", truth, renderer_of(folder)).failures
    assert "llama.cpp cannot use model.gguf" in failure and "not within the file bounds" in failure


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3"])
def test_a_lora_beside_its_base(name: str, tmp_path: Path) -> None:
    folder = made_model(name, tmp_path / "model")
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    tuning = lora.build(model, LoRA(rank=4, alpha=6.0))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.2)
    updates: dict[str, Any] = tuning.adapter
    for number, module in enumerate(updates.values()):
        module.scale = 1.5 if number % 2 else 0.5  # several scales, one alpha in the file
    _beside(folder, model, tuning, tmp_path)


def test_pissa_beside_its_base(tmp_path: Path) -> None:
    from tunesmith.methods.tuning import Start
    from tunesmith.models.matrix import matrix

    folder = made_model("llama", tmp_path / "model")
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    settings = PiSSA(rank=4)
    tuning = pissa.build(model, settings)
    pissa.init(tuning, Start(model, None, 0, lambda path: matrix(folder, path, model)), settings)
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.add_(torch.randn(parameter.shape) * 0.1)
    _beside(folder, model, tuning, tmp_path)


def _beside(folder: Path, model: Any, tuning: Any, tmp_path: Path) -> None:
    layout.write(tmp_path / "adapter", model, tuning, str(folder))
    bare = truth_of(folder, model)
    method.place(model, tuning)
    truth = truth_of(folder, model)
    base = write_model(folder, tmp_path / "base.gguf", "f32").file
    write_lora(tmp_path / "adapter", folder, tmp_path / "adapter.gguf")
    found = proof(base, "f32", truth, renderer_of(folder), adapter=tmp_path / "adapter.gguf")
    assert found.failures == ()
    assert any("nats from ours" in failure for failure in proof(base, "f32", truth, renderer_of(folder)).failures), "it does something"
    assert bare.answers != truth.answers


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_the_built_in_model(kind: str, builtin_model: Path, tmp_path: Path) -> None:
    """Real weights, a real vocabulary, a real template: the smallest there is, so 4 bits cost it a lot."""
    renderer = renderer_of(builtin_model)
    talk = ([{"role": "user", "content": "What is the capital of France? 用中文回答 👋 12345"}],)
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(builtin_model, dtype=torch.float32)
    prompt = renderer.prompt_ids(talk[0])
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
    truth = dataclasses.replace(NO_TALK, conversations=talk, prompts=(prompt,), logits=(logits,))
    written = write_model(builtin_model, tmp_path / "model.gguf", kind)
    assert written.bytes == {"q8_0": 144_810_880, "q4_k_m": 105_453_952}[kind]
    found = proof(written.file, kind, truth, renderer)
    assert found.failures == ()
    assert found.figures["texts"] == len(HARD_TEXTS)


@pytest.mark.parametrize("options", [Options(quantize="f16"), Options(adapter_only=True)], ids=["merged", "alone"])
def test_the_export_of_an_adapter(options: Options, tmp_path: Path) -> None:
    folder = made_model("llama", tmp_path / "model")
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    tuning = lora.build(model, LoRA(rank=4))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.05)
    layout.write(tmp_path / "mine", model, tuning, str(folder))
    assert export_run([str(tmp_path / "mine")], "gguf", tmp_path / "out", options) == 0
    facts = json.loads((tmp_path / "out/export.json").read_text(encoding="utf-8"))
    name = "adapter.gguf" if options.adapter_only else "mine-f16.gguf"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"export.json", name}
    assert json.dumps(facts).count('"mean_kl"') and name in json.dumps(facts)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
