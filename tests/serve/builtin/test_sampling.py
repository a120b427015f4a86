"""The next token against transformers' warpers and plain arithmetic: exact distributions, exact sets, batches, replays."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.serve.ask import Ask, Constraint
from tunesmith.serve.builtin import sampling
from tunesmith.serve.builtin.sampling import Choice, choose

STOP = 1


def ask(**settings: Any) -> Ask:
    return Ask(**{"model": "m", "prompt_ids": (2, 3), "max_tokens": 9, "stop_ids": frozenset({STOP}), **settings})


def logits(rows: int, vocabulary: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def drawn(logits_V: torch.Tensor, count: int, **settings: Any) -> torch.Tensor:
    """How often each word is drawn by answers of so many seeds."""
    vocabulary = len(logits_V)
    choices = [Choice(ask(seed=seed, **settings), vocabulary) for seed in range(count)]
    ids = [token.id for token in choose(logits_V.expand(count, -1), choices) if token]
    assert len(ids) == count
    return torch.tensor(ids).bincount(minlength=vocabulary)


def expected(logits_V: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Probabilities by transformers' warpers, in vLLM's order."""
    warpers: list[Any] = [TemperatureLogitsWarper(float(settings["temperature"]))]
    if settings.get("min_p"):
        warpers.append(MinPLogitsWarper(settings["min_p"]))
    if settings.get("top_k"):
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p", 1) < 1:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    ids_BT: Any = torch.zeros(1, 1, dtype=torch.long)
    return LogitsProcessorList(warpers)(ids_BT, logits_V[None]).softmax(-1)[0]


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.6, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


