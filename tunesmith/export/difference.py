"""How far two models are apart, on sample prompts and on rows of a run's own data: the largest difference of logits, KL divergence,
and how often they agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.corpus.blocks import open_sources
from tunesmith.data.corpus.samples import samples_of
from tunesmith.data.sample import RowError
from tunesmith.data.sources import pick, understand
from tunesmith.errors import UserError
from tunesmith.models import front

ROWS = 16  # rows of a run's own data that are compared
_LOOKED_AT = 10_000  # rows among which they are chosen: a large file is not read to its end for sixteen of them
_LOGIT_BYTES = 128 * 1024**2  # of one model's logits on all rows together
_FEWEST = 8  # positions of a row that are compared however large the vocabulary


@dataclass(frozen=True)
class Difference:
    """Over all positions of all prompts. KL is of the second model from the first, in nats."""

    positions: int
    largest_logit_difference: float
    mean_kl: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What is fed, and the positions whose next token (or label) is looked at; None: all."""

    ids: list[int]
    positions: tuple[int, ...] | None = None


def logits_of(model: Any, prompts: Sequence[Sequence[int]], head: Any = None) -> list[Tensor]:
    """[T, V] fp32 logits of each prompt, on the CPU: of the next token, or of a task head's labels."""
    return answers_of(model, [Asked(list(ids)) for ids in prompts], head)


@torch.no_grad()
def answers_of(model: Any, asked: Sequence[Asked], head: Any = None) -> list[Tensor]:
    """[N, V] fp32 logits at the N positions of each, on the CPU."""
    found = []
    for each in asked:
        ids_1T = torch.tensor([each.ids], device=model.device)
        keep_N = None if each.positions is None else torch.tensor(each.positions, device=model.device)
        if head is None:
            found.append(front.logits(model, ids_1T, keep_N)[0].float().cpu())
        else:
            h_TC = front.hidden(model, ids_1T)[0]
            found.append(head(h_TC if keep_N is None else h_TC[keep_N]).cpu())
    return found


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


def own_rows(tuned: Any, count: int = ROWS) -> list[Asked]:
    """Up to `count` documents of the data that a run (`tuned.Tuned`) learned from, at positions that were learned; the same ones
    always. Empty for what is no run, and where its data is no longer there."""
    if tuned.run is None or not tuned.run.data.train:
        return []
    data = tuned.run.data
    names = [data.train] if isinstance(data.train, str) else [source.source for source in data.train]
    try:
        sources = open_sources(names, understand(**data.reading), data.info)
        samples = pick(islice(samples_of(sources), _LOOKED_AT), count, "difference")
    except (UserError, OSError):
        return []
    usable = [found for found in tuned.renderer.documents_of(samples) if not isinstance(found, RowError)]
    documents = [document for found in usable for document in found][:count]
    answers = len(tuned.head.labels) if tuned.head is not None else tuned.model.config.get_text_config().vocab_size
    most = max(_FEWEST, _LOGIT_BYTES // (4 * answers) // max(1, len(documents)))
    asked = [_asked(document, data.max_length, most) for document in documents]
    return [each for each in asked if each.positions]


def _asked(document: Any, longest: int, most: int) -> Asked:
    """The positions behind which a token is learned, or at which a label is; of more than `most` some, spread over all."""
    if hasattr(document, "fed"):
        ids, learned = document.fed.ids, list(document.fed.positions)
    else:
        # nothing stands before a document's first token
        ids, learned = document.ids, [at - 1 for start, end in document.spans for at in range(max(start, 1), end)]
    ids = list(ids[:longest])
    within = [at for at in learned if at < len(ids)]
    return Asked(ids, tuple(within[:: -(-len(within) // most)] if within else ()))
