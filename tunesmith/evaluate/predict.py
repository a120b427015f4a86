"""What a task's head makes of texts: log-probabilities of the labels at the places where one is predicted.

Documents of similar length share a batch and are filled up behind their ends, which nothing before them sees; so every class
computes with its own attention what it would compute of each document alone.

Shapes: B documents of a batch, T tokens, P places of a document, L labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.rendering.labelled import Fed
from tunesmith.errors import UserError
from tunesmith.evaluate.rows import SHOWN
from tunesmith.generate import batches, positions, serving
from tunesmith.models import front

BATCH = 64  # documents; how many tokens is a matter of `generate.BATCH_TOKENS`


@dataclass(frozen=True, slots=True)
class Predicted:
    """One text's labels."""

    fed: Fed
    logp_PL: Tensor  # fp32, on the CPU

    @property
    def numbers(self) -> list[int]:
        """The likeliest label of each place."""
        found: list[int] = self.logp_PL.argmax(-1).tolist()
        return found


@torch.no_grad()
def predict(tuned: Any, texts: Sequence[Fed], *, on_progress: Callable[[int, int], None] | None = None) -> list[Predicted]:
    """The labels of every text, in the order of `texts`. `tuned` (a `tuned.Tuned`) has a head.

    `on_progress` gets (texts done, all texts) after each batch. Raises UserError for texts that are longer than the model takes.
    """
    model, head = tuned.model, tuned.head
    if (limit := positions(model)) and (long := [fed for fed in texts if len(fed.ids) > limit]):
        more = [f"and {len(long) - SHOWN} more"] if len(long) > SHOWN else []
        told = [f"{fed.origin or 'the text'}: {len(fed.ids)} tokens, and this model takes {limit}" for fed in long[:SHOWN]]
        raise UserError(*told, *more, "shorten these texts, or leave them out")
    found: dict[int, Predicted] = {}
    with serving(model):
        for rows in batches([len(fed.ids) for fed in texts], BATCH):
            ids_BT = torch.zeros(len(rows), max(len(texts[row].ids) for row in rows), dtype=torch.long)
            for place, row in enumerate(rows):
                ids_BT[place, : len(texts[row].ids)] = torch.tensor(texts[row].ids)
            h_BTC = front.hidden(model, ids_BT.to(model.device))
            for place, row in enumerate(rows):
                h_PC = h_BTC[place, list(texts[row].positions)]
                found[row] = Predicted(texts[row], torch.log_softmax(head(h_PC), dim=-1).cpu())
            if on_progress:
                on_progress(len(found), len(texts))
    return [found[row] for row in range(len(texts))]
