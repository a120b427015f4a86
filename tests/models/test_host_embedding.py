# mypy: disable-error-code="arg-type,operator"

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.models import host_embedding, slots


def llama(tied: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).requires_grad_(False)


class Doubled(nn.Module):
    def forward(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return 2 * slots.own_forward(layer, x)


def adapted(tied: bool = False) -> LlamaForCausalLM:
    model = llama(tied)
    slots.place(model, {"model.layers.0.self_attn.o_proj": Doubled()})
    return model


IDS = torch.tensor([[3, 1, 4, 1, 49]])


def test_the_model_computes_the_same_and_gets_its_table_back():
    model = adapted()
    before, table = model(input_ids=IDS).logits, model.get_input_embeddings().weight.clone()
    assert host_embedding.place(model) == 49 * 16 * 4
    assert model.get_input_embeddings().weight.shape == (50, 16) and model.device == torch.device("cpu")
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert host_embedding.place(model) == 0  # it stands there already
    host_embedding.lift(model)
    assert torch.equal(model.get_input_embeddings().weight, table) and "forward" not in vars(model.get_input_embeddings())
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_whoever_computes_with_what_is_left_sees_it():
    model = adapted()
    host_embedding.place(model)
    weight = model.get_input_embeddings().weight
    assert torch.isnan(weight).all() and weight.untyped_storage().nbytes() == 16 * 4


@pytest.mark.parametrize("hindrance", ["tied", "trained", "adapter", "no adapter", "another class"])
def test_a_table_that_others_need_stays(hindrance):
    model = llama() if hindrance == "no adapter" else adapted(tied=hindrance == "tied")
    embedding = model.get_input_embeddings()
    if hindrance == "trained":
        embedding.weight.requires_grad_()
    if hindrance == "adapter":
        slots.place(model, {"model.embed_tokens": Doubled()})
    if hindrance == "another class":
        model.set_input_embeddings(type("Scaled", (nn.Embedding,), {})(50, 16).requires_grad_(False))
    weight = model.get_input_embeddings().weight
    assert host_embedding.place(model) == 0 and model.get_input_embeddings().weight is weight
    host_embedding.lift(model)  # nothing to take back
    assert model.get_input_embeddings().weight is weight
