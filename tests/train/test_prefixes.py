"""Whether a run computes shared beginnings once: the decision, its reasons, its report, and that it changes nothing else."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tests.tiny_models import some_documents, tiny
from tunesmith import config, events
from tunesmith.data.corpus import batches
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.documents import flat
from tunesmith.errors import Interrupted, UserError
from tunesmith.models.proof import Proof
from tunesmith.models.score import Score
from tunesmith.step.forward import Forward, prepare
from tunesmith.train import figures, folder, loop, prefixes
from tunesmith.train.setting import decide

PROMPT = "You are a careful assistant of a shop that sells lamps. "


def write(path: Path, repeats: int = 1, count: int = 24) -> Path:
    """Conversations behind one system prompt."""
    answers = [" ".join(runs.NUMBERS[i % 12 : i % 12 + 1 + i % 3]) for i in range(count)]
    roles = ("system", "user", "assistant")
    rows = [zip(roles, (PROMPT * repeats, f"Spell {i}", answer), strict=True) for i, answer in enumerate(answers)]
    lines = [json.dumps({"messages": [{"role": role, "content": content} for role, content in row]}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parsed(**changes: Any) -> config.Run:
    return runs.settings("model", "data", Path("out"), {key.replace("__", "."): value for key, value in changes.items()})


def test_what_the_settings_say_against_it() -> None:
    assert prefixes.hindrance(parsed()) == ""
    assert prefixes.hindrance(parsed(data__share_prefixes=False)) == "data.share_prefixes is false"
    assert "data.pack" in prefixes.hindrance(parsed(data__pack=False))
    assert prefixes.hindrance(parsed(method__dropout=0.05)).startswith("method.dropout=0.05")
    assert "the head's dropout" in prefixes.hindrance(parsed(task__name="tag"))
    assert prefixes.hindrance(parsed(task__name="classify")) == ""


def shared_documents(count: int = 12, head: int = 40, own: int = 10) -> Any:
    """Documents that begin with the same tokens and end with tokens of their own, which are learned."""
    chance = np.random.default_rng(0)
    first = chance.integers(3, 96, head)
    ids_N = np.concatenate([np.concatenate([first, chance.integers(3, 96, own)]) for _ in range(count)]).astype(np.uint32)
    learned_N = np.tile(np.arange(head + own) >= head, count)
    ends_D, nowhere = np.arange(1, count + 1) * (head + own), np.zeros(count, np.int64)
    return flat(ids_N, learned_N, ends_D, nowhere.astype(np.uint32), nowhere, ("data",))


def test_the_report() -> None:
    plan = Plan(shared_documents(), 10_000, 300, 0)
    found = prefixes.report(parsed(), plan, 0, lambda ids: "word " * len(ids))
    assert found == {
        "beginnings": [{"documents": 12, "tokens": 40, "text": ("word " * 40)[:80]}],
        "epoch": {"tokens": 600, "computed_tokens": 160},
    }
    assert prefixes.sentence(found) == "40 tokens of the same beginning in 12 documents: 73% fewer tokens to compute"
    off = prefixes.report(parsed(method__dropout=0.1), plan, 0, str)
    assert "73% of the tokens could be computed once, but method.dropout=0.1" in prefixes.sentence(off)


def test_the_report_of_what_is_only_virtual() -> None:
    found = prefixes.report(parsed(), Plan(some_documents([9, 14, 6, 11]), 1000, 300, 0), 20, str)
    assert found["beginnings"] == [] and found["epoch"] == {"tokens": 120, "computed_tokens": 60}
    assert prefixes.sentence(found).startswith("tokens that stand in front of every document: 50%")


def test_nothing_is_said_where_nothing_is_shared() -> None:
    chance = np.random.default_rng(0)
    documents = some_documents([int(n) for n in chance.integers(20, 60, 30)])
    documents = dataclasses.replace(documents, ids_N=chance.integers(0, 50_000, len(documents.ids_N)).astype(np.uint32))
    found = prefixes.report(parsed(), Plan(documents, 500, 300, 0), 0, str)
    assert found["beginnings"] == [] and found["epoch"]["tokens"] == found["epoch"]["computed_tokens"]
    assert prefixes.sentence(found) == "" and not prefixes.wanted(Path("new"), parsed(), found)


PROVED = Proof(True, True, (), True, True)


def decided(
    out: Path, forward: Forward, run: config.Run | None = None, documents: Any = None, trusted: Proof = PROVED
) -> prefixes.Decision:
    run = run or parsed()
    plan = Plan(documents or shared_documents(), 10_000, 300, 0)
    found = prefixes.report(run, plan, 0, str)
    parameters = {name: p.requires_grad_() for name, p in forward.model.named_parameters()}
    return prefixes.decided(out, run, found, plan, trusted, forward, parameters)


@pytest.fixture
def forward() -> Forward:
    return prepare(tiny("llama"), PROVED, "sdpa")


def test_shared_where_nothing_speaks_against_it(forward: Forward, tmp_path: Path) -> None:
    made = decided(tmp_path, forward)
    assert made.plan.share and made.off == "" and made.warnings == ()
    figures = {"first_step": {"tokens": 600, "computed_tokens": 160}, "epoch": {"tokens": 600, "computed_tokens": 160}}
    assert made.record == {"shared": True, **figures}
    assert all(parameter.grad is None for parameter in forward.model.parameters()), "nothing of the comparison is left"


def test_off_with_dropout_and_where_the_proof_failed(forward: Forward, tmp_path: Path) -> None:
    made = decided(tmp_path, forward, parsed(method__dropout=0.1))
    assert not made.plan.share and "dropout" in made.off and made.record["off"] == made.off
    assert made.warnings == (f"73% of the tokens are beginnings that documents share, but each is computed anew: {made.off}",)
    made = decided(tmp_path, forward, trusted=Proof(True, True, ("why",), True, False))
    assert not made.plan.share and "this architecture" in made.off and made.warnings
    made = decided(tmp_path, forward, parsed(data__share_prefixes=False))
    assert not made.plan.share and made.warnings == (), "whoever switches it off need not be told"


def test_off_with_a_warning_where_it_gives_something_else(forward: Forward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Forward.loss
    for where in ("parents", "behind"):

        def wrong(self: Forward, row: Any, *others: Any, where: str) -> torch.Tensor:
            return right(self, row, *others) * (1.01 if getattr(row, where) else 1.0)

        monkeypatch.setattr(Forward, "loss", lambda *given, where=where: wrong(*given, where=where))
        made = decided(tmp_path, forward)
        assert not made.plan.share and "gives something else" in made.off and made.off in made.warnings[0]
        assert ("in a row" if where == "parents" else "ahead of its rows") in made.off

    def raising(self: Forward, row: Any, *others: Any) -> torch.Tensor:
        if row.parents:
            raise RuntimeError("no kernel")
        return right(self, row, *others)

    monkeypatch.setattr(Forward, "loss", raising)
    assert "cannot be computed here (RuntimeError: no kernel)" in decided(tmp_path, forward).off


def test_the_comparison_is_short_and_never_of_nothing(forward: Forward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of it is waited for before the first step; of documents that hardly go on behind their beginning, too, it shares."""
    for own in (1, 3, 30):
        rows: list[Any] = []
        with monkeypatch.context() as patch:
            right = Forward.loss
            patch.setattr(
                Forward, "loss", lambda self, row, *others, right=right, rows=rows: (rows.append(row), right(self, row, *others))[1]
            )
            documents = shared_documents(head=16, own=own)
            plan = Plan(documents, 10_000, 300, 0)
            assert prefixes._disproved(plan, forward, {name: p.requires_grad_() for name, p in forward.model.named_parameters()}) == ""
        every = list(batches.flat(rows))
        assert sum(row.computed_tokens for row in every) <= 128
        assert [row.parents for row in rows if row.parents] == [(-1, 0, 0)]
        [ahead] = [row for row in rows if row.behind]
        assert ahead.lengths == (16,) and len(ahead.behind) == (2 if own > 4 else 1)


