"""The proof says exactly which classes may be left to our head and our attention, and catches what would go wrong silently."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from tests.tiny_models import CONFIGS, model_class
from tunesmith.models import attention, forest
from tunesmith.models.proof import LENGTHS, VOCABULARY, WINDOW, miniature, prove

PACKED = [
    "llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "mixtral", "qwen3_moe", "gpt2",
    "cohere", "granite", "gpt_oss", "opt", "gpt_neox", "starcoder2", "smollm3",
]  # fmt: skip
# attention of their own that knows no documents; mixers that carry state from one document to the next
OWN_ATTENTION = ["falcon", "bloom", "mpt", "gptj", "lfm2", "mamba", "llama4"]


def proved(name, cls=None, prefix=False):
    cls = cls or model_class(name)
    return prove(CONFIGS[name](), cls, "sdpa" if cls._supports_sdpa else "eager", prefix)


@pytest.mark.parametrize("name", PACKED)
def test_families_that_may_be_packed_and_may_stand_behind_a_prefix(name):
    found = proved(name, prefix=True)
    assert (found.own_head, found.packed, found.behind_prefix, found.shared, found.failures) == (True, True, True, True, ())


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_families_that_may_not(name):
    found = proved(name, prefix=True)
    assert (found.own_head, found.packed, found.behind_prefix, found.shared) == (True, False, False, False)
    assert len(found.failures) == 1 and found.failures[0].startswith("not so for this architecture: ")


def test_every_configuration_is_on_one_of_the_lists():
    assert set(CONFIGS) == {*PACKED, *OWN_ATTENTION}


class LosesItsMask(LlamaForCausalLM):
    """Under any attention but its own names every layer sees the whole row, without an error."""

    def forward(self, *args, **kwargs):
        if self.config._attn_implementation != "sdpa":
            kwargs |= {"cu_seq_lens_q": torch.tensor([0, kwargs["input_ids"].shape[1]]), "forest": None}
        return super().forward(*args, **kwargs)


class LeaksBackwards(LlamaForCausalLM):
    """Adds the mean over the whole row to every position's logits: the future and other documents leak in."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.mean(1, keepdim=True)
        return output


class ScalesItsLogits(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.01
        return output


class AsksForMore(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, attention_bias=torch.ones(1), **kwargs)


class CannotRun(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        raise RuntimeError("no kernel here\nsecond line")


class CannotBeSmall(LlamaForCausalLM):
    def __init__(self, config):
        raise ValueError("hidden_size must be 4096")


def test_a_class_whose_documents_see_each_other_is_not_packed(monkeypatch):
    """Its decoder is fine, so our head hides the fault: taken away here, the class's own forward is what is proved."""
    found = proved("llama", LosesItsMask)
    assert found.own_head and found.packed  # with our head the class's forward is never called
    monkeypatch.setattr("tunesmith.models.proof.head_of", lambda model: (_ for _ in ()).throw(AttributeError("no head")))
    found = proved("llama", LosesItsMask)
    assert not found.own_head and not found.packed
    assert (
        found.failures[0]
        == "not so for this architecture: our head gives the class's logits (AttributeError: no head); its own head is used"
    )
    assert found.failures[1].startswith("not so for this architecture: a packed row gives what its documents give alone (relative")


def test_an_attention_that_loses_its_mask_is_caught(monkeypatch):
    """What a trial found in the wild: under a registered name the class hands over neither mask nor causality."""
    eager = modeling_llama.eager_attention_forward

    def unmasked(module, q, k, v, attention_mask, **kwargs):
        assert attention_mask is None
        return eager(module, q, k, v, None, **kwargs)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, unmasked)
    found = proved("llama")
    assert found.own_head and not found.packed
    assert "our attention gives what the class's own attention gives" in found.failures[0]


def test_a_prefix_that_is_not_attended_to_as_the_class_does_is_caught(monkeypatch):
    """Tokens that stand at positions from 0 on, as if there were no prefix, are wrong only behind one."""
    monkeypatch.setattr("tunesmith.models.front.slots.first_position", lambda model: 0)
    assert proved("llama").behind_prefix
    found = proved("llama", prefix=True)
    assert (found.own_head, found.packed, found.behind_prefix) == (True, True, False)
    assert len(found.failures) == 1 and found.failures[0].endswith("a prefix cannot be trained or used here")
    assert "our attention behind a prefix gives what the class gives (relative difference" in found.failures[0]


def test_what_leaks_is_caught_by_our_head_or_by_packing():
    found = proved("llama", LeaksBackwards)
    assert (found.own_head, found.packed) == (False, False)


def test_another_scale_of_the_logits_leaves_the_class_its_head_and_us_the_attention():
    found = proved("llama", ScalesItsLogits)
    assert (found.own_head, found.packed) == (False, True)
    assert found.failures[0].startswith("not so for this architecture: our head gives the class's logits (relative difference ")


def test_an_unknown_argument_is_an_error_never_ignored(monkeypatch):
    monkeypatch.setattr("tunesmith.models.proof.head_of", lambda model: (_ for _ in ()).throw(AttributeError("no head")))
    found = proved("llama", AsksForMore)
    assert not found.packed and "UnknownArgument: attention asks for attention_bias" in found.failures[1]


def test_a_class_that_cannot_run_or_be_small_is_left_as_it_is():
    assert proved("llama", CannotRun).failures == (
        "no miniature of CannotRun runs (RuntimeError: no kernel here); its own head and attention are used",
    )
    found = proved("llama", CannotBeSmall)
    assert (found.own_head, found.packed) == (False, False)
    assert found.failures == (
        "no miniature of CannotBeSmall runs (ValueError: hidden_size must be 4096); its own head and attention are used",
    )


def test_a_class_that_insists_on_its_heads_is_proved_with_all_of_them():
    class Insists(LlamaForCausalLM):
        def __init__(self, config):
            assert config.num_attention_heads == 32 and config.hidden_size == 512
            super().__init__(config)

    config = LlamaConfig(hidden_size=512, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=2)
    found = prove(config, Insists, "sdpa")
    assert found.own_head and found.packed


@pytest.mark.parametrize(
    ("config", "heads", "kept", "width"),
    [
        (LlamaConfig(hidden_size=1024, num_attention_heads=32, num_key_value_heads=8), 8, 2, 256),
        (LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3), 9, 3, 576),
        (LlamaConfig(hidden_size=1024, num_attention_heads=16, num_key_value_heads=16), 4, 4, 256),
        (LlamaConfig(hidden_size=512, num_attention_heads=16, num_key_value_heads=1), 16, 1, 512),
        (LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2), 4, 2, 64),
    ],
)
def test_heads_and_channels_go_down_in_proportion(config, heads, kept, width):
    small = miniature(config, LlamaForCausalLM).config
    assert (small.num_attention_heads, small.num_key_value_heads, small.hidden_size) == (heads, kept, width)
    assert small.head_dim == config.head_dim
    whole = miniature(config, LlamaForCausalLM, narrow=False).config
    assert (whole.num_attention_heads, whole.hidden_size) == (config.num_attention_heads, config.hidden_size)


