"""What stands in front of a document, fed to the class itself: virtual tokens that are copies of real ones, and a prefix that is the
model's own activations, give what real tokens in front give."""

from typing import Any

import pytest
import torch

from tests.in_front import place_copies, place_kept
from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.models import front, slots
from tunesmith.models.head import decoder_of

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "mistral", "phi", "phi3", "gpt2", "opt", "gpt_neox", "gpt_oss", "mixtral", "falcon"]
families = pytest.mark.parametrize("family", FAMILIES)
FRONT = some_ids(5, seed=1)
IDS_BT = some_ids(24).view(2, 12)  # longer than the windows of the tiny models, which are 7


def behind(ids: torch.Tensor, model: Any) -> torch.Tensor:
    """The class's logits of the documents, with real tokens in front."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.cat([ids.expand(len(IDS_BT), -1), IDS_BT], dim=1), use_cache=False).logits
    return logits[:, len(ids) :]


@pytest.mark.parametrize("place", [place_copies, place_kept])
@families
def test_logits_are_those_behind_real_tokens(family, place):
    model = tiny(family)
    expected, bare = behind(FRONT, model), model(input_ids=IDS_BT).logits
    placed = place(model, FRONT)
    with torch.no_grad():
        found = front.logits(model, IDS_BT)
        some = front.logits(model, IDS_BT, torch.tensor([0, 3, 11]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(some, expected[:, [0, 3, 11]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 0], bare[:, 0], atol=1e-2), "what stands in front is seen"
    slots.lift(model, placed)
    assert torch.equal(front.logits(model, IDS_BT), bare)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt_oss"])
def test_a_prefix_longer_than_the_window(family):
    """Layers with a window keep its end alone."""
    model, long = tiny(family), some_ids(11, seed=2)
    expected = behind(long, model)
    place_kept(model, long)
    with torch.no_grad():
        torch.testing.assert_close(front.logits(model, IDS_BT), expected, rtol=1e-4, atol=1e-4)


@families
def test_both_at_once(family):
    """Virtual tokens behind a prefix: positions go on from one to the other."""
    model = tiny(family)
    expected = behind(FRONT, model)
    place_kept(model, FRONT[:2])
    place_copies(model, FRONT[2:])
    with torch.no_grad():
        torch.testing.assert_close(front.logits(model, IDS_BT), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [place_copies, place_kept])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2"])
def test_hidden_states_are_those_behind_real_tokens(family, place):
    model = tiny(family)
    with torch.no_grad():
        whole = decoder_of(model)(input_ids=torch.cat([FRONT.expand(2, -1), IDS_BT], dim=1), use_cache=False).last_hidden_state
        place(model, FRONT)
        torch.testing.assert_close(front.hidden(model, IDS_BT), whole[:, 5:], rtol=1e-4, atol=1e-4)


def test_a_cache_holds_the_prefix_for_every_document_and_in_the_models_dtype():
    model = tiny("llama").bfloat16()
    assert front.cache_of(model, 3) is None
    kept = place_kept(model, FRONT)
    cache: Any = front.cache_of(model, 3)
    assert cache.get_seq_length() == 5 and len(cache.layers) == 2
    assert cache.layers[0].keys.shape == (3, 2, 5, 16) and cache.layers[1].values.dtype == torch.bfloat16
    assert torch.equal(cache.layers[1].keys[2], next(m for m in kept.values() if m.layer == 1).keys_values()[0])


def test_a_cache_lets_gradients_through():
    model = tiny("llama")
    kept = place_kept(model, FRONT)
    for module in kept.values():
        module.parts = tuple(part.clone().requires_grad_() for part in module.parts)
    front.logits(model, IDS_BT).sum().backward()
    assert all(part.grad.abs().max() > 0 for module in kept.values() for part in module.parts)


def test_what_has_a_window():
    assert {name for name in FAMILIES if front.is_windowed(tiny(name))} == {"gemma2", "gemma3", "mistral", "gpt_oss"}


def test_placeholders_lie_beyond_the_embeddings_rows():
    """Checkpoints with spare rows have more of them than the tokenizer has words."""
    model = tiny("llama")
    assert list(slots.virtual_ids(model)) == []
    placed = place_copies(model, FRONT)
    assert list(slots.virtual_ids(model)) == list(range(VOCABULARY, VOCABULARY + 5)) and slots.first_position(model) == 0
    slots.lift(model, placed)
    assert list(slots.virtual_ids(model)) == []
