"""From logits to tokens: one call for all answers of a step, each with its own settings and its own random numbers.

    raw logits ─► bias, penalties, banned stops, constraint ─► temperature ─► min_p, top_k, top_p ─► one token
         └─► log-probabilities, before all that

Definitions and order are those of vLLM's sampler, so that a request means the same with either engine. A draw is the inverse
of the cumulative distribution at one random number; the number of an answer's nth token hangs on its seed and n alone, so that an
answer is the same alone, in a batch, and when a step is computed again.

Shapes: B answers of a step, V words of the model's head, R and C rows of B, K candidates.
"""

import random
from collections.abc import Sequence

import torch

from tunesmith.serve.ask import Ask, Token
from tunesmith.serve.builtin.constraints import Matcher

CANDIDATES = 256  # the largest so many are sorted first; a whole vocabulary only where these do not reach top_p
GREEDY = 1e-5  # temperatures below take the likeliest token
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
        self.number = self._random.random()  # of the token that comes next, in [0, 1)
        self._penalised = ask.frequency_penalty != 0 or ask.presence_penalty != 0 or ask.repetition_penalty != 1
        self._bias = {token: value for token, value in ask.logit_bias.items() if 0 <= token < vocabulary and value}
        self._stops = sorted(token for token in ask.stop_ids if 0 <= token < vocabulary)
        self._uncounted: list[int] = []  # of the answer, not yet in `_counts_V`
        self._counts_V: torch.Tensor | None = None  # how often each word came in the answer
        self._seen_V: torch.Tensor | None = None  # which came in prompt or answer

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
        self.number = self._random.random()
        if self._penalised and 0 <= token < self._vocabulary:
            self._uncounted.append(token)
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
        ask, counts_V = self.ask, self._counts(logits_V.device)
        if ask.repetition_penalty != 1:
            assert self._seen_V is not None
            factor_V = torch.where(logits_V > 0, 1 / ask.repetition_penalty, ask.repetition_penalty)
            logits_V.mul_(torch.where(self._seen_V, factor_V, 1.0))
        logits_V.sub_(counts_V, alpha=ask.frequency_penalty)
        logits_V.sub_((counts_V > 0).to(logits_V.dtype), alpha=ask.presence_penalty)

    def _counts(self, device: torch.device) -> torch.Tensor:
        """Dense, and only what came since the last step is added: a list of a long answer's ids would be sent again every step."""
        if self._counts_V is None or self._seen_V is None:
            self._counts_V = torch.zeros(self._vocabulary, device=device)
            self._seen_V = torch.zeros(self._vocabulary, dtype=torch.bool, device=device)
            prompt = sorted({token for token in self.ask.prompt_ids if 0 <= token < self._vocabulary})
            self._seen_V[torch.tensor(prompt, dtype=torch.long, device=device)] = True
        if self._uncounted:
            new = torch.tensor(self._uncounted, device=device)
            self._counts_V.index_add_(0, new, torch.ones(len(new), device=device))
            self._seen_V[new] = True
            self._uncounted.clear()
        return self._counts_V


def choose(logits_BV: torch.Tensor, choices: Sequence[Choice]) -> list[Token | None]:
    """The next token of every answer, from the model's raw logits of any float type on any device.

    None where there is none: NaN or +inf among the logits, or a constraint that leaves no word (`Choice.trouble` says which).
    """
    assert len(logits_BV) == len(choices), "one row of logits for each choice"
    best_B, ids_B = logits_BV.max(-1)  # NaN wins a maximum, so this is the test for it, too
    good_B = best_B.isfinite()
    rows = [row for row, choice in enumerate(choices) if choice.changes_logits or not choice.is_greedy]
    if rows:
        logits_RV = logits_BV[rows].float()
        for logits_V, row in zip(logits_RV, rows, strict=True):
            if choices[row].changes_logits:
                choices[row].change(logits_V)
        best_R, ids_R = logits_RV.max(-1)
        drawn = [at for at, row in enumerate(rows) if not choices[row].is_greedy]
        if drawn:
            ids_R[drawn] = _draw(logits_RV[drawn], best_R[drawn], [choices[rows[at]] for at in drawn])
        ids_B[rows] = ids_R
        good_B[rows] &= best_R.isfinite()
    told = _logprobs(logits_BV, ids_B, choices)
    ids = torch.where(good_B, ids_B, -1).tolist()
    return [None if token < 0 else Token(token, *told.get(row, ())) for row, token in enumerate(ids)]


