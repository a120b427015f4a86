import math

import pytest
import torch

from tests.fake_tuned import fake_tuned
from tunesmith.data.sample import Sample
from tunesmith.evaluate.loss import perplexity, sample_loss

SAMPLES = [
    Sample("a:1", ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "a longer answer"})),
    Sample("a:2", ({"role": "user", "content": "hello again"}, {"role": "assistant", "content": "ok"})),
    Sample("b:1", text="raw text"),
]


def test_the_mean_is_over_learned_tokens_of_all_samples(tiny_llama):
    tuned = fake_tuned(tiny_llama)
    total, count = 0.0, 0
    for sample in SAMPLES:
        (document,) = tuned.renderer.documents(sample)
        with torch.no_grad():
            logp_TV = tuned.model(input_ids=torch.tensor([document.ids])).logits[0].log_softmax(-1)
        ((start, end),) = document.spans
        total -= sum(float(logp_TV[at - 1, document.ids[at]]) for at in range(start, end))
        count += end - start
    loss, learned_tokens = sample_loss(tuned, SAMPLES)
    assert learned_tokens == count == 16 + 3 + 7
    assert loss == pytest.approx(total / count, abs=1e-5)
    assert sample_loss(tuned, []) == (0.0, 0)


def test_perplexity():
    assert perplexity(0.0) == 1
    assert perplexity(2.0) == pytest.approx(math.e**2)
    assert perplexity(1e4) == math.inf
