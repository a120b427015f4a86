"""What is trained beside updates: rows of an embedding, whole modules, at both ends of a tied model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests import runs
from tests.conftest import write_byte_tokenizer
from tests.runs import own_cache  # noqa: F401
from tests.tiny_models import some_documents, some_ids, tiny
from tunesmith import config, events
from tunesmith.cli import main
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.sources import load_samples
from tunesmith.errors import Interrupted, UserError
from tunesmith.evaluate.loss import sample_loss
from tunesmith.export.merge import fold
from tunesmith.methods import dora, lora, method
from tunesmith.methods.parts import extras
from tunesmith.methods.settings import DoRA, LoRA
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.head import head_of
from tunesmith.models.proof import Proof
from tunesmith.step import loss as losses
from tunesmith.step.forward import Forward, prepare
from tunesmith.train import loop
from tunesmith.train.setting import decide
from tunesmith.tuned import open_tuned

IDS = [40, 5, 9]
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def begun(name: str, **settings: Any) -> tuple[Any, Tuning]:
    """A model with LoRA on q and what is trained besides, in place, as it begins."""
    model, chosen = tiny(name), LoRA(targets=["q"], rank=2, **settings)
    tuning = lora.build(model, chosen)
    lora.init(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(model, tuning)
    return model, tuning


def rows_of(tuning: Tuning) -> Any:
    return tuning.adapter[EMBEDDING]


def moved(tuning: Tuning) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape) * 0.1)


@pytest.mark.parametrize("settings", [{"trainable_tokens": IDS}, {"modules_to_save": ["lm_head", "norm"]}, {"modules_to_save": ["mlp"]}])
@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma3", "phi"])
def test_the_start_is_the_base_and_lifting_gives_it_back(name: str, settings: dict[str, Any]) -> None:
    settings = {"modules_to_save": ["lm_head", "final_layernorm"]} if name == "phi" and "norm" in str(settings) else settings
    ids_BT = torch.tensor([[5, 7, 40, 40, 3, 9], [1, 2, 3, 4, 5, 6]])
    plain = tiny(name)
    before, state = plain(ids_BT).logits, plain.state_dict()
    model, tuning = begun(name, **settings)
    with torch.no_grad():
        torch.testing.assert_close(model(ids_BT).logits, before, rtol=1e-5, atol=1e-6)
        moved(tuning)
        assert not torch.allclose(model(ids_BT).logits, before, atol=1e-3)
        slots.lift(model, tuning.adapter)
        assert torch.equal(model(ids_BT).logits, before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight or extras.tied(model)


def test_rows_are_replaced_where_their_ids_stand_and_nowhere_else() -> None:
    model, tuning = begun("llama", trainable_tokens=IDS)
    embedding, rows = model.get_submodule(EMBEDDING), rows_of(tuning)
    ids_BT = torch.tensor([[5, 7, 40], [9, 5, 0]])
    with torch.no_grad():
        rows.values.copy_(torch.arange(3.0)[:, None].expand(3, 64))
        x_BTC = embedding(ids_BT)
        kept = embedding.weight[ids_BT]
    expected = kept.clone()
    expected[0, 0], expected[0, 2], expected[1, 0], expected[1, 1] = 1.0, 0.0, 2.0, 1.0
    assert torch.equal(x_BTC, expected)
    embedding(ids_BT).sum().backward()
    assert torch.equal(rows.values.grad[:, 0], torch.tensor([1.0, 2.0, 1.0])), "as often as each occurs"


def test_a_scaled_embedding_scales_trained_rows_too() -> None:
    model, tuning = begun("gemma3", trainable_tokens=IDS)
    rows_of(tuning).values.data.fill_(2.0)
    assert model.get_submodule(EMBEDDING)(torch.tensor([5])).detach().unique().tolist() == [2.0 * 64**0.5]


def test_a_tied_head_scores_with_the_trained_rows() -> None:
    model, tuning = begun("llama_tied", trainable_tokens=IDS)
    assert list(tuning.adapter)[-1] == HEAD and [name for name in tuning.parameters if "values" in name] == [f"{EMBEDDING}.values"]
    h_TC, plain = torch.randn(4, 64), model.get_output_embeddings().weight
    with torch.no_grad():
        tuning.parameters[f"{EMBEDDING}.values"].fill_(0.5)
        logits_TV = model.get_output_embeddings()(h_TC)
        expected = h_TC @ plain.T
        expected[:, IDS] = 0.5 * h_TC.sum(1, keepdim=True)
    torch.testing.assert_close(logits_TV, expected)


def test_at_a_tied_model_either_end_means_both() -> None:
    for named in (["lm_head"], ["embed_tokens"], ["lm_head", "model.embed_tokens"]):
        model, tuning = begun("llama_tied", modules_to_save=named)
        assert [name for name in tuning.parameters if "q_proj" not in name] == [f"{EMBEDDING}.weight"]
        assert model.lm_head.weight is model.model.embed_tokens.weight is tuning.parameters[f"{EMBEDDING}.weight"]
        slots.lift(model, tuning.adapter)
        assert model.lm_head.weight is model.model.embed_tokens.weight is not tuning.parameters[f"{EMBEDDING}.weight"]
    model, tuning = begun("llama", modules_to_save=["lm_head"])
    assert model.lm_head.weight is tuning.parameters["lm_head.weight"] and EMBEDDING not in tuning.adapter


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"trainable_tokens": [5, 96, -1]}, "trainable_tokens: 96, -1: not among the 96 ids of this model's embedding"),
        ({"trainable_tokens": ["<|im_start|>"]}, r"trainable_tokens: <\|im_start\|>: not among"),
        ({"modules_to_save": ["score"]}, "modules_to_save: no module score in this model"),
        ({"trainable_tokens": [1], "modules_to_save": ["embed_tokens"]}, "name it in one of them"),
        ({"modules_to_save": ["q_proj"]}, "modules_to_save: model.layers.0.self_attn.q_proj is also a target"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^method lora: .*{sentence}"):
        method.build(tiny("llama"), LoRA(targets=["q"], **settings), quantized=False)


@pytest.mark.parametrize("method_settings", [LoRA, DoRA])
def test_an_embedding_is_no_target_and_the_alternative_is_said(method_settings: Any) -> None:
    with pytest.raises(
        UserError, match=r"embed_tokens is an embedding.*method\.trainable_tokens=.*method\.modules_to_save=\[embed_tokens\]"
    ):
        method.build(tiny("llama"), method_settings(targets=["q", "embed_tokens"]), quantized=False)


def test_nf4_layers_are_not_trained_whole(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    write_byte_tokenizer(tmp_path)
    model = loading.load(tmp_path, dtype=torch.float32, quantize=True).model
    with pytest.raises(LookupError, match=r"mlp is kept in NF4.*model\.quantize=null"):
        lora.build(model, LoRA(targets=["q"], modules_to_save=["mlp"]))
    assert lora.build(model, LoRA(targets=["q"], modules_to_save=["norm"])).count > 0


def test_tokens_are_named_by_id_by_name_or_by_a_text_that_is_one() -> None:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {"<a>": 7, "b": 2}

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [2] if text == "B" else [2, 3]

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["b", "c"]

    assert extras.token_ids([5, "<a>", "B"], Tokenizer()) == [5, 7, 2]
    with pytest.raises(UserError) as caught:
        extras.token_ids(["bc", "cb"], Tokenizer())
    assert caught.value.problems[0] == "method.trainable_tokens: 'bc' is no token of this model, it is made of 2: 'b' 'c'"
    assert len(caught.value.problems) == 2


def whole(model: Any, row: Any) -> torch.Tensor:
    """The row's loss by the class and by all logits at once."""
    logits_TV = model(input_ids=row.ids_T[None], use_cache=False).logits[0]
    return cross_entropy(logits_TV[row.hidden_N].float(), row.targets_N, reduction="sum")


