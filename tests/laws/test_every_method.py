"""Law: every method x every base x packed or not trains, stops and goes on to the bit, is saved, opened again as what was trained,
scored, talked to, taken away and put back. What a method does not train over is refused with exit 2 and a reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import events
from tunesmith.cli import main
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sources import load_samples
from tunesmith.errors import Interrupted, UserError
from tunesmith.evaluate.loss import sample_loss
from tunesmith.export.difference import logits_of
from tunesmith.generate import Sampling, generate, serving, stream
from tunesmith.methods.method import METHODS
from tunesmith.train import loop
from tunesmith.tuned import Tuned, open_tuned

BASES: dict[str, dict[str, Any]] = {
    "fp32": {"model.dtype": "float32"},
    "bf16": {"model.dtype": "bfloat16"},
    "nf4": {"model.dtype": "float32", "model.quantize": "nf4"},
}
# Rates at which a random model of two layers learns something in six steps, and sizes that fit it.
METHOD: dict[str, tuple[float, dict[str, Any]]] = {
    "full": (2e-3, {}),
    "freeze": (4e-3, {"layers": 1, "head": True}),
    "lora": (1e-2, {"rank": 4, "dropout": 0.1}),
    "dora": (1e-2, {"rank": 4}),
    "pissa": (5e-3, {"rank": 4}),
    "prompt": (1e-1, {"tokens": 5}),
    "ptuning": (1e-2, {"tokens": 5, "hidden": 32}),
    "prefix": (1e-2, {"tokens": 5, "hidden": 32}),
    "ptuning_v2": (3e-2, {"tokens": 5}),
    "adapter": (1e-2, {"reduction": 4.0}),
}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "nf4": 1e-5}  # of a loss: the class's own code and ours round differently

CASES = [(name, base, pack) for name in METHODS for base in BASES for pack in (True, False) if base != "nf4" or METHODS[name].NF4]


@dataclass(frozen=True)
class Ended:
    """A run, undisturbed and broken in the middle, its last event of evaluation, and the rows it was evaluated on."""

    whole: Path
    broken: Path
    first: events.Evaluated
    last: events.Evaluated
    rows: Path


@pytest.fixture(scope="module")
def ended(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Ended:
    name, base, pack = request.param
    rate, own = METHOD[name]
    folder = tmp_path_factory.mktemp(f"{name}-{base}")
    train, held_out = runs.write_rows(folder / "rows.jsonl"), runs.write_rows(folder / "held_out.jsonl", 9)
    changes = BASES[base] | {"method": {"name": name} | own, "train.learning_rate": rate, "data.pack": pack}
    changes |= {"data.evaluate": str(held_out), "evaluate.every": 1}
    whole, broken = folder / "whole" / "run", folder / "broken" / "run"
    happened = [e for e in runs.finish(runs.settings(tiny_llama, train, whole, changes)) if isinstance(e, events.Evaluated)]
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, train, broken, changes), stop=runs.stop_after(4), tell=runs.quiet))
    list(loop.resume(broken, tell=runs.quiet))
    return Ended(whole, broken, happened[0], happened[-1], held_out)


every = pytest.mark.parametrize("ended", CASES, indirect=True, ids=lambda case: "-".join([*case[:2], "packed" if case[2] else "alone"]))


def logits(tuned: Tuned, prompts: list[list[int]]) -> list[torch.Tensor]:
    with serving(tuned.model):
        return logits_of(tuned.model, prompts)


@every
def test_the_law(ended: Ended, tiny_llama: Path) -> None:
    # it learns, and a run that was stopped is the undisturbed one to the bit
    assert ended.last.loss < ended.first.loss, "held-out rows of the same kind become likelier"
    assert runs.steps_of(ended.broken) == runs.steps_of(ended.whole)
    left, right = runs.contents(ended.broken), runs.contents(ended.whole)
    assert left.keys() == right.keys() and [path for path in left if left[path] != right[path]] == []

    # what is opened again is what was trained: the class's own code gives the loss that training saw last
    tuned = open_tuned(str(ended.whole))
    assert tuned.run is not None and isinstance(tuned.renderer, Renderer)
    base = "nf4" if tuned.run.model.quantize else {"float32": "fp32", "bfloat16": "bf16"}[tuned.run.model.dtype]
    samples, _ = load_samples(str(ended.rows))
    loss, learned = sample_loss(tuned, samples)
    assert learned == ended.last.learned_tokens and loss == pytest.approx(ended.last.loss, rel=TOLERANCE[base])

    # answers: one by one, streamed, and together
    prompts = [tuned.renderer.prompt_ids(sample.messages[:-1], sample.tools) for sample in samples[:3]]
    sampling = Sampling(max_new_tokens=6)
    alone = [generate(tuned.model, [prompt], tuned.renderer.stops, sampling)[0] for prompt in prompts]
    assert [list(stream(tuned.model, prompt, tuned.renderer.stops, sampling)) for prompt in prompts] == [answer.ids for answer in alone]
    if base != "bf16":  # whose sums of padded rows may decide a tie otherwise
        assert generate(tuned.model, prompts, tuned.renderer.stops, sampling) == alone

    # taken away and put back
    with_it = logits(tuned, prompts)
    if not tuned.has_adapter:
        with pytest.raises(UserError, match="trained the base's own weights"), tuned.without_adapter():
            pass
        return
    plain = open_tuned(str(tiny_llama), dtype=tuned.run.model.dtype)
    with tuned.without_adapter():
        without = logits(tuned, prompts)
    again = logits(tuned, prompts)
    assert all(torch.equal(a, b) for a, b in zip(with_it, again, strict=True))
    if base != "nf4":
        assert all(torch.equal(a, b) for a, b in zip(without, logits(plain, prompts), strict=True)), "the base, exactly"
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(with_it, without, strict=True))


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].NF4])
def test_what_is_not_supported_is_refused_with_a_reason(
    name: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = runs.write_rows(tmp_path / "rows.jsonl")
    words = ["train", "--model", str(tiny_llama), "--data", str(rows), "--method", name, "--out", str(tmp_path / "run")]
    assert main([*words, "model.quantize=nf4"]) == 2
    assert "NF4" in capsys.readouterr().err and not (tmp_path / "run").exists()
