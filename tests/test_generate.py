import logging
import threading
import time
import warnings
from contextlib import closing
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GptOssConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.fake_tuned import fake_tuned
from tests.in_front import place_copies, place_kept
from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.generate import OURS, Generated, Sampling, batches, cut, detokenize, generate, serving, stream
from tunesmith.models import nf4, slots

NO_STOP: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def tuned(tiny_llama):
    return fake_tuned(tiny_llama)


@pytest.fixture(scope="module")
def model(tuned):
    return tuned.model


@pytest.fixture(scope="module")
def prompts():
    draw = torch.Generator().manual_seed(3)
    return [
        torch.randint(0, 256, (length,), generator=draw).tolist() for length in (3, 40, 1, 17, 8, 29, 40, 5, 2, 33, 11, 9, 21, 4, 13, 6)
    ]


def reference(model, prompt, steps):
    """Greedy tokens without a cache, a batch or `generate`: the whole text again for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_of_any_size_gives_the_greedy_tokens_of_the_plain_model(model, prompts):
    expected = [Generated(reference(model, prompt, 12), False) for prompt in prompts]
    for batch_size in (1, 5, 16):
        assert generate(model, prompts, NO_STOP, Sampling(12), batch_size=batch_size) == expected


def test_an_answer_ends_before_its_stop_token(model, prompts):
    plain = reference(model, prompts[0], 12)
    stop = plain[5]
    first = plain.index(stop)
    made = generate(model, prompts[:4], {stop}, Sampling(12))
    assert made[0] == Generated(plain[:first], True)
    assert all(stop not in one.ids for one in made)


def test_cut():
    assert cut([5, 6, 7, 6], {6, 9}) == Generated([5], True)
    assert cut([6], {6}) == Generated([], True)
    assert cut([5, 7], {6}) == Generated([5, 7], False)


def test_draws_follow_the_prompt_and_the_seed_not_the_batch(model, prompts):
    sampling = Sampling(10, temperature=1.0, seed=7)
    alone = generate(model, prompts, NO_STOP, sampling, batch_size=1)
    assert generate(model, prompts, NO_STOP, sampling, batch_size=16) == alone
    assert generate(model, prompts, NO_STOP, Sampling(10, temperature=1.0, seed=8)) != alone
    assert alone != generate(model, prompts, NO_STOP, Sampling(10))


def test_draws_leave_the_global_random_numbers_alone(model, prompts):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(model, prompts[:2], NO_STOP, Sampling(4, temperature=1.0))
    assert torch.equal(torch.rand(3), expected)


def test_draws_have_the_softmax_as_their_distribution(model):
    prompt, count = [1, 2, 3], 3000
    with torch.no_grad():
        p_V = (model(input_ids=torch.tensor([prompt])).logits[0, -1].float() / 0.9).softmax(-1)
    made = generate(model, [prompt] * count, NO_STOP, Sampling(1, temperature=0.9), batch_size=500)
    seen_V = torch.bincount(torch.tensor([one.ids[0] for one in made]), minlength=len(p_V)) / count
    likely = p_V.topk(5).indices
    # five standard deviations of a share
    assert torch.all((seen_V - p_V)[likely].abs() < 5 * (p_V * (1 - p_V) / count).sqrt()[likely])


def test_top_k_and_top_p_cut_the_tail(model, prompts):
    greedy = generate(model, prompts, NO_STOP, Sampling(8))
    assert generate(model, prompts, NO_STOP, Sampling(8, temperature=5.0, top_k=1)) == greedy
    assert generate(model, prompts, NO_STOP, Sampling(8, temperature=5.0, top_p=1e-6)) == greedy
    assert generate(model, prompts, NO_STOP, Sampling(8, temperature=5.0)) != greedy


def test_nothing_is_inherited_from_the_models_folder_and_nothing_is_said(model, prompts, caplog):
    expected = generate(model, prompts, NO_STOP, Sampling(12))
    model.generation_config = theirs = GenerationConfig(
        do_sample=True, temperature=3.0, top_k=5, repetition_penalty=9.0, suppress_tokens=[expected[0].ids[0]], max_length=3
    )
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "transformers"):
            warnings.simplefilter("error")
            assert generate(model, prompts, NO_STOP, Sampling(12)) == expected
        assert model.generation_config is theirs
    finally:
        model.generation_config = GenerationConfig()
    assert not caplog.records


def test_our_packed_attention_is_left_for_generation_only(model, prompts):
    expected = generate(model, prompts, NO_STOP, Sampling(6))
    seen = []

    def ours(*arguments, **settings):
        seen.append(True)
        return sdpa_attention_forward(*arguments, **settings)

    before = dict(AttentionInterface._global_mapping)
    AttentionInterface.register(OURS, ours)
    try:
        model.set_attn_implementation(OURS)
        with serving(model):
            assert model.config._attn_implementation == "sdpa"
        assert generate(model, prompts, NO_STOP, Sampling(6)) == expected
        assert model.config._attn_implementation == OURS and not seen
        with pytest.raises(KeyError), serving(model):
            raise KeyError
        assert model.config._attn_implementation == OURS
    finally:
        model.set_attn_implementation("sdpa")
        AttentionInterface._global_mapping.clear()
        AttentionInterface._global_mapping.update(before)


def test_each_module_returns_to_its_own_mode(model):
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with serving(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    model.eval()


def test_nf4_layers_keep_their_matrices_while_serving(monkeypatch):
    layers = [nf4.Nf4Linear(64, 8, False, True, torch.float32) for _ in range(3)]
    for layer in layers:
        layer.exchange(nf4.quantize(torch.randn(8, 64), True))
    one = 4 * 8 * 64
    model: Any = torch.nn.Sequential(*layers)
    model.config, model.generation_config, model.device = SimpleNamespace(), None, torch.device("cpu")
    monkeypatch.setattr("tunesmith.hardware.free_memory", lambda device: 4 * 2 * one)
    nf4.keep_dense(model, one)
    with serving(model):
        assert nf4.dense_bytes(model) == 2 * one, "a quarter of the free memory"
    assert nf4.dense_bytes(model) == one, "what was kept before"


def test_progress_counts_prompts(model, prompts):
    seen = []
    generate(model, prompts, NO_STOP, Sampling(1), batch_size=6, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 16), (12, 16), (16, 16)]
    assert generate(model, [], NO_STOP, Sampling(1)) == []


def test_batches_put_like_lengths_together_and_bound_the_tokens():
    assert batches([3, 9, 4, 8, 1], 2) == [[1, 3], [2, 0], [4]]
    assert batches([6000, 6000, 10], 16) == [[0, 1], [2]]
    assert batches([100] * 400, 1000) == [list(range(163)), list(range(163, 326)), list(range(326, 400))]


def test_a_prompt_that_leaves_no_room_is_named(model):
    with pytest.raises(UserError, match=r"prompt 2 has 512 tokens\n.*takes 512"):
        generate(model, [[1], [1] * 512], NO_STOP, Sampling(4))
    with pytest.raises(UserError, match="512"):
        next(stream(model, [1] * 512, NO_STOP, Sampling(4)))
    # near the end the answer is as long as the positions allow
    assert len(generate(model, [[1] * 509], NO_STOP, Sampling(8))[0].ids) == 3


def test_wrong_sampling_names_every_misfit():
    with pytest.raises(UserError) as error:
        Sampling(max_new_tokens=0, temperature=-1, top_p=0, top_k=-2)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["max_new_tokens", "temperature", "top_p", "top_k"]


def test_stream_gives_what_generate_gives(model, prompts):
    (made,) = generate(model, [prompts[3]], NO_STOP, Sampling(9))
    assert list(stream(model, prompts[3], NO_STOP, Sampling(9))) == made.ids
    stop = made.ids[4]
    assert list(stream(model, prompts[3], {stop}, Sampling(9))) == made.ids[: made.ids.index(stop)]
    drawn = Sampling(9, temperature=1.0, seed=4)
    assert list(stream(model, prompts[3], NO_STOP, drawn)) == generate(model, [prompts[3]], NO_STOP, drawn)[0].ids


def test_closing_a_stream_stops_the_model(model):
    with closing(stream(model, [1, 2], NO_STOP, Sampling(500))) as tokens:
        began = time.monotonic()
        assert len(list(islice(tokens, 3))) == 3
    spent = time.monotonic() - began
    assert not [thread for thread in threading.enumerate() if thread.name == "generate"]
    began = time.monotonic()
    assert len(list(stream(model, [1, 2], NO_STOP, Sampling(500)))) == 500
    assert spent < (time.monotonic() - began) / 2


def test_an_error_in_the_models_thread_reaches_the_reader(model, monkeypatch):
    def fail(**_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        list(stream(model, [1, 2], NO_STOP, Sampling(5)))


@pytest.mark.parametrize("text", ["plain words", "订单还没到。", "a 🙂 and 👩‍👩‍👧 é", " leading, and  double"])
def test_characters_come_out_whole(tuned, text):
    ids = tuned.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())  # every byte is a token: the hardest case
    pieces = list(detokenize(tuned.tokenizer, ids))
    assert pieces == list(text)


def test_bytes_that_are_no_character_do_not_hold_the_text_back(tuned):
    bad = tuned.tokenizer("é")["input_ids"][0]
    ok = tuned.tokenizer("ok")["input_ids"]
    assert "".join(detokenize(tuned.tokenizer, [bad, *ok])) == "\ufffdok"
    assert "".join(detokenize(tuned.tokenizer, [*ok, bad])) == "ok\ufffd"
    end = tuned.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(detokenize(tuned.tokenizer, [end, *ok])) == ["o", "k"]


def test_blanks_between_words_survive_a_tokenizer_that_writes_them_in_front():
    words = ["▁the", "▁un", "seen", "▁word"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="▁the"))
    plain.decoder = decoders.Metaspace()  # drops the blank before the first word only
    pieces = list(detokenize(PreTrainedTokenizerFast(tokenizer_object=plain), [0, 1, 2, 3]))
    assert pieces == ["the", " un", "seen", " word"]


SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
}
FAMILIES = {  # what a cache or a padded batch can get wrong
    "learned positions": GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1, initializer_range=0.3
    ),
    "sliding window": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8, initializer_range=0.3),
    "soft-capped": Gemma2Config(**SHAPE, num_key_value_heads=2, sliding_window=8, initializer_range=0.3, attn_logit_softcapping=0.5),
    "sinks": GptOssConfig(
        **SHAPE, num_key_value_heads=2, sliding_window=8, num_local_experts=2, num_experts_per_tok=1, initializer_range=0.3, pad_token_id=0
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_attention_answers_alike_in_batches_and_after_our_own(family, prompts):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).float()
    expected = [Generated(reference(model.eval(), prompt, 8), False) for prompt in prompts[:6]]
    assert generate(model, prompts[:6], NO_STOP, Sampling(8)) == expected
    before = dict(AttentionInterface._global_mapping)
    AttentionInterface.register(OURS, sdpa_attention_forward)
    try:
        model.set_attn_implementation(OURS)
        assert generate(model, prompts[:6], NO_STOP, Sampling(8)) == expected
    finally:
        AttentionInterface._global_mapping.clear()
        AttentionInterface._global_mapping.update(before)


FRONT = some_ids(5, seed=1)
RAGGED = [some_ids(length, seed=length).tolist() for length in (3, 12, 7, 1, 9)]
IN_FRONT = ["llama", "gemma2", "gemma3", "mistral", "phi", "gpt2", "opt", "gpt_oss"]


@pytest.mark.parametrize("place", [place_copies, place_kept])
@pytest.mark.parametrize("family", IN_FRONT)
def test_what_stands_in_front_answers_as_real_tokens_in_front_would(family, place):
    """Drawn answers in padded batches; windows shorter than prompt and prefix, learned and rotary positions, stop tokens."""
    model, sampling = tiny(family), Sampling(9, temperature=1.0, seed=4)
    real = [[*FRONT.tolist(), *prompt] for prompt in RAGGED]
    expected = generate(model, real, NO_STOP, sampling, batch_size=1)
    stop = frozenset({expected[0].ids[4]})
    bare, streamed = generate(model, RAGGED, NO_STOP, sampling), list(stream(model, real[1], NO_STOP, sampling))
    placed = place(model, FRONT)
    assert generate(model, RAGGED, NO_STOP, sampling, batch_size=1) == expected
    assert generate(model, RAGGED, NO_STOP, sampling, batch_size=5) == expected
    assert generate(model, RAGGED, stop, sampling, batch_size=5) == [cut(one.ids, stop) for one in expected]
    assert list(stream(model, RAGGED[1], NO_STOP, sampling)) == streamed
    slots.lift(model, placed)
    assert generate(model, RAGGED, NO_STOP, sampling) == bare != expected


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt_oss"])
def test_a_prefix_longer_than_the_window_answers_as_real_tokens_would(family):
    model, long = tiny(family), some_ids(11, seed=2)
    expected = generate(model, [[*long.tolist(), *prompt] for prompt in RAGGED], NO_STOP, Sampling(9), batch_size=1)
    place_kept(model, long)
    assert generate(model, RAGGED, NO_STOP, Sampling(9)) == expected


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_virtual_tokens_behind_a_prefix(family):
    model = tiny(family)
    expected = generate(model, [[*FRONT.tolist(), *prompt] for prompt in RAGGED], NO_STOP, Sampling(9), batch_size=1)
    place_kept(model, FRONT[:2])
    place_copies(model, FRONT[2:])
    assert generate(model, RAGGED, NO_STOP, Sampling(9)) == expected


@pytest.mark.parametrize("place", [place_copies, place_kept])
def test_what_stands_in_front_takes_its_room_from_the_answer(place):
    model = tiny("gpt2")  # 256 learned positions
    place(model, FRONT)
    assert len(generate(model, [[3] * 248], NO_STOP, Sampling(9))[0].ids) == 3
    with pytest.raises(UserError, match=r"prompt 1 has 251 tokens\n.*takes 251"):
        generate(model, [[3] * 251], NO_STOP, Sampling(9))
    with pytest.raises(UserError, match="251"):
        next(stream(model, [3] * 251, NO_STOP, Sampling(9)))
