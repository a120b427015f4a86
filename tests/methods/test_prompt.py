"""Virtual tokens as a table: where they stand, what they begin as, and that packing, recomputing and the base's dtype do not matter."""

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Gemma3nTextConfig

from tests.tiny_models import VOCABULARY, some_documents, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.errors import UserError
from tunesmith.methods import method, prompt
from tunesmith.methods.parts import in_front
from tunesmith.methods.prompt import VirtualTokens, embed, ordinary_ids, size_of
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.settings import Prompt as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.proof import Proof
from tunesmith.step.forward import Forward, prepare
from tunesmith.step.recompute import recompute_blocks

PATH = "model.embed_tokens"


def begun(model: Any, tokenizer: Any = None, seed: int = 0, task: str = "", **settings: Any) -> Tuning:
    chosen = Settings(**settings)
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, tokenizer, seed, lambda path: torch.empty(0), task), chosen)
    return tuning


def table(tuning: Tuning) -> torch.Tensor:
    [found] = tuning.parameters.values()
    return found.detach()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mamba"])
def test_placeholders_get_the_table_and_real_tokens_their_embedding(family):
    """Gemma scales its embeddings: the table is behind that."""
    model = tiny(family)
    embedding = model.get_input_embeddings()
    tuning = begun(model, tokens=3, init="random")
    ids_BT = torch.tensor([[96, 97, 98, 7, 8], [5, 96, 97, 98, 0]])
    expected = embedding(ids_BT.clamp(max=95))
    expected[0, :3] = expected[1, 1:4] = table(tuning)
    method.place(model, tuning)
    assert torch.equal(model.get_input_embeddings()(ids_BT), expected)
    assert list(slots.virtual_ids(model)) == [96, 97, 98] and tuning.virtual_tokens == 3
    real = torch.tensor([[5, 95]])
    assert torch.equal(embedding(real), slots.own_forward(embedding, real))


def test_gradients_reach_the_table_alone_and_are_summed_in_fp32():
    layer = torch.nn.Embedding(10, 4).bfloat16()  # not frozen: whoever trains it too gets its gradient
    module = VirtualTokens(2, 4)
    y = module(layer, torch.tensor([[10, 11, 3], [10, 11, 9]]))
    assert y.dtype == torch.bfloat16
    y.backward(torch.full(y.shape, 1.0, dtype=torch.bfloat16))
    assert module.table.grad is not None and module.table.grad.dtype == torch.float32
    assert torch.equal(module.table.grad, torch.full((2, 4), 2.0))
    assert layer.weight.grad is not None and layer.weight.grad[[3, 9]].eq(1).all() and layer.weight.grad[:3].eq(0).all()
    many = module(layer, torch.tensor([[10, 11]] * 300))
    module.zero_grad()
    many.backward(torch.full(many.shape, 1.0, dtype=torch.bfloat16))
    assert module.table.grad is not None and torch.equal(module.table.grad, torch.full((2, 4), 300.0)), "bf16 would stop at 256"


def test_a_step_of_the_answer_does_not_ask_for_the_table():
    layer, asked = torch.nn.Embedding(10, 4), []
    embed(layer, torch.tensor([[3]]), lambda: asked.append(True) or torch.zeros(2, 4))  # type: ignore[func-returns-value]
    assert not asked


def test_counts_are_the_pages():
    tuning = prompt.build(tiny("llama"), Settings(tokens=7), device="meta")
    assert tuning.count == 7 * 64 and list(tuning.parameters) == [f"{PATH}.table"] and tuning.layout == "prompt"
    assert {parameter.device.type for parameter in tuning.parameters.values()} == {"meta"}


def test_a_text_is_repeated_cut_or_named_by_the_task(tokenizer, tiny_llama):
    model = loading.load(tiny_llama, dtype=torch.float32).model
    rows = model.get_input_embeddings().weight

    def expected(text: str, count: int) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return rows[[ids[i % len(ids)] for i in range(count)]]

    assert torch.equal(table(begun(model, tokenizer, text="Sort.", tokens=12)), expected("Sort.", 12))
    assert torch.equal(table(begun(model, tokenizer, text="Sort letters", tokens=4)), expected("Sort", 4))
    assert torch.equal(table(begun(model, tokenizer, task="Name it.", tokens=9)), expected("Name it.", 9))
    assert torch.equal(table(begun(model, tokenizer, tokens=90)), expected(in_front.SENTENCE, 90))


def test_tokens_of_the_vocabulary_are_ordinary_ones_and_each_its_own(tokenizer, tiny_llama):
    model = loading.load(tiny_llama, dtype=torch.float32).model
    assert ordinary_ids(tokenizer, 384) == list(range(256)), "no special token, and no row beyond the tokenizer's words"
    assert ordinary_ids(None, 9) == list(range(9))
    drawn = table(begun(model, tokenizer, tokens=40, init="vocabulary"))
    rows = model.get_input_embeddings().weight
    numbers = [int((rows == row).all(1).nonzero()) for row in drawn]
    assert len(set(numbers)) == 40 and max(numbers) < 256
    assert torch.equal(drawn, table(begun(model, tokenizer, tokens=40, init="vocabulary")))
    assert not torch.equal(drawn, table(begun(model, tokenizer, tokens=40, init="vocabulary", seed=1)))
    assert len(table(begun(model, tokenizer, tokens=300, init="vocabulary"))) == 300


