"""What the documents of a data set begin with in common, and how many tokens are computed where that is computed once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.corpus.batches import Plan, flat
from tunesmith.data.corpus.documents import Documents
from tunesmith.data.corpus.sharing import largest

LOOKED_AT = 4000  # documents among which beginnings are looked for, spread evenly: a report must not take longer than reading does
STEPS = 16  # of an epoch that are packed to know what it costs
NAMED = 5  # beginnings in a report
SHARE = 0.01  # of all tokens that a beginning takes at least, where it is named


@dataclass(frozen=True, slots=True)
class Beginning:
    """Tokens with which several documents begin."""

    documents: int
    ids_T: npt.NDArray[np.uint32]


def beginnings(documents: Documents) -> list[Beginning]:
    """The beginnings that take most tokens, largest first. Of many documents some are looked at, and their number is scaled."""
    chosen_D = np.unique(np.linspace(0, len(documents) - 1, min(len(documents), LOOKED_AT)).round().astype(np.int64))
    begin_D, end_D = documents.begin_D[chosen_D], documents.begin_D[chosen_D] + documents.lengths_D[chosen_D]
    sequences = [documents.ids_N[begin:end] for begin, end in zip(begin_D.tolist(), end_D.tolist(), strict=True)]
    scale = len(documents) / max(1, len(chosen_D))
    return [Beginning(round(count * scale), sequences[first][:end]) for count, first, end in largest(sequences, SHARE, NAMED)]


def computed_tokens(plan: Plan) -> tuple[int, int]:
    """Tokens that an epoch computes: with every document for itself, and with shared beginnings computed once (`plan.shared`).

    Virtual tokens count. Of many steps some are packed, and the second number is scaled.
    """
    alone = int(plan.lengths_D.sum()) + len(plan.virtual_ids) * len(plan.lengths_D)
    steps = np.unique(np.linspace(0, plan.steps_per_epoch - 1, min(plan.steps_per_epoch, STEPS)).round().astype(np.int64)).tolist()
    whole, once = 0, 0
    for step in steps:
        members_D = plan.members(step)
        whole += int(plan.lengths_D[members_D].sum()) + len(plan.virtual_ids) * len(members_D)
        once += sum(row.computed_tokens for row in flat(plan.shared(True).rows(step)))
    return alone, round(alone * once / max(1, whole))