def test_labelled_documents_are_compared_too(tmp_path: Path) -> None:
    plain = shared_documents(own=11)
    ids_N = plain.ids_N.copy()
    ids_N[plain.end_D - 1] = np.arange(12) % 3
    learned_N = np.zeros(len(ids_N), np.bool_)
    learned_N[plain.end_D - 2] = True
    documents = flat(ids_N, learned_N, plain.end_D, plain.file_D, plain.line_D, ("data",), labelled=True)
    score = Score("classify", ["a", "b", "c"], 64)
    score.begin(0)
    assert decided(tmp_path, prepare(tiny("llama"), PROVED, "sdpa", score), documents=documents).off == ""


def test_a_resumed_run_does_as_it_began(forward: Forward, tmp_path: Path) -> None:
    folder.write_json(tmp_path / folder.PLAN, {"prefixes": {"shared": False, "off": "as it was"}})
    assert not prefixes.wanted(tmp_path, parsed(), {})
    made = decided(tmp_path, forward)
    assert not made.plan.share and made.off == "as it was" and made.record == {"shared": False, "off": "as it was"}
    folder.write_json(tmp_path / folder.PLAN, {})
    assert not decided(tmp_path, forward).plan.share, "begun by a version that shared nothing"
    folder.write_json(tmp_path / folder.PLAN, {"prefixes": {"shared": True, "first_step": {}}})
    assert decided(tmp_path, forward).record == {"shared": True, "first_step": {}}
    with pytest.raises(UserError, match="began with shared beginnings"):
        decided(tmp_path, forward, trusted=Proof(True, True, (), True, False))


def losses(out: Path) -> list[float]:
    return [step["loss"] for step in runs.steps_of(out)]