@pytest.mark.parametrize(
    "settings",
    [{"trainable_tokens": IDS}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens", "norm"]}],
    ids=["rows", "head", "embedding"],
)
@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma2", "cohere", "phi"])
def test_loss_and_gradients_are_those_of_the_class(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk through what stands at the head, with its scale and soft-cap."""
    monkeypatch.setattr(losses, "_BUDGET_BYTES", 1)  # 16 positions a chunk
    settings = {"modules_to_save": ["embed_tokens", "final_layernorm"]} if name == "phi" and "norm" in str(settings) else settings
    model, tuning = begun(name, **settings)
    moved(tuning)
    [row] = Plan(some_documents([60]), 64, 64, 0).rows(0)
    reference = whole(model, row)
    expected = torch.autograd.grad(reference, list(tuning.parameters.values()))
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    assert forward.head is not None
    gradients = {name: torch.zeros_like(p) for name, p in tuning.parameters.items() if p is forward.head.weight_VC}
    loss = forward.loss(row, 1.0, next(iter(gradients.values()), None))
    loss.backward()
    torch.testing.assert_close(loss, reference.detach(), rtol=1e-5, atol=1e-5)
    for (key, parameter), wanted in zip(tuning.parameters.items(), expected, strict=True):
        found = gradients.get(key, 0) + (0 if parameter.grad is None else parameter.grad)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item(), msg=key)


def test_an_update_at_the_head_is_reached_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_BUDGET_BYTES", 1)
    for kind in (lora.LoRA, dora.DoRA):
        model = tiny("gemma2")
        module: Any = kind(64, 96, 4, 1.5)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
        slots.place(model, {HEAD: module})
        [row] = Plan(some_documents([60]), 64, 64, 0).rows(0)
        reference = whole(model, row)
        expected = torch.autograd.grad(reference, list(module.parameters()))
        forward = Forward(model, own_head=True, packed=False)
        loss = forward.loss(row)
        torch.testing.assert_close(loss, reference)
        found = torch.autograd.grad(loss, list(module.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_logits_of_all_positions_never_stand_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_BUDGET_BYTES", 1)
    model, tuning = begun("llama_tied", trainable_tokens=IDS)
    rows, own = [], tuning.adapter[HEAD].forward

    def counting(layer: Any, h_RC: torch.Tensor) -> torch.Tensor:
        rows.append(len(h_RC))
        return own(layer, h_RC)

    monkeypatch.setattr(tuning.adapter[HEAD], "forward", counting)
    losses.learned_loss(torch.randn(50, 64, requires_grad=True), some_ids(50), head_of(model)).backward()
    assert rows == [16, 16, 16, 2]


# --- whole runs ---


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tied")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1}
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=259, eos_token_id=257)).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


BESIDES: dict[str, dict[str, Any]] = {
    "rows": {"trainable_tokens": ["<|im_start|>", "<|im_end|>", 101]},
    "head and norms": {"modules_to_save": ["lm_head", "input_layernorm"]},
}


@pytest.mark.parametrize(
    ("tied", "besides", "base"),
    [(True, "rows", "float32"), (True, "head and norms", "float32"), (True, "rows", "bfloat16"), (False, "head and norms", "bfloat16")],
)
def test_a_run_goes_on_to_the_bit_and_is_opened_as_what_was_trained(
    tied: bool, besides: str, base: str, tied_folder: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    model = tied_folder if tied else tiny_llama
    data, held_out = runs.write_rows(tmp_path / "rows.jsonl"), runs.write_rows(tmp_path / "held_out.jsonl", 7)
    name = "dora" if base == "float32" else "lora"
    changes: dict[str, Any] = {"model.dtype": base, "method": {"name": name, "rank": 4, **BESIDES[besides]}, "data.evaluate": str(held_out)}
    changes |= {"evaluate.every": 6, "train.recompute": "blocks"}
    happened = runs.finish(runs.settings(model, data, tmp_path / "whole", changes))
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(model, data, tmp_path / "broken", changes), stop=runs.stop_after(4), tell=runs.quiet))
    list(loop.resume(tmp_path / "broken", tell=runs.quiet))
    assert runs.steps_of(tmp_path / "broken") == runs.steps_of(tmp_path / "whole")
    left, right = runs.contents(tmp_path / "broken"), runs.contents(tmp_path / "whole")
    assert left.keys() == right.keys() and [path for path in left if left[path] != right[path]] == []

    last = [event for event in happened if isinstance(event, events.Evaluated)][-1]
    tuned = open_tuned(str(tmp_path / "whole"))
    samples, _ = load_samples(str(held_out))
    loss, learned = sample_loss(tuned, samples)
    assert learned == last.learned_tokens and loss == pytest.approx(last.loss, rel=1e-5 if base == "float32" else 2e-2)
    with tuned.without_adapter():
        assert abs(sample_loss(tuned, samples)[0] - loss) > 1e-3
    if base == "float32":
        out = tmp_path / "merged"
        assert main(["merge", str(tmp_path / "whole"), str(out), "--max-kl", "1e-8"]) == 0
        assert sample_loss(open_tuned(str(out)), samples)[0] == pytest.approx(loss, rel=1e-5)


def test_what_one_matrix_cannot_hold_is_not_merged_and_a_bias_is(tmp_path: Path) -> None:
    model, tuning = begun("phi", modules_to_save=["lm_head", "final_layernorm"])
    moved(tuning)
    slots.lift(model, tuning.adapter)
    model.save_pretrained(tmp_path / "phi")
    fold(tmp_path / "phi", tmp_path / "merged", tuning.adapter, lambda path: False, "model")
    slots.place(model, tuning.adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged.eval()(some_ids(9)[None]).logits, model(some_ids(9)[None]).logits, rtol=1e-5, atol=1e-5)

    base = tiny("llama_tied")
    split = extras.TrainedCopy(base.get_input_embeddings(), split_from="lm_head")
    with pytest.raises(UserError, match="has a copy beside lm_head alone, which one matrix cannot hold"):
        split.folded(base.get_input_embeddings().weight)


def test_tokens_become_ids_once_and_a_run_goes_on_from_them(tied_folder: Path, tmp_path: Path) -> None:
    data = runs.write_rows(tmp_path / "rows.jsonl")
    changes = {"method": {"name": "lora", "rank": 4, **BESIDES["rows"]}, "train.steps": 2}
    first = runs.settings(tied_folder, data, tmp_path / "first", changes)
    assert decide(first, {}).origins["method.trainable_tokens"] == "auto: ids of <|im_start|> <|im_end|> 101"
    runs.finish(first)
    kept: Any = config.load(tmp_path / "first" / "run.yaml").run.method
    assert kept.trainable_tokens == [256, 257, 101]
    written = json.loads((tmp_path / "first/adapter/adapter_config.json").read_text())
    assert written["trainable_token_indices"] == [256, 257, 101]

    again = {"model.adapter": str(tmp_path / "first"), "train.steps": 2}
    setting = decide(runs.settings(tied_folder, data, tmp_path / "second", again), {})
    assert setting.run.method.trainable_tokens == [256, 257, 101]  # type: ignore[union-attr]
    assert f"{EMBEDDING}.values" in setting.tuning.parameters
    runs.finish(runs.settings(tied_folder, data, tmp_path / "second", again))
    with pytest.raises(UserError, match="'xyz' is no token of this model, it is made of 3"):
        decide(runs.settings(tied_folder, data, tmp_path / "third", {"method": {"name": "lora", "trainable_tokens": ["xyz"]}}), {})


@pytest.mark.parametrize("name", ["llama_tied", "gemma3"])
@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"trainable_tokens": [5, 7]}])
def test_a_layer_is_left_alone_by_what_answers_beside_it(name: str, settings: dict[str, Any]) -> None:
    """A stretch of a row goes by trained rows and copies while the layer keeps its own tensors, at both ends of a tied model."""
    model, tuning = begun(name, **settings)
    moved(tuning)
    ids, h = torch.tensor([IDS]), torch.randn(1, 3, 64)
    with torch.no_grad():
        wanted = {EMBEDDING: model.get_submodule(EMBEDDING)(ids), HEAD: model.get_submodule(HEAD)(h)}
        slots.lift(model, tuning.adapter)
        for path, x in ((EMBEDDING, ids), (HEAD, h)):
            layer, module = model.get_submodule(path), tuning.adapter[path]
            own = layer(x)
            found = module.instead(layer, x) if hasattr(module, "instead") else module.changed(layer, x, own.clone())  # type: ignore[operator]
            assert torch.equal(found, wanted[path]) and not torch.equal(found, own)
            assert torch.equal(layer(x), own) and "forward" not in vars(layer)


def test_a_copy_shares_all_but_what_it_is_given() -> None:
    layer = torch.nn.Linear(3, 2)
    other = extras.with_tensors(layer, {"weight": torch.nn.Parameter(torch.zeros(2, 3))})
    assert other.bias is layer.bias and torch.equal(other(torch.randn(3)), layer.bias)
    assert layer.weight.abs().sum() > 0