@pytest.mark.parametrize("near", [sampling.NEAR, (-1.0, -np.inf)], ids=["", "few"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_distribution_of_transformers_warpers(
    settings: dict[str, Any], near: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "NEAR", near)  # with few, top_p has to sort the rest
    monkeypatch.setattr(sampling, "BLOCK", 16)
    logits_V = logits(1, 60, seed=3)[0]
    count = 6000
    seen, wanted = drawn(logits_V, count, **settings), expected(logits_V, **settings) * count
    assert seen[wanted == 0].sum() == 0
    often = wanted >= 5  # what is rarer is counted together: the statistic is no chi-square there
    seen, wanted = (torch.cat([each[often], each[~often].sum()[None]]).double() for each in (seen, wanted))
    used = wanted > 0
    statistic = float(((seen - wanted) ** 2 / wanted)[used].sum())
    freedom = int(used.sum()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), (statistic, freedom)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", SETTINGS[2:], ids=str)
def test_the_words_that_are_left_are_those_of_transformers(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Over a large vocabulary, with bfloat16's many equals."""
    logits_BV = logits(6, 3000, seed=5, scale=1.0).to(dtype)
    scores_BV = (logits_BV.float() - logits_BV.float().amax(-1, keepdim=True)) / settings["temperature"]
    values_BK, kept_BK = sampling._kept(scores_BV, [ask(**settings)] * 6)
    for values_K, kept_K, scores_V, logits_V in zip(values_BK, kept_BK, scores_BV, logits_BV.float(), strict=True):
        theirs_V = expected(logits_V, **settings) > 0
        # of equals they keep any, so words are compared by their scores; a sum of theirs may be rounded to the other side of p
        ours, theirs = values_K[kept_K], scores_V[theirs_V].sort(descending=True).values
        assert abs(len(ours) - len(theirs)) <= 1
        shorter = min(len(ours), len(theirs))
        assert torch.equal(ours[:shorter], theirs[:shorter])


def test_equals_are_told_apart_by_their_ids() -> None:
    """All words are equally likely, as in a model that knows nothing: half of them stay, and which one comes is no matter of a sort."""
    logits_BV = torch.zeros(1, 1000)
    found = set()
    for seed in range(300):
        choice = Choice(ask(seed=seed, temperature=1.0, top_p=0.5), 1000)
        token = choose(logits_BV, [choice])[0]
        assert token is not None and token.id == int(choice.number * 500)
        found.add(token.id)
    assert len(found) > 200 and max(found) < 500
    with_k = choose(logits_BV, [Choice(ask(seed=9, temperature=1.0, top_k=3), 1000)])[0]
    assert with_k is not None and with_k.id == int(Choice(ask(seed=9), 1).number * 1000), "all are as likely as the third"


def test_the_ways_of_a_gpu_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks `device.type` takes the other branch on the meta-named device; here both are run on a CPU's tensors."""
    scores_CV = logits(5, 3000, seed=2, scale=1.5).bfloat16().float()
    scores_CV -= scores_CV.amax(-1, keepdim=True)

    class Elsewhere(torch.Tensor):
        """A CPU's tensor that says it lies on a GPU."""

        device = torch.device("cuda")  # type: ignore[assignment]

    there_CV = scores_CV.as_subclass(Elsewhere)
    values_CK, level_C1 = sampling._largest(there_CV, [1] * 5)
    assert values_CK.shape == (5, sampling.CANDIDATES) and torch.equal(level_C1, values_CK[:, -1:])
    assert torch.equal(values_CK, sampling._sorted(scores_CV)[:, : sampling.CANDIDATES])
    assert torch.equal(sampling._sorted(there_CV), sampling._sorted(scores_CV))
    value_C1, nth_C1 = values_CK[:, 40:41], torch.zeros(5, 1, dtype=torch.long)
    for nth in (0, 1):
        here = sampling._nth_of_score(scores_CV, value_C1.as_subclass(torch.Tensor), nth_C1 + nth)
        there = sampling._nth_of_score(there_CV, value_C1, nth_C1 + nth)
        several = torch.tensor([int((row == value).sum()) > nth for row, value in zip(scores_CV, value_C1, strict=True)])
        assert torch.equal(here[several], there.as_subclass(torch.Tensor)[several]) and several.any()
    assert torch.equal(sampling._likeliest(there_CV).as_subclass(torch.Tensor), sampling._likeliest(scores_CV))


def test_rows_of_one_batch_each_keep_to_their_own_settings() -> None:
    logits_BV = logits(5, 400)
    order = logits_BV.argsort(-1, descending=True)
    settings: list[dict[str, Any]] = [{}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1e-9}, {"temperature": 1.0, "min_p": 1.0}]
    settings.append({"temperature": 5.0, "top_p": 1e-6})
    for seed in range(20):
        found = choose(logits_BV, [Choice(ask(seed=seed, **each), 400) for each in settings])
        assert [token.id for token in found if token] == order[:, 0].tolist()


def test_an_answer_does_not_depend_on_its_batch_and_a_step_can_be_computed_again() -> None:
    steps = [logits(8, 500, seed=step) for step in range(6)]

    def answer(row: int, rows: list[int]) -> list[int]:
        choices = [Choice(ask(seed=100 + each, temperature=1.2, top_p=0.9 if each % 2 else 1.0), 500) for each in rows]
        at, ids = rows.index(row), []
        for logits_BV in steps:
            found = choose(logits_BV[rows], choices)
            assert found == choose(logits_BV[rows], choices)
            for choice, token in zip(choices, found, strict=True):
                assert token is not None
                choice.take(token.id)
            chosen = found[at]
            assert chosen is not None
            ids.append(chosen.id)
        return ids

    for row in (2, 5):
        alone = answer(row, [row])
        assert alone == answer(row, list(range(8))) == answer(row, [row, 7, 0])
        again = Choice(ask(seed=100 + row, temperature=1.2, top_p=0.9 if row % 2 else 1.0), 500)
        for token in alone[:-1]:
            again.take(token)  # as after it was put back
        last = choose(steps[-1][row : row + 1], [again])[0]
        assert last is not None and last.id == alone[-1]


def test_seeds_of_any_size_and_sign_are_streams_of_their_own() -> None:
    numbers = [Choice(ask(seed=seed), 4).number for seed in (0, 1, -1, 2**32, 2**63, 2**64 - 2)]
    assert len(set(numbers)) == len(numbers)


def test_penalties_are_those_of_vllm() -> None:
    vocabulary = 12
    logits_V = logits(1, vocabulary, seed=1)[0]
    settings = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.3}
    choice = Choice(ask(prompt_ids=(2, 3, 3, 900), **settings), vocabulary)
    for token in (4, 4, 5):
        choice.take(token)
    changed_V = logits_V.clone()
    choice.change(changed_V)
    counts = torch.zeros(vocabulary)
    counts[4], counts[5] = 2, 1
    wanted_V = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[2, 3, 4, 5]]), logits_V[None].clone())[0]
    wanted_V = wanted_V - 0.5 * counts - 0.25 * (counts > 0)
    torch.testing.assert_close(changed_V, wanted_V)
    choice.take(7)  # what came since is added to what was counted
    again_V = logits_V.clone()
    choice.change(again_V)
    assert torch.equal((again_V != changed_V).nonzero().flatten(), torch.tensor([7]))


