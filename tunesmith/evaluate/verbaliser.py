"""The likelihood of each label's own words as an answer: a classifier that needs no head (Schick & Schütze 2021, "verbaliser").

    log p(label | prompt) = Σ log p(token | prompt, tokens before it), the stop token included

The sum over whole answers, stop token and all, is a distribution over answers, so labels of any length compare without a
correction: a label that is the beginning of another one is told from it by its stop token. All labels share the prompt's cache.

Shapes: N prompts, B prompts of a batch, L labels, A tokens of the longest answer, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.sample import Sample
from tunesmith.errors import UserError
from tunesmith.evaluate.rows import each
from tunesmith.generate import BATCH_TOKENS, positions, serving
from tunesmith.models import front, slots

BUDGET_BYTES = 256 * 1024**2  # fp32 logits of the answers that are scored at once


def words_logp(
    tuned: Any, samples: Sequence[Sample], labels: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """[N, L] log p(label | what stands before the sample's last answer), fp32 on the CPU.

    Raises UserError for rows that the template refuses, and for those that leave no room for an answer.
    """
    found = each(samples, _Asked(tuned, labels))
    prompts, answers = [prompt for prompt, _ in found], [answer for _, answer in found]
    limit, longest = positions(tuned.model), max((len(ids) for answer in answers for ids in answer), default=0)
    long = [sample.origin for sample, prompt in zip(samples, prompts, strict=True) if limit and len(prompt) + longest > limit]
    if long:
        raise UserError(f"{', '.join(long[:20])}: longer than this model takes with an answer ({limit} tokens): shorten or leave them out")
    logp_NL = torch.zeros(len(prompts), len(labels))
    done = 0
    with serving(tuned.model):
        for rows in _alike(prompts, answers, longest):
            logp_NL[rows] = likelihoods(tuned.model, [prompts[row] for row in rows], answers[rows[0]])
            done += len(rows)
            if on_progress:
                on_progress(done, len(prompts))
    return logp_NL


@torch.no_grad()
def likelihoods(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
    """[B, L] log p(answer | prompt) of prompts that are equally long, with what stands in front of them."""
    prompt_BT = torch.tensor([[*slots.virtual_ids(model), *prompt] for prompt in prompts], device=model.device)
    first, cache = slots.first_position(model), front.cache_of(model, len(prompts))
    places_T = torch.arange(first, first + prompt_BT.shape[1], device=model.device)
    arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache, "position_ids": places_T[None]}
    made = model(input_ids=prompt_BT, use_cache=True, logits_to_keep=1, **arguments)
    next_BV = torch.log_softmax(made.logits[:, -1].float(), dim=-1)
    answer_LA, real_LA = _padded(answers, model.device)
    logp_BL = next_BV[:, answer_LA[:, 0]]
    if answer_LA.shape[1] == 1:
        return logp_BL.cpu()
    kept: Any = getattr(made, "past_key_values", None)
    end = first + prompt_BT.shape[1]
    at_once = max(1, BUDGET_BYTES // (4 * next_BV.shape[1] * answer_LA.shape[1] * len(prompts)))
    for begin in range(0, len(answers), at_once):
        some_LA, mask_LA = answer_LA[begin : begin + at_once], real_LA[begin : begin + at_once]
        repeated = some_LA[:, :-1].repeat(len(prompts), 1)  # each prompt with every answer
        if _holds_all(kept):
            own = copy.deepcopy(kept)
            own.batch_repeat_interleave(len(some_LA))
            places_A = torch.arange(end, end + repeated.shape[1], device=model.device)
            logits = model(input_ids=repeated, past_key_values=own, position_ids=places_A[None], use_cache=True).logits
        else:  # prompt and answers anew
            real_BT = torch.tensor(prompts, device=model.device)
            whole = torch.cat([real_BT.repeat_interleave(len(some_LA), 0), repeated], dim=1)
            logits = front.logits(model, whole, torch.arange(real_BT.shape[1], whole.shape[1], device=model.device))
        logp_BLA = torch.log_softmax(logits.float(), dim=-1).view(len(prompts), *some_LA[:, :-1].shape, -1)
        targets = some_LA[None, :, 1:, None].expand(len(prompts), -1, -1, 1)
        logp_BL[:, begin : begin + at_once] += (logp_BLA.gather(-1, targets)[..., 0] * mask_LA[:, 1:]).sum(-1)
    return logp_BL.cpu()


def _holds_all(cache: Any) -> bool:
    """Whether a cache is keys and values alone. States of convolutions and recurrences go on token by token only."""
    return bool(getattr(cache, "layers", ())) and all(getattr(layer, "keys", None) is not None for layer in cache.layers)


def _padded(answers: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """(ids [L, A], which of them are real)."""
    longest = max(map(len, answers))
    ids = torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers], device=device)
    real = torch.tensor([[1.0] * len(answer) + [0.0] * (longest - len(answer)) for answer in answers], device=device)
    return ids, real


class _Asked:
    """A sample -> (the prompt, each label as the answer to it), in tokens: exactly what training feeds and learns.

    All labels are rendered for the first sample; where another one gives the first label the same tokens, so it does the others.
    """

    def __init__(self, tuned: Any, labels: Sequence[str]):
        self.tuned, self.labels = tuned, labels
        self.known: list[list[int]] = []

    def __call__(self, sample: Sample) -> tuple[list[int], list[list[int]]]:
        """Raises RowError."""
        prompt, first = self._answered(sample, self.labels[0])
        if self.known[:1] != [first]:
            self.known = [self._answered(sample, label)[1] for label in self.labels]
        return prompt, self.known

    def _answered(self, sample: Sample, label: str) -> tuple[list[int], list[int]]:
        last = max((at for at, message in enumerate(sample.messages) if message["role"] == "assistant"), default=len(sample.messages))
        messages = (*sample.messages[:last], {"role": "assistant", "content": label})
        document = self.tuned.renderer.documents(Sample(sample.origin, messages, sample.tools))[-1]
        start, end = document.spans[-1]
        return list(document.ids[:start]), list(document.ids[start:end])


def _alike(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], longest: int) -> list[list[int]]:
    """Prompts of the same length, to be answered alike, together: none of them is filled up. The longest come first."""
    groups: dict[tuple[int, tuple[tuple[int, ...], ...]], list[int]] = {}
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
        groups.setdefault((len(prompts[row]), tuple(map(tuple, answers[row]))), []).append(row)
    result = []
    for (length, said), rows in groups.items():
        size = max(1, BATCH_TOKENS // ((length + longest) * len(said)))
        result += [rows[at : at + size] for at in range(0, len(rows), size)]
    return result
