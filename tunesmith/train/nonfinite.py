"""A loss or a gradient that is not a number: which rows of the data brought it, and where in the model it began."""

import torch

from tunesmith.data.corpus.batches import Row, flat, make_row
from tunesmith.data.corpus.documents import Documents
from tunesmith.models import slots
from tunesmith.step import forward as forwards
from tunesmith.step.forward import Forward

NAMED = 8  # rows named in the sentence


@torch.no_grad()
def explain(documents: Documents, forward: Forward, rows: list[Row], losses: list[torch.Tensor]) -> str:
    """A sentence that names file:line of the guilty rows and the first module whose output is not finite.

    A packed row's documents are tried one by one: attention keeps them apart, so that each is guilty or not by itself.
    """
    bad = [row for row, loss in zip(rows, losses, strict=True) if not torch.isfinite(loss)]
    if not bad:
        return "the gradient norm is not finite"
    virtual = slots.virtual_ids(forward.model)
    alone = [make_row(documents, [document], virtual) for row in flat(bad) for document in row.documents]
    guilty = [row for row in alone if not torch.isfinite(forward.loss(row))] or alone
    origins = list(dict.fromkeys(documents.origin(row.documents[0]) for row in guilty))
    more = f" and {len(origins) - NAMED} more" if len(origins) > NAMED else ""
    where = forwards.first_nonfinite(forward, guilty[0])
    return f"the loss is not finite in {', '.join(origins[:NAMED])}{more}" + (
        f"; the first module whose output is not finite is {where}" if where else ""
    )
