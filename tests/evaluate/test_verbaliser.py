"""Label words: their likelihoods are those that one plain pass over prompt and answer gives, whatever is shared or copied."""

import pytest
import torch

from tests.fake_tuned import fake_tuned
from tests.tiny_models import some_ids, tiny
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.errors import UserError
from tunesmith.evaluate import verbaliser
from tunesmith.evaluate.verbaliser import likelihoods, words_logp
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import front

ANSWERS = [[5, 6, 2], [5, 2], [7, 8, 9, 10, 2], [2]]


def plain(model, prompt, answer):
    """One pass over both, without any cache."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logp_TV = torch.log_softmax(front.logits(model, ids)[0].float(), dim=-1)
    return sum(logp_TV[len(prompt) - 1 + at, token].item() for at, token in enumerate(answer))


def agree(model, prompts, answers=ANSWERS):
    found = likelihoods(model, prompts, answers)
    wanted = torch.tensor([[plain(model, prompt, answer) for answer in answers] for prompt in prompts])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


PROMPTS = [some_ids(9, seed).tolist() for seed in range(3)]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2", "qwen3_moe", "lfm2", "mamba"])
def test_all_answers_share_the_prompt(name):
    agree(tiny(name), PROMPTS)


def behind(name):
    """A model with random virtual tokens, or a prefix."""
    model = tiny("llama")
    settings = SETTINGS[name].model_validate({"tokens": 4, "init": "random"})
    tuning = method.build(model, settings, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), settings)
    method.place(model, tuning)
    return model


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_behind_virtual_tokens_and_prefixes(name):
    agree(behind(name), PROMPTS)


def test_few_logits_at_a_time_give_the_same(monkeypatch):
    monkeypatch.setattr(verbaliser, "BUDGET_BYTES", 1)
    agree(tiny("llama"), PROMPTS)


def test_answers_of_one_token_need_no_second_pass():
    agree(tiny("llama"), PROMPTS, [[5], [6], [7]])


@pytest.fixture(scope="module")
def tuned(tiny_llama):
    made = fake_tuned(tiny_llama)
    made.renderer = Renderer(made.tokenizer, stop_ids=[257])
    return made


def asked(*texts):
    return [Sample(f"f:{i}", ({"role": "user", "content": t}, {"role": "assistant", "content": "no"})) for i, t in enumerate(texts, 1)]


def test_it_is_the_probability_of_the_answer_as_it_is_learned(tuned):
    samples, labels = asked("is it good?", "and this one?", "too"), ["no", "yes", "yes, indeed"]
    progress = []
    found = words_logp(tuned, samples, labels, on_progress=lambda *at: progress.append(at))
    assert found.shape == (3, 3) and (found < 0).all() and progress[-1] == (3, 3)
    for sample, logp_L in zip(samples, found, strict=True):
        for label, logp in zip(labels, logp_L.tolist(), strict=True):
            messages = (sample.messages[0], {"role": "assistant", "content": label})
            [document] = tuned.renderer.documents(Sample("", messages))
            start, end = document.spans[0]
            assert end - start == len(label) + 1, "the stop token is part of the answer"
            assert logp == pytest.approx(plain(tuned.model, document.ids[:start], document.ids[start:end]), abs=2e-3)


def test_samples_without_an_answer_are_asked_just_so(tuned):
    [sample] = asked("is it good?")
    bare = Sample("", sample.messages[:1])
    assert torch.equal(words_logp(tuned, [sample], ["a", "b"]), words_logp(tuned, [bare], ["a", "b"]))


def test_a_prompt_that_leaves_no_room_is_named(tuned):
    with pytest.raises(UserError, match=r"f:2: longer than this model takes with an answer \(512 tokens\)"):
        words_logp(tuned, asked("short", "x" * 600), ["no", "yes"])


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_where_the_cache_cannot_be_copied_it_is_computed_anew(name, monkeypatch):
    monkeypatch.setattr(verbaliser, "_holds_all", lambda cache: False)
    agree(behind(name), PROMPTS)