def test_the_miniature_keeps_every_kind_of_layer_and_leaves_the_config_alone():
    config = CONFIGS["gemma3"]()
    config.num_hidden_layers, config.layer_types = 12, (["sliding_attention"] * 5 + ["full_attention"]) * 2
    config.sliding_window = 512
    small = miniature(config, model_class("gemma3"))
    assert small.config.layer_types == config.layer_types[:6] and len(small.model.layers) == 6
    assert small.config.sliding_window == WINDOW < max(LENGTHS)
    assert small.config.vocab_size == VOCABULARY and small.dtype == torch.float32
    assert (config.num_hidden_layers, config.sliding_window, config.vocab_size) == (12, 512, CONFIGS["gemma3"]().vocab_size)


def test_the_miniature_shows_every_path():
    small = miniature(GPT2Config(n_embd=64, n_layer=12, n_head=4), model_class("gpt2"))
    assert len(small.transformer.h) == 2
    assert all(parameter.abs().max() > 0 for parameter in small.parameters()), "a bias of zeros would hide that it is forgotten"


def test_the_seed_of_the_run_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    proved("qwen3")
    assert torch.equal(torch.random.get_rng_state(), before)


class LosesTheForest(LlamaForCausalLM):
    """Hands document starts down to its attention, and nothing that it does not know."""

    def forward(self, *args, **kwargs):
        kwargs.pop("forest", None)
        return super().forward(*args, **kwargs)


def test_a_class_that_loses_what_is_shared_shares_nothing(monkeypatch):
    monkeypatch.setattr("tunesmith.models.proof.head_of", lambda model: (_ for _ in ()).throw(AttributeError("no head")))
    assert proved("llama").shared
    found = proved("llama", LosesTheForest)
    assert found.packed and not found.shared
    assert found.failures[1].startswith("not so for this architecture: what documents share, computed once, gives what they give alone")
    assert found.failures[1].endswith("each document is computed from its first token on")


def test_tokens_that_stand_at_other_positions_than_alone_are_caught(monkeypatch):
    """Segments whose positions restart, as if nothing stood before them, are wrong only where something does."""
    right = forest.positions
    monkeypatch.setattr(forest, "positions", lambda given, first=0: right(forest.Forest(given.starts), first))
    found = proved("llama")
    assert found.packed and not found.shared and len(found.failures) == 1


def test_what_is_not_to_be_shared_is_not_proved(monkeypatch):
    monkeypatch.setattr("tunesmith.models.proof._shared", lambda *given: pytest.fail("proved"))
    found = prove(CONFIGS["llama"](), model_class("llama"), "sdpa", share=False)
    assert found.packed and not found.shared and found.failures == ()
