"""Keys and values in front of every layer: where they come from, that they are a text in front at first, and what trains them."""

from typing import Any

import pytest
import torch

from tests.tiny_models import CONFIGS, model_class, some_documents, some_ids, tiny
from tunesmith.data.corpus.batches import Plan
from tunesmith.errors import UserError
from tunesmith.generate import Sampling, generate
from tunesmith.methods import method
from tunesmith.methods.prefix import Prefix
from tunesmith.methods.settings import Prefix as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import front, load, slots
from tunesmith.models.prefix_attention import attached
from tunesmith.models.proof import Proof, prove, row_arguments
from tunesmith.step.forward import Forward, prepare
from tunesmith.step.recompute import recompute_blocks

ENCODERS = ["none", "mlp", "lstm"]
FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "mixtral", "qwen3_moe", "gpt2", "cohere", "granite",
    "gpt_oss", "opt", "gpt_neox", "starcoder2", "smollm3",
]  # fmt: skip
TEXT = "5 6 7 8 9"
CPU = torch.device("cpu")


class Words:
    """A tokenizer of numbers, with a 1 in front of every text and a 2 behind."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [int(word) for word in text.split()]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


def begun(model: Any, place: bool = True, **settings: Any) -> Tuning:
    chosen = Settings.model_validate({"tokens": 6, "text": TEXT, "hidden": 12, **settings})
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, Words(), 0, lambda path: torch.empty(0)), chosen)
    if place:
        method.place(model, tuning)
    return tuning


def stirred(tuning: Tuning, size: float = 0.1) -> Tuning:
    """Values as after some training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return tuning


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def trusted(name: str) -> Proof:
    kind: Any = model_class(name)
    return prove(CONFIGS[name](), kind, "sdpa" if kind._supports_sdpa else "eager", prefix=True)


