"""The mean loss of samples' answers: what training minimises, on data that it did not see."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tunesmith.data.sample import Sample
from tunesmith.evaluate.rows import each
from tunesmith.generate import serving
from tunesmith.models import front


def sample_loss(tuned: Any, samples: Sequence[Sample]) -> tuple[float, int]:
    """(mean loss over the learned tokens in nats, how many there are), by the class's own head, a document at a time."""
    total, count = 0.0, 0
    with serving(tuned.model), torch.no_grad():
        for document in [document for documents in each(samples, tuned.renderer.documents) for document in documents]:
            # a document's first token is never predicted
            learned = [at for start, end in document.spans for at in range(max(start, 1), end)]
            if not learned:
                continue
            ids_1T = torch.tensor([document.ids], device=tuned.model.device)
            positions_L = torch.tensor(learned, device=ids_1T.device)
            # logits of the learned positions alone: all T of them times the vocabulary would not fit
            logits_LV = front.logits(tuned.model, ids_1T, positions_L - 1)[0]
            total += F.cross_entropy(logits_LV.float(), ids_1T[0, positions_L], reduction="sum").item()
            count += len(learned)
    return (total / count if count else 0.0), count


def perplexity(loss: float) -> float:
    """e^loss; infinite where that has no float."""
    return math.exp(loss) if loss < 700 else math.inf