def _draw(logits_RV: torch.Tensor, best_R: torch.Tensor, choices: Sequence[Choice]) -> torch.Tensor:
    """One word of each row: the first whose cumulative weight is beyond the answer's random number."""
    asks = [choice.ask for choice in choices]
    # 64 bits: sums over a vocabulary in 32 would shift the last words of a large one
    settings = [[ask.temperature, choice.number] for ask, choice in zip(asks, choices, strict=True)]
    temperature_R1, number_R1 = torch.tensor(settings, dtype=torch.float64, device=logits_RV.device).split(1, dim=1)
    # the largest becomes 0 before the division, so that a small temperature overflows towards no weight
    scores_RV = (logits_RV - best_R.unsqueeze(-1)) / temperature_R1.float()
    weights_RV = scores_RV.exp()
    vocabulary = logits_RV.shape[-1]
    cut = [row for row, ask in enumerate(asks) if ask.top_p < 1 or 0 < ask.top_k < vocabulary or ask.min_p > 0]
    if len(cut) == len(asks):
        weights_RV *= _kept(scores_RV, weights_RV, asks)
    elif cut:
        weights_RV[cut] *= _kept(scores_RV[cut], weights_RV[cut], [asks[row] for row in cut])
    below_RV = weights_RV.cumsum(-1, dtype=torch.float64)
    total_R1 = below_RV[:, -1:]
    # a product may be rounded up to the total, behind which there is no word
    at_R1 = torch.minimum(number_R1 * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    return torch.searchsorted(below_RV, at_R1, right=True).squeeze(-1).clamp_max(vocabulary - 1)


def _kept(scores_CV: torch.Tensor, weights_CV: torch.Tensor, asks: Sequence[Ask]) -> torch.Tensor:
    """Which words min_p, then top_k, then top_p leave. Words as likely as the k-th stay with it; of words as likely as the last one
    that top_p needs, those of low id stay, so that the answer does not hang on how a sort treats equals."""
    vocabulary, device = scores_CV.shape[-1], scores_CV.device
    settings = [[ask.min_p, ask.top_k if 0 < ask.top_k < vocabulary else 0, ask.top_p] for ask in asks]
    min_p_C1, top_k_C1, top_p_C1 = torch.tensor(settings, dtype=torch.float64, device=device).split(1, dim=1)
    width = min(vocabulary, max(CANDIDATES, *(int(top_k) for _, top_k, _ in settings)))
    values_CK = scores_CV.topk(width).values
    kth_C1 = values_CK.gather(-1, (top_k_C1.long() - 1).clamp_min(0))
    lowest_C1 = torch.maximum(min_p_C1.log().float(), torch.where(top_k_C1 > 0, kth_C1, -torch.inf))
    if all(ask.top_p >= 1 for ask in asks):
        return scores_CV >= lowest_C1
    total_C1 = (weights_CV * (scores_CV >= lowest_C1)).sum(-1, keepdim=True, dtype=torch.float64)
    threshold_C1, equals_C1, reached_C1 = _nucleus(values_CK, lowest_C1, total_C1, top_p_C1, vocabulary)
    rest = [row for row, reached in enumerate(reached_C1.squeeze(-1).tolist()) if not reached]
    if rest:
        sorted_CV = scores_CV[rest].sort(-1, descending=True).values
        threshold_C1[rest], equals_C1[rest], _ = _nucleus(sorted_CV, lowest_C1[rest], total_C1[rest], top_p_C1[rest], vocabulary)
    equal_CV = scores_CV == threshold_C1
    return (scores_CV > threshold_C1) | (equal_CV & (equal_CV.cumsum(-1) <= equals_C1))


def _nucleus(
    values_CK: torch.Tensor, lowest_C1: torch.Tensor, total_C1: torch.Tensor, top_p_C1: torch.Tensor, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The score of the last word that top_p keeps, how many words of just that score it keeps, and whether these largest scores,
    in falling order, were enough to tell."""
    able_CK = values_CK >= lowest_C1
    share_CK = values_CK.exp().double() * able_CK / total_C1
    # a word stays where those before it do not reach p; the first always does
    kept_CK = able_CK & (share_CK.cumsum(-1) - share_CK < top_p_C1)
    kept_CK[:, 0] = True
    count_C1 = kept_CK.sum(-1, keepdim=True)
    threshold_C1 = values_CK.gather(-1, count_C1 - 1)
    equals_C1 = ((values_CK == threshold_C1) & kept_CK).sum(-1, keepdim=True)
    uncut_C1 = top_p_C1 >= 1
    reached_C1 = uncut_C1 | (count_C1 < values_CK.shape[-1])
    return torch.where(uncut_C1, lowest_C1, threshold_C1), torch.where(uncut_C1, vocabulary, equals_C1), reached_C1


def _logprobs(
    logits_BV: torch.Tensor, ids_B: torch.Tensor, choices: Sequence[Choice]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """{row: (of the chosen token, of the likeliest)} of the answers that want it."""
    rows = [row for row, choice in enumerate(choices) if choice.ask.logprobs >= 0]
    if not rows:
        return {}
    logprobs_RV = logits_BV[rows].float().log_softmax(-1)
    chosen_R = logprobs_RV.gather(-1, ids_B[rows].unsqueeze(-1)).squeeze(-1)
    wanted = [min(choices[row].ask.logprobs, logits_BV.shape[-1]) for row in rows]
    values_RK, ids_RK = logprobs_RV.topk(max(wanted))
    found = zip(rows, wanted, chosen_R.tolist(), ids_RK.tolist(), values_RK.tolist(), strict=True)
    return {row: (chosen, tuple(zip(ids[:count], values[:count], strict=True))) for row, count, chosen, ids, values in found}
