"""From logits to tokens: one call for all answers of a step, each with its own settings and its own random numbers.

    raw logits ─► bias, penalties, banned stops, constraint ─► temperature ─► min_p, top_k, top_p ─► one token
         └─► log-probabilities, before all that

Definitions and order are those of vLLM's sampler, so that a request means the same with either engine. A draw is the inverse
of the cumulative distribution: of blocks of words at one random number, of the words of that block at another. The numbers of an answer's
nth token hang on its seed and n alone, so that an answer is the same alone, in a batch, and when a step is computed again. One number for
both would not do: logits differ in their last digits with the rows beside them, and beyond 50,000 bounds such a shift is a token of 200.

Shapes: B answers of a step, V words of the model's head, R and C rows of B, K candidates.
"""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from tunesmith.serve.ask import Ask, Token
from tunesmith.serve.builtin.constraints import Matcher

GREEDY = 1e-5  # temperatures below take the likeliest token
NEAR = (-8.0, -16.0, -np.inf)  # nats below the likeliest word: those nearer are sorted first, all only where these are too few
CANDIDATES = 256  # on a GPU the largest so many are sorted first
BLOCK = 256  # words whose weights are summed before they are searched
_UNSIGNED = (1 << 64) - 1  # Python's generator takes the absolute value of a seed; -1 and 1 are two


class Choice:
    """What choosing the tokens of one answer remembers: what came, the place in its random numbers and in its constraint.

    `choose` changes nothing in it; `take` does. So a step may be computed again, and an answer that was put back replays its tokens.
    """

    def __init__(self, ask: Ask, vocabulary: int, matcher: Matcher | None = None):
        """`vocabulary` is the number of logits. Ids beyond it (virtual tokens) are passed over."""
        self.ask = ask
        self.matcher = matcher
        self.taken = 0  # tokens of the answer
        self.is_greedy = ask.temperature < GREEDY
        self._vocabulary = vocabulary
        self._random = random.Random(ask.seed & _UNSIGNED)
        self.number, self.within = self._random.random(), self._random.random()  # of the token that comes next, in [0, 1)
        self._penalised = ask.frequency_penalty != 0 or ask.presence_penalty != 0 or ask.repetition_penalty != 1
        self._bias = {token: value for token, value in ask.logit_bias.items() if 0 <= token < vocabulary and value}
        self._stops = sorted(token for token in ask.stop_ids if 0 <= token < vocabulary)
        self._counts: Counter[int] = Counter()  # how often each word came in the answer
        self._prompt_P: torch.Tensor | None = None  # words of the prompt, each once

    @property
    def finished(self) -> bool:
        """The constraint is complete: nothing can follow."""
        return self.matcher is not None and self.matcher.finished

    @property
    def trouble(self) -> str:
        """Why no token can be chosen any more, where it is the constraint's fault; "" otherwise."""
        return "" if self.matcher is None else self.matcher.trouble

    @property
    def changes_logits(self) -> bool:
        return bool(self._penalised or self._bias or self._bans_stops or self.matcher)

    @property
    def _bans_stops(self) -> bool:
        return self.taken < self.ask.min_tokens and bool(self._stops)

    def take(self, token: int) -> None:
        """The token that came next."""
        self.taken += 1
        self.number, self.within = self._random.random(), self._random.random()
        if self._penalised and 0 <= token < self._vocabulary:
            self._counts[token] += 1
        if self.matcher is not None:
            self.matcher.accept(token)

    def change(self, logits_V: torch.Tensor) -> None:
        """All that comes before the temperature, in place. `logits_V` is fp32."""
        device = logits_V.device
        if self._bias:
            ids, values = list(self._bias), list(self._bias.values())
            logits_V.index_add_(0, torch.tensor(ids, device=device), torch.tensor(values, dtype=logits_V.dtype, device=device))
        if self._penalised:
            self._penalise(logits_V)
        if self._bans_stops:
            logits_V[torch.tensor(self._stops, device=device)] = -torch.inf
        if self.matcher is not None:
            self.matcher.mask(logits_V)

    def _penalise(self, logits_V: torch.Tensor) -> None:
        """Only at the words that came: they are few beside the vocabulary."""
        ask, device = self.ask, logits_V.device
        came_C = torch.tensor(list(self._counts), dtype=torch.long, device=device)
        if ask.repetition_penalty != 1:
            if self._prompt_P is None:
                prompt = sorted({token for token in ask.prompt_ids if 0 <= token < self._vocabulary})
                self._prompt_P = torch.tensor(prompt, dtype=torch.long, device=device)
            words = torch.cat([self._prompt_P, came_C])  # a word of both is written twice, with one value
            values = logits_V[words]
            logits_V[words] = torch.where(values > 0, values / ask.repetition_penalty, values * ask.repetition_penalty)
        less = [ask.frequency_penalty * count + ask.presence_penalty for count in self._counts.values()]
        logits_V.index_add_(0, came_C, torch.tensor(less, dtype=logits_V.dtype, device=device), alpha=-1)