@pytest.mark.parametrize(("repeats", "behind"), [(1, False), (5, True)], ids=["in a row", "ahead of its rows"])
def test_a_whole_run_with_and_without(repeats: int, behind: bool, tiny_llama: Path, tmp_path: Path) -> None:
    """The same losses, evaluations and counts of real tokens, of fewer computed ones; a row's beginning or one of several rows."""
    data, found = write(tmp_path / "rows.jsonl", repeats), {}
    for share in (True, False):
        changes = {"data.share_prefixes": share, "data.evaluate": 0.2, "train.tokens_per_step": 1500}
        changes["train.row_tokens"] = 384 if behind else 1024
        setting = decide(runs.settings(tiny_llama, data, tmp_path / f"{share}", changes), {}, runs.quiet)
        assert any(row.behind for row in setting.plan.shared(True).rows(0)) == behind
        assert ("fewer tokens to compute" in "\n".join(figures.preview(setting))) == share
        found[share] = list(loop.begin(setting, tell=runs.quiet))
    assert not [event for event in found[True] if isinstance(event, events.Warned) and "beginning" in event.message]
    compared = 0
    for one, other in zip(*found.values(), strict=True):
        if isinstance(one, events.Step):
            assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
            assert (one.tokens, one.learned_tokens) == (other.tokens, other.learned_tokens)
            assert one.computed_tokens < 0.6 * other.computed_tokens
            compared += 1
        if isinstance(one, events.Evaluated):
            assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.learned_tokens == other.learned_tokens
            compared += 1
    assert compared == 12
    plan = folder.read_json(tmp_path / "True" / folder.PLAN)["prefixes"]
    assert plan["shared"] and plan["first_step"]["computed_tokens"] == runs.steps_of(tmp_path / "True")[0]["computed_tokens"]
    assert folder.read_json(tmp_path / "True" / folder.DATA)["shared_prefixes"]["beginnings"][0]["documents"] == 19


def test_virtual_tokens_are_computed_once(tiny_llama: Path, tmp_path: Path) -> None:
    """Of rows that have nothing in common but the virtual tokens in front of each."""
    lines = [json.dumps({"text": " ".join(runs.NUMBERS[i % 12 :]) + f" {i}"}) for i in range(24)]
    data, found = tmp_path / "texts.jsonl", {}
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for share in (True, False):
        changes = {"data.share_prefixes": share, "method": {"name": "prompt", "tokens": 20}, "train.steps": 2}
        runs.finish(runs.settings(tiny_llama, data, tmp_path / f"{share}", changes))
        found[share] = runs.steps_of(tmp_path / f"{share}")
    for one, other in zip(*found.values(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5) and one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one["tokens"] == other["tokens"] < other["computed_tokens"] > one["computed_tokens"]


def test_a_run_that_shares_is_resumed_bit_for_bit(tiny_llama: Path, tmp_path: Path) -> None:
    make = partial(runs.settings, tiny_llama, write(tmp_path / "rows.jsonl", 5))
    changes = {"train.tokens_per_step": 1500, "train.row_tokens": 384}
    runs.finish(make(tmp_path / "whole", changes))
    with pytest.raises(Interrupted):
        list(loop.train(make(tmp_path / "parts", changes), stop=runs.stop_after(2), tell=runs.quiet))
    list(loop.resume(tmp_path / "parts", tell=runs.quiet))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert runs.contents(tmp_path / "parts") == runs.contents(tmp_path / "whole")


def test_a_stream_shares_too(tiny_llama: Path, tmp_path: Path) -> None:
    data, found = write(tmp_path / "rows.jsonl", 2, count=60), {}
    for share in (True, False):
        changes = {"data.share_prefixes": share, "data.stream": True, "train.tokens_per_step": 900}
        runs.finish(runs.settings(tiny_llama, data, tmp_path / f"{share}", changes))
        found[share] = losses(tmp_path / f"{share}")
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    assert folder.read_json(tmp_path / "True" / folder.PLAN)["prefixes"]["shared"]
    assert all(step["computed_tokens"] < step["tokens"] for step in runs.steps_of(tmp_path / "True"))


def test_a_guilty_row_is_found_behind_others(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite names the rows of all documents, those behind a beginning included."""
    from tunesmith.train import nonfinite

    plan = Plan(shared_documents(), 10_000, 100, 0).shared(True)
    rows = plan.rows(0)
    [head] = rows
    assert head.behind and not head.documents
    fake = SimpleNamespace(model=None, loss=lambda row: torch.tensor(float("nan") if row.documents == (7,) else 1.0))
    monkeypatch.setattr(nonfinite.slots, "virtual_ids", lambda model: range(0))
    monkeypatch.setattr(nonfinite.forwards, "first_nonfinite", lambda *given: "")
    documents = dataclasses.replace(plan.documents, line_D=np.arange(12))
    said = nonfinite.explain(documents, fake, rows, [torch.tensor(float("nan"))])  # type: ignore[arg-type]
    assert said == "the loss is not finite in data:7"
