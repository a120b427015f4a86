import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from tests.conftest import write_byte_tokenizer
from tunesmith.errors import UserError
from tunesmith.export.bases import Parted, put
from tunesmith.export.merge import Merged, fold, folded, folding, orientation, parted, write
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.lora import LoRA as LoRAModule
from tunesmith.methods.parts import extras
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import slots

IDS = torch.arange(3, 40)[None] * 7 % 256


def adapted(folder: Path, dtype: torch.dtype = torch.float32, targets: Any = "all") -> tuple[Any, Tuning]:
    """A model with a LoRA in place that changes its logits a good deal."""
    base = loading.load(folder, dtype=dtype)
    tuning = method.build(base.model, LoRA(rank=4, targets=targets), quantized=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
    method.place(base.model, tuning)
    return base.model, tuning


def merged(folder: Path, target: Path, model: Any, tuning: Tuning) -> Merged:
    layers = {path: isinstance(model.get_submodule(path), Conv1D) for path in tuning.adapter}
    target.mkdir()
    return fold(folder, target, dict(tuning.adapter), layers.__getitem__, model.base_model_prefix)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def resaved(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a model folder with other tensors in its file."""
    shutil.copytree(folder, to)
    save_file(change(load_file(folder / "model.safetensors")), to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Square and oblong Conv1D matrices, kept as [in, out]; tied embeddings."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    torch.manual_seed(0)
    sizes: Any = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(vocab_size=384, bos_token_id=259, eos_token_id=257, **sizes)).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).save_pretrained(folder, max_shard_size="250KB")
    write_byte_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) >= 2
    return folder


@pytest.fixture(scope="module")
def tied(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("tied") / "model"
    folder = resaved(tiny_llama, to, lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def bare_gpt2(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names as GPT-2's first checkpoints have them: `h.0.attn...`, without the base model's prefix."""
    to = tmp_path_factory.mktemp("bare") / "model"
    return resaved(gpt2, to, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})


@pytest.mark.parametrize("kind", ["tiny_llama", "sharded", "tied", "gpt2", "bare_gpt2"])
def test_the_merged_model_is_the_adapter(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(kind)
    model, tuning = adapted(source)
    live = logits(model)
    written = merged(source, tmp_path / "out", model, tuning)

    again = logits(loading.load(tmp_path / "out", dtype=torch.float32).model)
    assert (again - live).abs().max() <= 1e-5 * live.abs().max()
    assert (live - logits(loading.load(source, dtype=torch.float32).model)).abs().max() > 0.01 * live.abs().max(), (
        "the adapter does something"
    )
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert (written.changed, written.tensors) == (len(tuning.adapter), len(before)) and len(changed) == len(tuning.adapter)
    assert ("lm_head.weight" in after) == (kind in ("tiny_llama", "sharded"))
    assert {p.name: p.read_bytes() for p in source.iterdir() if p.suffix != ".safetensors"} == {
        p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors"
    }
    assert sorted(p.name for p in source.glob("*.safetensors")) == sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))


def test_arithmetic_is_in_fp32_and_the_result_in_the_checkpoint_s_dtype(tiny_llama: Path, tmp_path: Path) -> None:
    source = resaved(tiny_llama, tmp_path / "bf16", lambda tensors: {name: t.bfloat16() for name, t in tensors.items()})
    model, tuning = adapted(source, torch.bfloat16)
    merged(source, tmp_path / "out", model, tuning)
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for path, module in tuning.adapter.items():
        a, b, name = module.get_parameter("A"), module.get_parameter("B"), f"{path}.weight"
        wanted = (before[name].float() + 2.0 * (b @ a)).bfloat16()
        assert after[name].dtype == torch.bfloat16 and torch.equal(after[name], wanted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers under an old name
@pytest.mark.parametrize("kind", ["tiny_llama", "gpt2"])
def test_peft_merges_to_the_same_weights(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    peft = pytest.importorskip("peft")
    source = request.getfixturevalue(kind)
    model, tuning = adapted(source)
    layout.write(tmp_path / "adapter", model, tuning, str(source))
    merged(source, tmp_path / "out", model, tuning)

    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tmp_path / "adapter")
    wanted = theirs.merge_and_unload().state_dict()
    for name, tensor in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


def test_stale_copies_of_the_weights_stay_behind(tiny_llama: Path, tmp_path: Path) -> None:
    """A server that prefers another format would serve the model without its adapter."""
    source = resaved(tiny_llama, tmp_path / "source", dict)
    for name in ("pytorch_model.bin", "model.gguf", "model.onnx", "tf_model.h5", "consolidated.safetensors", "consolidated.00.pth"):
        (source / name).write_bytes(b"stale")
    (source / "LICENSE").write_text("free")
    (source / "original").mkdir()
    model, tuning = adapted(source)
    merged(source, tmp_path / "out", model, tuning)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in tiny_llama.iterdir()} | {"LICENSE"}