def choose(logits_BV: torch.Tensor, choices: Sequence[Choice]) -> list[Token | None]:
    """The next token of every answer, from the model's raw logits of any float type on any device.

    None where there is none: NaN or +inf among the logits, or a constraint that leaves no word (`Choice.trouble` says which).
    """
    assert len(logits_BV) == len(choices), "one row of logits for each choice"
    logits_BV = logits_BV.detach()
    good_B = logits_BV.amax(-1).isfinite()  # NaN wins a maximum
    ids_B = _likeliest(logits_BV)
    rows = [row for row, choice in enumerate(choices) if choice.changes_logits or not choice.is_greedy]
    if rows:
        logits_RV = _some(logits_BV, rows).to(torch.float32, copy=len(rows) == len(choices))
        for logits_V, row in zip(logits_RV, rows, strict=True):
            if choices[row].changes_logits:
                choices[row].change(logits_V)
        best_R, ids_R = logits_RV.amax(-1), _likeliest(logits_RV)
        drawn = [at for at, row in enumerate(rows) if not choices[row].is_greedy]
        if drawn:
            ids_R[drawn] = _draw(_some(logits_RV, drawn), best_R[drawn], [choices[rows[at]] for at in drawn])
        ids_B[rows] = ids_R
        good_B[rows] &= best_R.isfinite()
    told = _logprobs(logits_BV, ids_B, choices)
    ids = torch.where(good_B, ids_B, -1).tolist()
    return [None if token < 0 else Token(token, *told.get(row, ())) for row, token in enumerate(ids)]


