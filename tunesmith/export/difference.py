"""How far two models are apart on sample prompts: the largest difference of logits, KL divergence, and how often they agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models import front


@dataclass(frozen=True)
class Difference:
    """Over all positions of all prompts. KL is of the second model from the first, in nats."""

    positions: int
    largest_logit_difference: float
    mean_kl: float
    top1_agreement: float


@torch.no_grad()
def logits_of(model: Any, prompts: Sequence[Sequence[int]], head: Any = None) -> list[Tensor]:
    """[T, V] fp32 logits of each prompt, on the CPU: of the next token, or of a task head's labels."""
    every = [torch.tensor([list(ids)], device=model.device) for ids in prompts]
    if head is not None:
        return [head(front.hidden(model, ids_1T)[0]).cpu() for ids_1T in every]
    return [front.logits(model, ids_1T)[0].float().cpu() for ids_1T in every]


def compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> Difference:
    """Two models' logits, [T, V] for each prompt, on the same prompts. NaN anywhere makes the figures NaN, never small."""
    largest, kl, same, positions = torch.zeros(()), torch.zeros((), dtype=torch.float64), 0, 0
    for a_TV, b_TV in zip(first, second, strict=True):
        largest = torch.maximum(largest, (a_TV - b_TV).abs().max())
        for a_V, b_V in zip(a_TV, b_TV, strict=True):  # row by row: fp64 copies of a whole prompt's logits would be large
            kl += _kl(a_V.double(), b_V.double())
        same += int((a_TV.argmax(-1) == b_TV.argmax(-1)).sum())
        positions += a_TV.shape[0]
    return Difference(positions, largest.item(), (kl / positions).item(), same / positions)


def _kl(a_V: Tensor, b_V: Tensor) -> Tensor:
    """KL(a, b) in nats; rounding of equal distributions is not let below zero."""
    a_logp_V, b_logp_V = a_V.log_softmax(-1), b_V.log_softmax(-1)
    return (a_logp_V.exp() * (a_logp_V - b_logp_V)).sum().clamp(min=0)


def prompts(tokenizer: Any, renderer: Any) -> list[list[int]]:
    """A few short prompts in several languages, rendered as a server would feed them; plain text where there is no chat template."""
    texts = [
        "What is the capital of France?",
        "Write a short polite reply to a customer whose parcel is late.",
        "用一句话解释什么是机器学习。",
        'Extract the city as JSON: "I flew from Oslo to Rome."',
    ]
    if renderer.labelled:
        return [renderer.feed(renderer.sample(text)).ids for text in texts]
    return [renderer.prompt_ids([{"role": "user", "content": text}]) for text in texts]