def test_metadata_is_kept(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_llama, source)
    save_file(load_file(source / "model.safetensors"), source / "model.safetensors", metadata={"format": "pt", "by": "me"})
    model, tuning = adapted(source)
    merged(source, tmp_path / "out", model, tuning)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}


def test_a_path_without_a_matrix_in_the_checkpoint_is_named(tied: Path, tmp_path: Path) -> None:
    """A tied head has none: folding into the embedding would change that too."""
    tuning = adapted(tied)[1]
    modules = dict(tuning.adapter) | {"lm_head": next(iter(tuning.adapter.values()))}
    with pytest.raises(UserError) as refused:
        fold(tied, tmp_path / "out", modules, lambda path: False, "model")
    assert "its checkpoint has no matrix of its own for" in refused.value.problems[0] and refused.value.problems[1] == "  lm_head"
    assert not (tmp_path / "out").exists()


def test_a_transposed_matrix_is_folded_in_its_own_orientation() -> None:
    module = LoRAModule(3, 3, 1, scale=2.0)  # square: the shape would not give a wrong orientation away
    with torch.no_grad():
        module.A.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        module.B.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
    update_OI = torch.tensor([[2.0, 4.0, 6.0], [0, 0, 0], [0, 0, 0]])
    assert torch.equal(folded(torch.zeros(3, 3), module, transposed=False), update_OI)
    assert torch.equal(folded(torch.zeros(3, 3), module, transposed=True), update_OI.T)


def at_the_ends(kind: str, base: Any) -> dict[str, Any]:
    """Modules on a tied model after which embedding and head are two matrices."""
    generator = torch.Generator().manual_seed(2)
    embedding = base.model.get_input_embeddings()
    every: dict[str, dict[str, Any]] = {
        "a LoRA at the head": {"lm_head": LoRAModule(64, 384, 2, 1.0)},
        "a copy of the embedding alone": {"model.embed_tokens": extras.TrainedCopy(embedding, split_from="lm_head")},
        "a copy of the head alone": {"lm_head": extras.TrainedCopy(base.model.lm_head, split_from="model.embed_tokens")},
        "other rows there than here": {"model.embed_tokens": extras.TrainedRows([5, 9], 64), "lm_head": extras.ScoredRows([9, 70], 64)},
    }
    modules = every[kind]
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return modules


KINDS = ["a LoRA at the head", "a copy of the embedding alone", "a copy of the head alone", "other rows there than here"]


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_one_matrix_becomes_two(kind: str, shards: bool, tied: Path, tmp_path: Path) -> None:
    """Tied in the base, and trained apart: the head gets a tensor of its own, and config.json says so."""
    source = tied
    if shards:
        source = tmp_path / "sharded"
        AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32).save_pretrained(source, max_shard_size="150KB")
        write_byte_tokenizer(source)
    base = loading.load(source, dtype=torch.float32)
    modules, bare = at_the_ends(kind, base), loading.skeleton(loading.load_config(source))
    slots.place(base.model, modules)
    live = logits(base.model)
    slots.lift(base.model, modules)

    split = parted(bare, modules, headed=False)
    assert split == {"lm_head": "model.embed_tokens"}
    wrapped = {path: Parted(module) if isinstance(module, extras.TrainedCopy) else module for path, module in modules.items()}
    change = folding(source, wrapped, orientation(bare), "model", split)
    done = write(change, tmp_path / "out")
    assert done.tensors == len(tensors_of(source)) + 1
    again = loading.load(tmp_path / "out", dtype=torch.float32).model
    assert (logits(again) - live).abs().max() <= 1e-5 * live.abs().max()
    assert again.lm_head.weight is not again.get_input_embeddings().weight
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    if shards:
        index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
        held = {name: file.name for file in (tmp_path / "out").glob("*.safetensors") for name in load_file(file)}
        assert index["weight_map"] == held
        assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in tensors_of(tmp_path / "out").values())
    put(base.model, change)
    assert torch.equal(logits(base.model), logits(again)), "the same in memory"


def test_a_tied_pair_stays_tied_whichever_names_the_file_has(tied: Path, tmp_path: Path) -> None:
    """Trained rows that the head follows; some checkpoints hold the one matrix under both names."""
    source = resaved(tied, tmp_path / "both", lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    base = loading.load(source, dtype=torch.float32)
    modules: dict[str, Any] = extras.rows_at(base.model, "model.embed_tokens", [5, 9], None)
    with torch.no_grad():
        modules["model.embed_tokens"].values.copy_(torch.randn(2, 64, generator=torch.Generator().manual_seed(2)))
    assert parted(loading.skeleton(loading.load_config(source)), modules, headed=False) == {}
    fold(source, tmp_path / "out", modules, lambda path: False, "model")
    after = tensors_of(tmp_path / "out")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert torch.equal(after["lm_head.weight"][[5, 9]], modules["model.embed_tokens"].values)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is True
