"""Labels at places of a document, whatever stands in its batch and in front of it."""

import numpy as np
import pytest
import torch

from tests.headed import TAGS, headed
from tunesmith.data.corpus.batches import make_row
from tunesmith.data.corpus.documents import flat
from tunesmith.errors import UserError
from tunesmith.evaluate import predict as module
from tunesmith.evaluate.predict import predict
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import attention, slots
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare

TEXTS = ["It was a fine day in Rome.", "Ann", "and then she left, but not for long", "你好 world"]


def fed(tuned, texts=TEXTS):
    return [tuned.renderer.feed(tuned.renderer.sample(text, f"f:{line}")) for line, text in enumerate(texts, 1)]


@pytest.mark.parametrize("input", ["text", "chat"])
@pytest.mark.parametrize(("task", "labels"), [("classify", ["no", "yes"]), ("tag", TAGS)])
def test_a_text_alone_and_in_a_batch_has_the_same_labels(tiny_llama, task, labels, input):
    tuned = headed(tiny_llama, task, labels, input)
    at_once = predict(tuned, fed(tuned))
    assert [each.fed.source for each in at_once] == TEXTS
    for together, one in zip(at_once, fed(tuned), strict=True):
        [alone] = predict(tuned, [one])
        torch.testing.assert_close(together.logp_PL, alone.logp_PL, rtol=1e-4, atol=1e-4)
        assert together.logp_PL.shape == (len(one.positions), len(labels)) and together.numbers == alone.numbers
        assert together.logp_PL.exp().sum(-1).tolist() == pytest.approx([1.0] * len(one.positions))
    assert len({tuple(each.logp_PL[0].tolist()) for each in at_once}) == 4, "different texts, different labels' shares"


@pytest.mark.parametrize("name", ["lora", "prompt", "prefix"])
def test_it_is_the_loss_that_training_makes_of_packed_rows(tiny_llama, name):
    """Predicted alone with the class's own attention, trained in one packed row with ours."""
    tuned = headed(tiny_llama, "tag", TAGS)
    settings = SETTINGS[name].model_validate({"name": name} | ({} if name == "lora" else {"init": "random", "tokens": 3}))
    tuning = method.build(tuned.model, settings, quantized=False)
    method.begin(tuning, Start(tuned.model, None, 0, lambda path: torch.empty(0)), settings)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    method.place(tuned.model, tuning)
    texts = fed(tuned)
    expected = -sum(each.logp_PL[:, 1].sum().item() for each in predict(tuned, texts))
    ids = [[*each.ids, *[1] * len(each.positions)] for each in texts]
    learned = [[at in each.positions for at in range(len(own))] for each, own in zip(texts, ids, strict=True)]
    documents = flat(
        np.concatenate(ids).astype(np.uint32), np.concatenate(learned), np.cumsum([len(own) for own in ids]),
        np.zeros(4, np.uint32), np.arange(4), ["made"],
    )  # fmt: skip
    object.__setattr__(documents, "labelled", True)
    row = make_row(documents, [0, 1, 2, 3], slots.virtual_ids(tuned.model))
    forward = prepare(tuned.model, Proof(True, True, ()), "sdpa", tuned.head)
    assert tuned.model.config._attn_implementation == attention.NAME
    assert forward.loss(row).item() == pytest.approx(expected, rel=1e-4)
    assert predict(tuned, texts)[0].numbers, "our attention knows no cache: it is put aside while predicting"
    assert tuned.model.config._attn_implementation == attention.NAME


def test_progress_and_order(tiny_llama, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    tuned, told = headed(tiny_llama, "classify", ["no", "yes"]), []
    found = predict(tuned, fed(tuned), on_progress=lambda *at: told.append(at))
    assert told == [(2, 4), (4, 4)] and [each.fed.origin for each in found] == ["f:1", "f:2", "f:3", "f:4"]


def test_texts_that_are_too_long_are_named_together(tiny_llama):
    tuned = headed(tiny_llama, "classify", ["no", "yes"])
    with pytest.raises(UserError) as caught:
        predict(tuned, fed(tuned, ["x" * 600, "short", "y" * 700]))
    assert [problem.partition(" tokens")[0] for problem in caught.value.problems[:2]] == ["f:1: 600", "f:3: 700"]
