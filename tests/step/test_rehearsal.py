"""A row rehearsed without memory takes what a row takes: counted storage by storage on a CPU, by the same count."""

import pytest
import torch

from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.methods import full, lora, method
from tunesmith.methods.settings import Full, LoRA
from tunesmith.models import attention, load, slots
from tunesmith.models.parts import standing
from tunesmith.models.proof import Proof
from tunesmith.step import recompute
from tunesmith.step.forward import Forward, prepare
from tunesmith.step.loss import chunk_rows
from tunesmith.step.rehearsal import NAME, Count, rehearse

LENGTHS = [40, 24]
ROW = make_row(some_documents(LENGTHS), [0, 1])


def skeleton(name, depth=None):
    config = tiny(name).config
    if depth is not None:
        config.num_hidden_layers = depth
    model = load.skeleton(config).float()
    tuning = lora.build(model, LoRA(), "meta")
    method.place(model, tuning)
    return model


def meta(row):
    return type(row)(row.ids_T.to("meta"), row.lengths, row.documents, row.hidden_N.to("meta"), row.targets_N.to("meta"), *[row.tokens] * 2)


def counted(name, level):
    """(kept, peak forward, peak backward) of a row that is really computed, without the trained tensors' gradients."""
    model = tiny(name)
    tuning = lora.build(model, LoRA())
    for parameter in tuning.parameters.values():
        parameter.data.normal_()
    method.place(model, tuning)
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    for forwards in standing.recognised(model, torch.float32).values():
        standing.stand(model, forwards)
    recompute.place(model, level)
    for parameter in tuning.parameters.values():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    forward.loss(ROW).backward()  # what is made once, at the first call, is no part of a row
    stands = [*model.parameters(), *model.buffers(), *tuning.parameters.values(), ROW.ids_T, ROW.hidden_N, ROW.targets_N]
    with Count(stands, "cpu") as count:
        loss = forward.loss(ROW)
        kept, ahead = count.now, count.peak
        count.peak = count.now
        loss.backward()
        return kept, ahead, count.peak


@pytest.mark.parametrize("level", ["none", "elementwise", "blocks"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "gpt2"])
def test_a_rehearsal_takes_what_a_row_takes(name, level):
    kept, ahead, behind = counted(name, level)
    model = skeleton(name)
    found = rehearse(Forward(model, True, True), meta(ROW), level)
    assert found.kept == pytest.approx(kept, rel=0.1, abs=24_000), "what adapters make once, at the first call, is counted here"
    assert found.peak == pytest.approx(max(ahead, behind), rel=0.1, abs=24_000)


def test_each_level_keeps_less():
    model = skeleton("llama", depth=12)
    kept = [rehearse(Forward(model, True, True), meta(ROW), level).kept for level in recompute.LEVELS]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert kept[2] < 0.3 * kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("level", ["none", "blocks"])
def test_blocks_of_a_kind_stand_for_each_other(level):
    """Two of twelve are computed: the difference of a deeper and a shallower model is that of its blocks."""
    two, seven, twelve = (rehearse(Forward(skeleton("llama", depth), True, True), meta(ROW), level) for depth in (2, 7, 12))
    assert twelve.kept - seven.kept == pytest.approx(seven.kept - two.kept) and twelve.kept > 2 * two.kept > 0
    assert twelve.block == seven.block


def test_kinds_that_differ_are_told_apart():
    model = skeleton("lfm2")  # a convolution, then attention
    found = rehearse(Forward(model, True, True), meta(ROW), "none")
    assert found.kept > 0


def test_the_model_is_left_as_it_was():
    model = skeleton("llama", depth=6)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    implementation = model.config._attn_implementation
    rehearse(Forward(model, True, True), meta(ROW), "blocks")
    assert len(slots.blocks(model)) == 6 == model.config.num_hidden_layers and model.config._attn_implementation == implementation
    assert NAME != implementation != attention.NAME
    for path, module in model.named_modules():
        assert vars(module).keys() == before[path].keys() and vars(module).get("forward") == before[path].get("forward")
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters() if p.requires_grad)


def test_a_trained_heads_gradient_is_counted_once_and_other_gradients_are_not():
    config = tiny("llama").config
    model = load.skeleton(config).float()
    tuning = full.build(model, Full())
    method.place(model, tuning)
    forward = Forward(model, True, True)
    assert forward.head is not None
    head = forward.head.weight_VC.numel() * 4
    frozen, trained = (rehearse(forward, meta(ROW), "blocks", trained_head=value) for value in (False, True))
    assert trained.kept - frozen.kept == pytest.approx(head)


def test_chunks_of_logits_are_those_of_the_device_that_is_rehearsed_for():
    model = skeleton("llama")
    vocabulary = 1 << 20
    model.lm_head.weight = torch.nn.Parameter(torch.empty(vocabulary, 64, device="meta"), requires_grad=False)
    row = make_row(some_documents([400], learned=1.0), [0])
    cpu, cuda = (rehearse(Forward(model, True, True), meta(row), "none", device_type=kind) for kind in ("cpu", "cuda"))
    learned = len(row.targets_N)
    assert min(learned, chunk_rows(vocabulary, "cuda")) > chunk_rows(vocabulary, "cpu")
    assert cuda.forward > 2 * cpu.forward