def _some(logits_BV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows; all of them are not copied: new memory costs a CPU more than most of what is computed here."""
    if len(rows) == len(logits_BV):
        return logits_BV
    return logits_BV.index_select(0, torch.tensor(rows, device=logits_BV.device))


def _likeliest(logits_BV: torch.Tensor) -> torch.Tensor:
    if logits_BV.device.type == "cpu":
        return torch.from_numpy(logits_BV.float().numpy().argmax(-1))  # vectorised, which torch's is not
    return logits_BV.argmax(-1)


def _draw(scores_RV: torch.Tensor, best_R: torch.Tensor, choices: Sequence[Choice]) -> torch.Tensor:
    """One word of each row: the first whose cumulative weight is beyond the answer's random number. `scores_RV` is used up."""
    asks = [choice.ask for choice in choices]
    temperature_R1 = _column([ask.temperature for ask in asks], scores_RV)
    number_R1 = _column([choice.number for choice in choices], scores_RV)
    # the largest becomes 0 before the division, so that a small temperature overflows towards no weight
    scores_RV.sub_(best_R.unsqueeze(-1)).div_(temperature_R1.float())
    cut = [row for row, ask in enumerate(asks) if ask.top_p < 1 or 0 < ask.top_k < scores_RV.shape[-1] or ask.min_p > 0]
    if len(cut) == len(asks):
        return _from_largest(scores_RV, number_R1, asks)
    cut_CV = _some(scores_RV, cut) if cut else None
    ids_R = _from_all(scores_RV.exp_(), number_R1, _column([choice.within for choice in choices], scores_RV))
    if cut_CV is not None:
        ids_R[cut] = _from_largest(cut_CV, number_R1[cut], [asks[row] for row in cut])
    return ids_R


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """64 bits: what is compared with sums over a vocabulary."""
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(-1)


def _from_all(weights_RV: torch.Tensor, number_R1: torch.Tensor, within_R1: torch.Tensor) -> torch.Tensor:
    """First the block of words, then the word in it."""
    rows, vocabulary = weights_RV.shape
    if vocabulary % BLOCK:
        weights_RV = functional.pad(weights_RV, (0, -vocabulary % BLOCK))
    weights_RNB = weights_RV.view(rows, -1, BLOCK)
    block_R1 = _search(weights_RNB.sum(-1), number_R1)
    weights_RB = weights_RNB.gather(1, block_R1.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)
    word_R1 = _search(weights_RB, within_R1)
    return (block_R1 * BLOCK + word_R1).squeeze(-1).clamp_max(vocabulary - 1)


def _search(weights_RK: torch.Tensor, number_R1: torch.Tensor) -> torch.Tensor:
    """The place where the cumulative weight passes a share of the whole."""
    below_RK = weights_RK.cumsum(-1, dtype=torch.float64)
    total_R1 = below_RK[:, -1:]
    # a product may be rounded up to the total, behind which there is nothing
    at_R1 = torch.minimum(number_R1 * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    return torch.searchsorted(below_RK, at_R1, right=True).clamp_max(weights_RK.shape[-1] - 1)


def _from_largest(scores_CV: torch.Tensor, number_C1: torch.Tensor, asks: Sequence[Ask]) -> torch.Tensor:
    """A draw from what min_p, then top_k, then top_p leave: the place among the scores in falling order, then the word of that score."""
    values_CK, kept_CK = _kept(scores_CV, asks)
    place_C1 = _search(values_CK.exp() * kept_CK, number_C1)
    value_C1 = values_CK.gather(-1, place_C1)
    nth_C1 = place_C1 - (values_CK > value_C1).sum(-1, keepdim=True)
    return _nth_of_score(scores_CV, value_C1, nth_C1)


def _kept(scores_CV: torch.Tensor, asks: Sequence[Ask]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores in falling order, and which of them stay: always a beginning. Words as likely as the k-th stay with it."""
    vocabulary = scores_CV.shape[-1]
    top_k = [ask.top_k if 0 < ask.top_k < vocabulary else 0 for ask in asks]
    min_p_C1, top_k_C1 = _column([ask.min_p for ask in asks], scores_CV), _column(top_k, scores_CV).long()
    top_p_C1 = _column([ask.top_p if ask.top_p < 1 else torch.inf for ask in asks], scores_CV)
    values_CK, level_C1 = _largest(scores_CV, [k + 1 for k in top_k])
    kth_C1 = values_CK.gather(-1, (top_k_C1 - 1).clamp_min(0))
    lowest_C1 = torch.maximum(min_p_C1.log().float(), torch.where(top_k_C1 > 0, kth_C1, -torch.inf))
    whole_C1 = (lowest_C1 > level_C1) | (level_C1 == -torch.inf)  # all words that may stay are among these
    total_C1 = (values_CK.exp() * (values_CK >= lowest_C1)).sum(-1, keepdim=True, dtype=torch.float64)
    rest = [row for row, whole in enumerate(whole_C1.squeeze(-1).tolist()) if not whole]
    if rest:
        weights_CV = _some(scores_CV, rest).exp()
        if any(asks[row].min_p for row in rest):
            weights_CV *= _some(scores_CV, rest) >= lowest_C1[rest]
        total_C1[rest] = weights_CV.sum(-1, keepdim=True).double()
    kept_CK, reached_C1 = _nucleus(values_CK, lowest_C1, total_C1, top_p_C1)
    rest = [row for row, enough in enumerate((whole_C1 | reached_C1).squeeze(-1).tolist()) if not enough]
    if rest:
        wide_CV, wide_kept_CV = scores_CV.new_full(scores_CV.shape, -torch.inf), torch.zeros_like(scores_CV, dtype=torch.bool)
        wide_CV[:, : values_CK.shape[-1]], wide_kept_CV[:, : values_CK.shape[-1]] = values_CK, kept_CK
        wide_CV[rest] = _sorted(_some(scores_CV, rest))
        wide_kept_CV[rest], _ = _nucleus(wide_CV[rest], lowest_C1[rest], total_C1[rest], top_p_C1[rest])
        return wide_CV, wide_kept_CV
    return values_CK, kept_CK


def _nucleus(
    values_CK: torch.Tensor, lowest_C1: torch.Tensor, total_C1: torch.Tensor, top_p_C1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of these scores stay: words in falling order as long as those before do not reach p. And whether all of them reach it."""
    share_CK = values_CK.exp().double() * (values_CK >= lowest_C1) / total_C1
    below_CK = share_CK.cumsum(-1)
    kept_CK = (values_CK >= lowest_C1) & (below_CK - share_CK < top_p_C1)
    kept_CK[:, 0] = True
    return kept_CK, below_CK[:, -1:] >= top_p_C1


def _largest(scores_CV: torch.Tensor, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores of each row in falling order, at least `counts` where there are so many and -inf behind them; and a score
    above which none is missing."""
    vocabulary = scores_CV.shape[-1]
    if scores_CV.device.type != "cpu":
        width = min(vocabulary, max(CANDIDATES, *counts))
        values_CK = scores_CV.topk(width).values
        return values_CK, values_CK[:, -1:] if width < vocabulary else torch.full_like(values_CK[:, -1:], -torch.inf)
    rows: list[np.ndarray] = []
    levels: list[float] = []
    for scores_V, count in zip(scores_CV.numpy(), counts, strict=True):
        for level in NEAR:
            near = scores_V[scores_V > level]
            if len(near) >= count:
                break
        rows.append(np.sort(near)[::-1])
        levels.append(level)
    sorted_CK = np.full((len(rows), max(*map(len, rows), *counts)), -np.inf, dtype=np.float32)
    for values_K, near in zip(sorted_CK, rows, strict=True):
        values_K[: len(near)] = near
    return torch.from_numpy(sorted_CK), torch.tensor(levels).unsqueeze(-1)


def _sorted(scores_CV: torch.Tensor) -> torch.Tensor:
    if scores_CV.device.type == "cpu":
        return torch.from_numpy(np.sort(scores_CV.numpy())).flip(-1)  # vectorised, which torch's is not
    return scores_CV.sort(-1, descending=True).values


def _nth_of_score(scores_CV: torch.Tensor, value_C1: torch.Tensor, nth_C1: torch.Tensor) -> torch.Tensor:
    """The words of just these scores; of equals the nth by id, so that an answer does not hang on how a sort treats them."""
    if scores_CV.device.type == "cpu":
        found = [np.flatnonzero(scores_V == value) for scores_V, value in zip(scores_CV.numpy(), value_C1.numpy(), strict=True)]
        # none in a row that is not finite
        return torch.tensor([int(ids[nth]) if nth < len(ids) else 0 for ids, nth in zip(found, nth_C1.flatten().tolist(), strict=True)])
    seen_CV = (scores_CV == value_C1).cumsum(-1)
    return torch.searchsorted(seen_CV, nth_C1 + 1).squeeze(-1).clamp_max(scores_CV.shape[-1] - 1)


def _logprobs(
    logits_BV: torch.Tensor, ids_B: torch.Tensor, choices: Sequence[Choice]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """{row: (of the chosen token, of the likeliest)} of the answers that want it."""
    rows = [row for row, choice in enumerate(choices) if choice.ask.logprobs >= 0]
    if not rows:
        return {}
    logits_RV = _some(logits_BV, rows).float()
    whole_R1 = logits_RV.logsumexp(-1, keepdim=True)
    chosen_R = (logits_RV.gather(-1, ids_B[rows].unsqueeze(-1)) - whole_R1).squeeze(-1)
    wanted = [min(choices[row].ask.logprobs, logits_BV.shape[-1]) for row in rows]
    values_RK, ids_RK = logits_RV.topk(max(wanted))
    values_RK -= whole_R1
    found = zip(rows, wanted, chosen_R.tolist(), ids_RK.tolist(), values_RK.tolist(), strict=True)
    return {row: (chosen, tuple(zip(ids[:count], values[:count], strict=True))) for row, count, chosen, ids, values in found}