def test_only_common_tokens_are_drawn(monkeypatch):
    monkeypatch.setattr(prompt, "COMMON_TOKENS", 10)
    model = tiny("llama")
    rows = model.get_input_embeddings().weight
    drawn = table(begun(model, tokens=10, init="vocabulary"))
    assert {int((rows == row).all(1).nonzero()) for row in drawn} == set(range(10))


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_random_values_and_steps_are_as_large_as_the_embeddings(factor):
    model = tiny("llama")
    model.get_input_embeddings().weight.mul_(factor)
    tuning = begun(model, tokens=200, init="random")
    size = model.get_input_embeddings().weight.square().mean().sqrt().item()
    assert table(tuning).std().item() == pytest.approx(size, rel=0.05) and abs(table(tuning).mean().item()) < 0.05 * size
    assert tuning.learning_rate_ratios == {f"{PATH}.table": pytest.approx(size / prompt.USUAL_SIZE, rel=0.05)}


def test_the_size_is_behind_the_scale_of_the_class():
    """Gemma multiplies by √C: 8 here."""
    model = tiny("gemma3")
    assert size_of(model) == pytest.approx(8 * model.get_input_embeddings().weight.square().mean().sqrt().item(), rel=0.05)


def test_models_that_virtual_tokens_cannot_stand_in_front_of():
    with pytest.raises(UserError, match=r"method prompt: 256 positions in front leave no room: this model takes 256; lower method.tokens"):
        method.build(tiny("gpt2"), Settings(tokens=256), quantized=False)
    model = tiny("llama")
    model.config.vocab_size_per_layer_input = Gemma3nTextConfig().vocab_size_per_layer_input
    model.config.hidden_size_per_layer_input = Gemma3nTextConfig().hidden_size_per_layer_input
    with pytest.raises(UserError, match=r"method prompt: .*once more in every block.*take lora"):
        method.build(model, Settings(), quantized=False)


def rows_of(model: Any, packed: bool) -> tuple[Any, list[Any]]:
    documents = some_documents([9, 14, 6])
    virtual = slots.virtual_ids(model)
    return documents, [make_row(documents, [0, 1, 2], virtual)] if packed else [make_row(documents, [i], virtual) for i in range(3)]


def loss_and_gradient(forward: Forward, tuning: Tuning, rows: list[Any]) -> tuple[float, list[torch.Tensor]]:
    for parameter in tuning.parameters.values():
        parameter.grad = None
    total = 0.0
    for row in rows:
        loss = forward.loss(row)
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in tuning.parameters.values() if parameter.grad is not None]


BASES = {"fp32": (torch.float32, False, 1e-5), "bf16": (torch.bfloat16, False, 2e-2), "nf4": (torch.float32, True, 1e-5)}


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("family", ["llama_tied", "qwen3", "gemma3", "mistral"])
def test_packed_and_recomputed_rows_are_the_documents_alone(family, base, name, tmp_path):
    dtype, quantize, tolerance = BASES[base]
    tiny(family).save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_tokenizer", lambda folder: None)
        made = loading.load(tmp_path, dtype=dtype, quantize=quantize)
    chosen: Any = SETTINGS[name].model_validate({"tokens": 4})
    tuning = method.build(made.model, chosen, quantized=made.quantized)
    method.begin(tuning, Start(made.model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(made.model, tuning)
    forward = prepare(made.model, Proof(True, True, ()), made.own_attention)
    _, alone = rows_of(made.model, packed=False)
    _, packed = rows_of(made.model, packed=True)
    assert packed[0].lengths == (13, 18, 10) and packed[0].computed_tokens == packed[0].tokens + 12
    expected, expected_gradients = loss_and_gradient(forward, tuning, alone)
    found, gradients = loss_and_gradient(forward, tuning, packed)
    recompute_blocks(made.model)
    again, gradients_again = loss_and_gradient(forward, tuning, packed)
    assert found == pytest.approx(expected, rel=tolerance) and again == found
    assert len(gradients) == len(tuning.parameters) and not any(p.grad is not None for p in made.model.parameters())
    for ours, recomputed, theirs in zip(gradients, gradients_again, expected_gradients, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, recomputed)
        assert (ours - theirs).norm() <= 5 * tolerance * theirs.norm()


def test_a_document_behind_virtual_tokens_has_its_first_token_learned():
    """Something stands before it to predict it from."""
    model = tiny("llama")
    method.place(model, begun(model, tokens=2, init="random"))
    documents = some_documents([5])
    documents.learned_N[0] = True
    row = make_row(documents, [0], slots.virtual_ids(model))
    assert row.hidden_N[0] == 1 and row.targets_N[0] == documents.ids_N[0]
    assert row.ids_T[:2].tolist() == [VOCABULARY, VOCABULARY + 1]
    assert torch.isfinite(Forward(model, False, False).loss(row))


def test_placeholders_are_filled_in_where_the_embeddings_output_is_there_already():
    model = tiny("llama")
    embedding, tuning = model.get_input_embeddings(), begun(model, tokens=3, init="random")
    ids = torch.tensor([[97, 5, 96]])
    y = embedding(torch.tensor([[0, 5, 0]]))
    found = tuning.adapter[PATH].changed(embedding, ids, y)  # type: ignore[operator]
    assert torch.equal(found[0, [0, 2]], table(tuning)[[1, 0]]) and torch.equal(found[0, 1], y[0, 1])