def test_bias_bans_and_favours() -> None:
    logits_BV = torch.tensor([[5.0, 4.0, 3.0, 2.0]] * 3)
    biases: list[dict[int, float]] = [{0: -100.0}, {3: 100.0}, {0: 1.0, 99: 5.0, -1: 5.0}]
    found = choose(logits_BV, [Choice(ask(stop_ids=frozenset(), logit_bias=bias), 4) for bias in biases])
    assert [token.id for token in found if token] == [1, 3, 0]
    assert logits_BV[0].tolist() == [5.0, 4.0, 3.0, 2.0], "the model's own logits stay"


def test_stop_tokens_wait_for_the_least_length() -> None:
    logits_BV = torch.tensor([[0.0, 9.0, 1.0, 0.0]])
    choice = Choice(ask(min_tokens=2, stop_ids=frozenset({STOP, 77})), 4)
    ids = []
    for _ in range(3):
        token = choose(logits_BV, [choice])[0]
        assert token is not None
        ids.append(token.id)
        choice.take(token.id)
    assert ids == [2, 2, STOP]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5, "logprobs": 2}], ids=str)
def test_a_row_that_is_not_finite_has_no_token_and_hurts_no_other(bad: float, settings: dict[str, Any]) -> None:
    logits_BV = logits(3, 300)
    clean = choose(logits_BV, [Choice(ask(seed=row, **settings), 300) for row in range(3)])
    logits_BV[1, 17] = bad
    found = choose(logits_BV, [Choice(ask(seed=row, **settings), 300) for row in range(3)])
    assert found[1] is None
    assert [found[0], found[2]] == [clean[0], clean[2]]
    assert choose(torch.full((1, 5), -math.inf), [Choice(ask(), 5)]) == [None]


def test_logprobs_are_the_models_own_before_temperature_penalty_and_bias() -> None:
    logits_BV = logits(3, 50).bfloat16()
    settings: list[dict[str, Any]] = [{"logprobs": 0, "temperature": 3.0}, {"logprobs": 2, "logit_bias": {9: 100.0}}, {}]
    found = choose(logits_BV, [Choice(ask(seed=row, **each), 50) for row, each in enumerate(settings)])
    wanted_BV = logits_BV.float().log_softmax(-1)
    first, second, third = found
    assert first and second and third
    assert first.logprob == pytest.approx(float(wanted_BV[0, first.id])) and first.top == ()
    assert second.id == 9 and second.logprob == pytest.approx(float(wanted_BV[1, 9]))
    best = wanted_BV[1].topk(2)
    assert [token for token, _ in second.top] == best.indices.tolist()
    assert [value for _, value in second.top] == pytest.approx(best.values.tolist())
    assert third.logprob is None and third.top == ()


def test_a_constraint_leaves_what_it_allows(tmp_path: Any) -> None:
    pytest.importorskip("llguidance")
    from transformers import AutoTokenizer

    from tests.conftest import write_byte_tokenizer
    from tunesmith.serve.builtin.constraints import matcher_of

    write_byte_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    stop = tokenizer.eos_token_id
    wanted = {"yes", "no"}
    for seed in range(6):
        matcher = matcher_of(Constraint("choice", sorted(wanted)), tokenizer, {stop})
        choice = Choice(ask(seed=seed, temperature=1.0, stop_ids=frozenset({stop})), 384, matcher)
        ids: list[int] = []
        while not choice.finished:
            token = choose(logits(1, 384, seed=seed + len(ids)), [choice])[0]
            assert token is not None
            choice.take(token.id)
            ids.append(token.id)
        assert tokenizer.decode(ids) in wanted


def test_a_draw_stays_where_logits_differ_in_their_last_digits() -> None:
    """As they do with the rows that are computed beside them, over a vocabulary in which most words are next to impossible."""
    drawn = torch.Generator().manual_seed(0)
    other = 0
    for step in range(40):
        logits_BV = torch.randn(32, 49152, generator=drawn) * 3
        logits_BV[:, :20] += 8
        near_BV = logits_BV + 4e-6 * torch.randn(logits_BV.shape, generator=drawn)
        answers = [Choice(ask(seed=32 * step + row, temperature=1.0), 49152) for row in range(32)]
        alone, beside = choose(logits_BV, answers), choose(near_BV, answers)
        other += sum(one is None or two is None or one.id != two.id for one, two in zip(alone, beside, strict=True))
    assert other <= 1, "one number for all 49,152 bounds would give about 6 of 1280"