def packed(model: Any, name: str, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Logits of a row under our attention."""
    forward = prepare(model, trusted(name), model.config._attn_implementation)
    arguments = row_arguments(lengths, CPU, slots.first_position(model))
    assert forward.decoder is not None and forward.head is not None
    return forward.head.logits(forward.decoder(input_ids=ids[None], use_cache=False, **arguments).last_hidden_state[0])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_begun_from_a_text_it_is_that_text_in_front_of_every_document(name, encoder):
    """For every family with the class's own attention behind a cache, and with ours over a packed row."""
    model, ids, lengths = tiny(name), some_ids(30), (13, 1, 16)
    documents = ids.split(lengths)
    text = torch.tensor([1, 5, 6, 7, 8, 9])
    expected = [model(torch.cat([text, document])[None]).logits[0, 6:] for document in documents]
    begun(model, encoder=encoder)
    for document, wanted in zip(documents, expected, strict=True):
        assert relative(front.logits(model, document[None])[0], wanted) < 1e-5
    assert relative(packed(model, name, ids, lengths), torch.cat(expected)) < 1e-5


@pytest.mark.parametrize("tokens", [6, 10])
@pytest.mark.parametrize("name", ["gemma3", "mistral", "gpt_oss"])
@torch.no_grad()
def test_windows_shorter_than_prefix_and_document_count_its_positions(name, tokens):
    """The windows of these models are 7: a prefix of 6 is soon out of sight, one of 10 is never seen whole."""
    model, ids, lengths = tiny(name), some_ids(24), (9, 15)
    tuning = stirred(begun(model, tokens=tokens, init="random"))
    assert any("see the last 7 positions" in note and f"token {max(0, 7 - tokens) + 1} of" in note for note in tuning.notes)
    expected = torch.cat([front.logits(model, document[None])[0] for document in ids.split(lengths)])
    assert relative(packed(model, name, ids, lengths), expected) < 1e-5


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradients_are_those_of_the_class_behind_a_cache(name, encoder):
    model, ids, lengths = tiny(name), some_ids(30), (13, 1, 16)
    tuning = stirred(begun(model, encoder=encoder))
    direction = torch.randn(30, model.config.vocab_size, generator=torch.Generator().manual_seed(4))
    leaves = list(tuning.parameters.values())
    theirs = torch.cat([front.logits(model, document[None])[0] for document in ids.split(lengths)])
    wanted = torch.autograd.grad((theirs * direction).sum(), leaves)
    found = torch.autograd.grad((packed(model, name, ids, lengths) * direction).sum(), leaves)
    for key, ours, other in zip(tuning.parameters, found, wanted, strict=True):
        assert ours.dtype == torch.float32 and ours.abs().max() > 0, key
        assert (ours - other).norm() <= 2e-5 * other.norm(), key


def losses_and_gradients(name: str, encoder: str, recompute: bool, dtype: torch.dtype = torch.float32, rows: int = 2) -> list[torch.Tensor]:
    """Of two rows one after the other, as a step sees them."""
    model = tiny(name).to(dtype)
    tuning = stirred(begun(model, encoder=encoder))
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    if recompute:
        recompute_blocks(model)
    plan = Plan(some_documents([9, 14, 1, 30, 12]), 200, 33, 0)
    assert len(plan.rows(0)) >= rows
    found = []
    for row in plan.rows(0)[:rows]:
        loss = forward.loss(row, 0.1)
        loss.backward()
        found.append(loss.detach())
    return [*found, *(parameter.grad for parameter in tuning.parameters.values() if parameter.grad is not None)]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_blocks_computed_again_give_the_same_gradients(name, encoder):
    """What the layers share must not be saved in one pass over a block and not in the other."""
    kept, again = losses_and_gradients(name, encoder, False), losses_and_gradients(name, encoder, True)
    assert len(kept) == len(again) > 2
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_two_forwards_before_a_backward_do_not_share_a_graph(encoder):
    model = tiny("llama")
    tuning = stirred(begun(model, encoder=encoder))
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    one, other = Plan(some_documents([9, 14, 30]), 200, 33, 0).rows(0)
    apart = []
    for row in (one, other):
        forward.loss(row).backward()
    apart = [parameter.grad.clone() for parameter in tuning.parameters.values() if parameter.grad is not None]
    for parameter in tuning.parameters.values():
        parameter.grad = None
    losses = [forward.loss(row) for row in (one, other)]
    with torch.no_grad():
        forward.loss(one)  # an evaluation between
    for loss in losses:
        loss.backward()
    for parameter, wanted in zip(tuning.parameters.values(), apart, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-6)


def test_the_encoders_common_part_is_computed_once_a_forward(monkeypatch):
    model = tiny("llama")
    tuning = begun(model, encoder="lstm")
    first: Any = next(iter(tuning.adapter.values()))
    calls: list[int] = []
    made = first.source.layer.forward

    def counting(*given: Any) -> Any:
        calls.append(1)
        return made(*given)

    monkeypatch.setattr(first.source.layer, "forward", counting)
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    row = Plan(some_documents([9, 14]), 200, 33, 0).rows(0)[0]
    for count in (1, 2):
        forward.loss(row).backward()
        assert len(calls) == count
    forward.mean_loss([row, row])
    assert len(calls) == 4


def test_packed_is_unpacked_is_recomputed_is_bf16_within_its_noise():
    plan = Plan(some_documents([9, 14, 1, 30, 12]), 200, 64, 0)
    model = tiny("llama")
    stirred(begun(model))
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    loss, count = forward.mean_loss(plan.rows(0))
    alone, same = forward.mean_loss(plan.alone().rows(0))
    assert count == same and alone == pytest.approx(loss, rel=1e-5)
    half = tiny("llama").to(torch.bfloat16)
    tuning = stirred(begun(half))
    assert {parameter.dtype for parameter in tuning.parameters.values()} == {torch.float32}
    assert prepare(half, Proof(True, True, ()), "sdpa").mean_loss(plan.rows(0))[0] == pytest.approx(loss, rel=0.02)
    assert all(gradient.isfinite().all() for gradient in losses_and_gradients("llama", "mlp", True, torch.bfloat16))


@pytest.mark.parametrize("quantize", [False, True])
def test_learns_over_nf4_and_the_base_is_left_alone(quantize, tmp_path, monkeypatch):
    tiny("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(load, "load_tokenizer", lambda folder: None)
    base = load.load(tmp_path, dtype=torch.float32, quantize=quantize)
    kept = {key: value.clone() for key, value in base.model.state_dict().items()}
    chosen = Settings(tokens=6, hidden=32)
    tuning = method.build(base.model, chosen, quantized=quantize)
    method.begin(tuning, Start(base.model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(base.model, tuning)
    forward = prepare(base.model, Proof(True, True, ()), base.own_attention)
    optimizer = torch.optim.Adam(list(tuning.parameters.values()), lr=3e-3)
    rows = Plan(some_documents([9, 14, 6]), 200, 64, 0).rows(0)
    before = forward.mean_loss(rows)[0]
    for _ in range(15):
        optimizer.zero_grad()
        torch.stack([forward.loss(row, 0.1) for row in rows]).sum().backward()
        optimizer.step()
    assert forward.mean_loss(rows)[0] < 0.8 * before
    assert all(torch.equal(base.model.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_answers_are_those_of_the_text_in_front(encoder):
    """Greedy answers through the cache, several prompts of different lengths in a batch."""
    model = tiny("llama")
    prompts = [some_ids(length, seed=length).tolist() for length in (4, 9, 1)]
    plain = generate(model, [[1, 5, 6, 7, 8, 9, *prompt] for prompt in prompts], [2], Sampling(max_new_tokens=8))
    tuning = begun(model, encoder=encoder)
    assert generate(model, prompts, [2], Sampling(max_new_tokens=8)) == plain
    stirred(tuning, 2.0)
    assert generate(model, prompts, [2], Sampling(max_new_tokens=8)) != plain


@pytest.mark.parametrize(
    ("encoder", "closed_form"),
    [
        ("none", lambda p, h, layers, kept: layers * 2 * p * kept),
        ("mlp", lambda p, h, layers, kept: layers * 2 * kept * (h + 1) + p * h + h * h + h),
        ("lstm", lambda p, h, layers, kept: layers * 2 * kept * (2 * h + 1) + p * h + 2 * (8 * h * h + 8 * h)),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gemma3"])
def test_trained_parameters_are_those_of_the_closed_form(name, encoder, closed_form):
    model = tiny(name)
    tuning = begun(model, encoder=encoder)
    kept = 64 if name == "gpt2" else 32  # channels of a layer's keys: 4 or 2 heads of 16
    assert tuning.count == closed_form(6, 12, 2, kept) == sum(p.numel() for p in tuning.parameters.values() if p.requires_grad)
    with torch.device("meta"):
        skeleton = model_class(name)(CONFIGS[name]())
    foreseen = method.build(
        skeleton, Settings.model_validate({"tokens": 6, "hidden": 12, "encoder": encoder}), quantized=False, device="meta"
    )
    shapes = {key: tuple(tensor.shape) for key, tensor in method.state(foreseen).items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in method.state(tuning).items()}
    assert foreseen.prefix_tokens == 6 and foreseen.about == {"method": "prefix"}


def test_an_encoder_begins_from_the_activations_and_they_are_kept_not_trained():
    tuning = begun(tiny("llama"), encoder="mlp")
    assert sorted(tuning.fixed) == [f"model.layers.{i}.self_attn.start" for i in (0, 1)]
    assert not set(tuning.fixed) & set(tuning.parameters)
    for module in tuning.adapter.values():
        assert isinstance(module, Prefix) and module.start is not None and torch.equal(module.flat(), module.start)
    assert not begun(tiny("llama"), encoder="mlp", init="random").fixed
    table = begun(tiny("llama"), encoder="none")
    assert not table.fixed
    for path, parameter in table.parameters.items():
        torch.testing.assert_close(parameter.detach(), tuning.fixed[path.replace(".table", ".start")])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_random_values_come_from_the_seed_and_have_their_sizes(encoder):
    tuning = begun(tiny("llama"), encoder=encoder, init="random", hidden=64)
    again = begun(tiny("llama"), encoder=encoder, init="random", hidden=64)
    for key, value in tuning.parameters.items():
        assert torch.equal(value, again.parameters[key])
    sizes = {key.rpartition("self_attn.")[2]: value.std().item() for key, value in tuning.parameters.items()}
    for key, size in sizes.items():
        inputs = 128 if encoder == "lstm" and key in ("weight", "bias") else 64
        assert size == pytest.approx(1.0 if key in ("table", "source.embedding") else (3 * inputs) ** -0.5, rel=0.2), key


def test_state_and_restore_keep_the_first_values():
    model = tiny("llama")
    tuning = stirred(begun(model, encoder="lstm"))
    kept = {key: value.clone() for key, value in method.state(tuning).items()}
    other = begun(tiny("llama"), encoder="lstm", text="11 12")
    method.restore(other, kept, "checkpoint")
    for one, two in zip(tuning.adapter.values(), other.adapter.values(), strict=True):
        assert isinstance(one, Prefix) and isinstance(two, Prefix) and torch.equal(one.flat(), two.flat())


def test_it_leaves_no_trace():
    model, ids = tiny("llama"), some_ids(9)
    before, keys = model(ids[None]).logits, list(model.state_dict())
    tuning = begun(model)
    assert list(model.state_dict()) == keys and slots.first_position(model) == 6
    slots.lift(model, tuning.adapter)
    assert all(attached(model.get_submodule(path)) is None for path in tuning.adapter)
    assert slots.first_position(model) == 0 and torch.equal(model(ids[None]).logits, before)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(UserError, match=r"method\.text is ' ', which has no tokens"):
        begun(tiny("llama"), text=" ")


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_models_without_attention_in_every_block_are_refused_with_the_reason(name):
    with pytest.raises(UserError, match="method prefix: every block must have attention with keys and values of its own"):
        begun(tiny(name))


def test_a_prefix_that_fills_the_model_is_refused():
    with pytest.raises(UserError, match=r"method prefix: 256 positions in front leave no room: this model takes 256; lower method\.tokens"):
        begun(tiny("llama"), tokens=256)


@pytest.mark.parametrize("name", ["falcon", "bloom", "gptj"])
def test_where_our_attention_may_not_be_used_training_is_refused(name):
    model = tiny(name)
    begun(model)
    with pytest.raises(UserError, match=r"cannot be trained behind a prefix, take another method .*\n.*cannot change its attention"):
        prepare(model, trusted(name), "sdpa")
    assert isinstance(prepare(tiny(name), trusted(name), "sdpa"), Forward)
