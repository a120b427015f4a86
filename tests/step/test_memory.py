"""What a run will take, by parts: counted, not guessed."""

from dataclasses import replace

import pytest
import torch

from tests.tiny_models import tiny
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.models import load, slots
from tunesmith.step import adam8bit
from tunesmith.step.memory import Memory, Question, gigabytes, predicted


def question(name="llama", kind="lora", **changes):
    skeleton = load.skeleton(tiny(name).config)
    tuning = method.build(skeleton, SETTINGS[kind](), quantized=False, device="meta")
    size = load.size_of(skeleton, torch.float32, False, True)
    base = Question(skeleton, tuning, size.weight_bytes, torch.float32, "adamw", False, 2, 0.5, 32, 10**6, "cpu", False)
    return replace(base, **changes)


def count(asked):
    return sum(p.numel() for p in asked.tuning.parameters.values())


def test_an_adapters_parts():
    asked = question()
    parts = predicted(asked, "none", 64).parts
    assert parts["weights"] == asked.weight_bytes and parts["adapter"] == 4 * count(asked)
    assert parts["optimizer"] == 8 * count(asked) and parts["gradients"] == 4 * count(asked)
    assert parts["activations"] > 0 and "workspace" not in parts and "program" not in parts
    assert predicted(asked, "none", 64).total == sum(parts.values())


def test_full_tuning_in_bf16_has_masters_unless_tensors_are_moved_in_the_backward_pass():
    ordinary = question(kind="full", dtype=torch.bfloat16)
    parts = predicted(ordinary, "none", 64).parts
    assert parts["optimizer"] == 12 * count(ordinary) and parts["gradients"] == 6 * count(ordinary) and "adapter" not in parts
    moved = predicted(replace(ordinary, in_backward=True), "none", 64).parts
    assert moved["optimizer"] == 8 * count(ordinary) and "gradients" not in moved


def test_8_bit_states_are_bytes_and_paged_ones_are_elsewhere():
    asked = question(kind="full", optimizer="adamw_8bit")
    small = sum(p.numel() for p in asked.tuning.parameters.values() if p.numel() < adam8bit.SMALL)
    large = count(asked) - small
    assert predicted(asked, "none", 64).parts["optimizer"] == pytest.approx(8 * small + (2 + 8 / 256) * large, abs=100)
    paged = replace(asked, optimizer="paged_adamw_8bit")
    assert predicted(paged, "none", 64).parts.get("optimizer", 0) == 8 * small


def test_states_are_what_the_optimizer_really_holds():
    model = tiny("llama").requires_grad_(True)
    state = [adam8bit.empty_state(p) for p in model.parameters()]
    held = sum(value.nbytes for each in state for name, value in each.items() if name != "step")
    assert predicted(question(kind="full", optimizer="adamw_8bit"), "none", 64).parts["optimizer"] == pytest.approx(held, abs=400)


def test_activations_grow_with_the_row_and_fall_with_the_level():
    asked = question()
    short, long = (predicted(asked, "none", tokens).parts["activations"] for tokens in (64, 256))
    assert 3 * short < long < 4.2 * short
    by_level = [predicted(asked, level, 256).parts["activations"] for level in ("none", "elementwise", "blocks")]
    assert by_level[0] > by_level[1] > by_level[2]


def test_no_row_is_longer_than_a_step():
    asked = question(step_tokens=64)
    assert predicted(asked, "none", 64).parts == predicted(asked, "none", 4096).parts


def test_nf4_needs_a_place_for_one_matrix():
    asked = question(quantized=True)
    largest = max(place.in_features * place.out_features for place in slots.linears(asked.skeleton))
    assert predicted(asked, "none", 64).parts["workspace"] == 4 * largest


def test_what_cannot_be_rehearsed_is_estimated_and_said_to_be_rough():
    asked = question("mixtral")  # in fp32 its experts' operator has no form without content
    memory = predicted(asked, "none", 64)
    assert memory.rough and memory.parts["activations"] > 0 and not predicted(question(), "none", 64).rough
    assert not slots.placed(asked.skeleton), "the adapter is lifted again"


@pytest.mark.parametrize("kind", ["dora", "pissa", "prompt", "ptuning", "prefix", "ptuning_v2", "adapter", "freeze"])
def test_every_method_can_be_rehearsed(kind):
    memory = predicted(question(kind=kind), "blocks", 64)
    assert not memory.rough and memory.parts["activations"] > 0


def test_in_words():
    memory = Memory({"weights": 540_000_000, "activations": 1_100_000_000, "adapter": 9_000_000})
    assert memory.sentence() == "1.6 GB: activations 1.1, weights 0.54"
    assert [gigabytes(size) for size in (21_000_000, 9.96e9, 47.4e9)] == ["0.021", "10", "47"]


def test_in_the_smallest_mode_on_a_gpu_a_frozen_embedding_takes_nothing():
    model = tiny("llama")
    assert not model.config.tie_word_embeddings, "a table that the head needs stays"
    asked = question(device_type="cuda")
    table = asked.skeleton.get_input_embeddings().weight
    moved = (table.shape[0] - 1) * table.shape[1] * 4
    assert predicted(asked, "blocks", 64).parts["weights"] - predicted(asked, "offload", 64).parts["weights"] == moved > 0
    assert predicted(question(), "offload", 64).parts["weights"] == asked.weight_bytes
