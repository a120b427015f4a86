"""Shared beginnings, as a run sees them: whether what documents begin with in common is computed once, why not, what it saves.

The decision is made at the start and kept in `plan.json`; a resumed run does as it began, since sharing moves the last bits of
sums. Before it is used it is compared with the plain computation on a piece of the run's own first documents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.config import Run
from tunesmith.data.corpus.batches import Plan, Row, flat, make_row, make_rows
from tunesmith.data.corpus.beginnings import beginnings, computed_tokens
from tunesmith.data.corpus.documents import Documents
from tunesmith.data.corpus.documents import flat as flat_documents
from tunesmith.data.corpus.stream import Stream
from tunesmith.errors import UserError
from tunesmith.models.proof import Proof
from tunesmith.train import folder

PREVIEW = 80  # characters of a beginning in data.json
WORTH_A_WORD = 0.05  # of the tokens: what sharing would save, for the user to be told why it is off
PIECE = 32  # tokens of the beginning, and of each of the documents behind it, on which sharing is proved at the start
TOLERANCES = {torch.float32: 1e-3}  # of a gradient's norm; what is wrong is off by the whole of it
TOLERANCE = 0.1  # of 16-bit sums in another order

Learn = Callable[[list[Row]], tuple[float, dict[str, Tensor]]]  # the loss of rows, and the gradients they give; none is kept


@dataclass(frozen=True, slots=True)
class Decision:
    """`off` says why beginnings are computed with every document, where they are; `record` stands in plan.json."""

    plan: Plan | Stream
    off: str
    record: dict[str, Any]
    warnings: tuple[str, ...] = ()


def hindrance(run: Run) -> str:
    """Why the settings leave no beginning to be shared, or an empty text."""
    if not run.data.share_prefixes:
        return "data.share_prefixes is false"
    if not run.data.pack:
        return "data.pack is false: every document has a row of its own"
    if dropout := getattr(run.method, "dropout", 0.0):
        return f"method.dropout={dropout:g} draws anew for every document"
    return ""


def report(run: Run, plan: Plan, virtual_tokens: int, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """What data.json says: the largest beginnings with their first words, and the tokens that an epoch computes with and without."""
    in_front = range(1 << 32, (1 << 32) + virtual_tokens)  # any ids: they are the same for all
    alone, once = computed_tokens(plan.behind(in_front))
    off = hindrance(run)
    return {
        **({"off": off} if off else {}),
        "beginnings": [
            {
                "documents": found.documents,
                "tokens": len(found.ids_T),
                "text": decode(found.ids_T[: PREVIEW * 2].tolist())[:PREVIEW],
            }
            for found in beginnings(plan.documents)
        ],
        "epoch": {"tokens": alone, "computed_tokens": once},
    }


def sentence(found: dict[str, Any]) -> str:
    """The report in a line, or an empty text where there is nothing to share."""
    saved = _saved(found)
    if saved < 0.005:
        return ""
    named = [f"{each['tokens']:,} tokens of the same beginning in {each['documents']:,} documents" for each in found["beginnings"][:2]]
    what = ", ".join(named) or "tokens that stand in front of every document"
    off = found.get("off")
    return f"{what}: {saved:.0%} {'of the tokens could be computed once, but ' + off if off else 'fewer tokens to compute'}"


def _saved(found: dict[str, Any]) -> float:
    return 1 - found["epoch"]["computed_tokens"] / max(1, found["epoch"]["tokens"])


def decided(out: Path, run: Run, found: dict[str, Any], plan: Plan | Stream, trusted: Proof, learn: Learn, dtype: torch.dtype) -> Decision:
    """The plan as it is to be run, the decision for plan.json, and what to warn of where something worth the name is lost.

    Raises UserError for a run that began with shared beginnings and can no longer be so computed.
    """
    kept = folder.read_json(out / folder.PLAN).get("prefixes", {"shared": False}) if (out / folder.PLAN).exists() else None
    refused = hindrance(run) or ("" if getattr(trusted, "shared", False) else "this architecture is computed document by document")
    if kept is not None:
        if kept["shared"] and refused:
            raise UserError(f"{out} began with shared beginnings computed once, which no longer holds: {refused}")
        return Decision(plan.shared(kept["shared"]), kept.get("off", ""), kept)
    if not refused:
        refused = _disproved(plan, learn, dtype)
    saved = _saved(found)
    lost = refused and run.data.share_prefixes and saved >= WORTH_A_WORD
    told = f"{saved:.0%} of the tokens are beginnings that documents share, but each is computed anew: {refused}"
    if refused:
        return Decision(plan.shared(False), refused, {"shared": False, "off": refused, "epoch": found["epoch"]}, (told,) if lost else ())
    shared = plan.shared(True)
    rows, alone = list(flat(shared.rows(0))), plan.rows(0)
    step = {"tokens": sum(row.computed_tokens for row in alone), "computed_tokens": sum(row.computed_tokens for row in rows)}
    return Decision(shared, "", {"shared": True, "first_step": step, "epoch": found["epoch"]})


def _disproved(plan: Plan | Stream, learn: Learn, dtype: torch.dtype) -> str:
    """A piece of the first step's documents computed both ways; what differs, in a sentence, or an empty text."""
    virtual = plan.virtual_ids
    documents = _piece(plan)
    members = range(len(documents))
    if len(documents) < 2:
        return ""
    loss, gradients = learn([make_row(documents, [i], virtual) for i in members])
    if not np.isfinite(loss):
        return ""  # what the run itself will say
    ways = {"in a row": documents.tokens + len(virtual) * len(documents), "ahead of its rows": PIECE + len(virtual)}
    for how, row_tokens in ways.items():
        rows = make_rows(documents, members, row_tokens, True, virtual, share=True)
        try:
            other_loss, others = learn(rows)
        except Exception as error:  # whatever an architecture raises here means that it does not work this way
            return f"a beginning shared {how} cannot be computed here ({type(error).__name__}: {error})"
        worst = max(abs(other_loss - loss) / max(abs(loss), 1e-6), _difference(gradients, others))
        if not worst <= TOLERANCES.get(dtype, TOLERANCE):
            return f"a beginning shared {how} gives other gradients than the documents alone (relative difference {worst:.1e})"
    return ""


def _piece(plan: Plan | Stream) -> Documents:
    """Two documents that share `PIECE` tokens: the ends of the longest two of the first step, the second with the first's beginning."""
    documents = plan.step_documents(0)
    chosen_D = plan.members(0) if isinstance(plan, Plan) else np.arange(len(documents))
    longest_D = sorted(chosen_D.tolist(), key=lambda d: (-int(documents.lengths_D[d]), d))[:2]
    fed = [(int(documents.begin_D[d]), int(documents.lengths_D[d]), int(documents.end_D[d])) for d in longest_D]
    whole = min([2 * PIECE, *(length for _, length, _ in fed)])
    half = whole // 2
    ids_DT = np.stack([documents.ids_N[begin + length - whole : begin + length] for begin, length, _ in fed])
    ids_DT[:, :half] = ids_DT[0, :half]
    learned_DT = np.zeros(ids_DT.shape, np.bool_)
    if documents.labelled:  # the last token has the document's last label
        learned_DT[:, -1] = True
        labels_D1 = np.stack([documents.ids_N[end - 1 : end] for *_, end in fed])
        ids_DT, learned_DT = np.concatenate([ids_DT, labels_D1], 1), np.concatenate([learned_DT, np.zeros_like(labels_D1, np.bool_)], 1)
    else:
        learned_DT[:, max(1, half) :] = True
    where = (np.zeros(len(fed), np.uint32), np.zeros(len(fed), np.int64), ("",))
    ends_D = np.arange(1, len(fed) + 1) * ids_DT.shape[1]
    return flat_documents(ids_DT.reshape(-1), learned_DT.reshape(-1), ends_D, *where, labelled=documents.labelled)


def _difference(gradients: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The norm of what all gradients differ by, over their norm."""
    if gradients.keys() != others.keys():
        return float("inf")
    squared = sum(((gradients[name] - others[name]).double() ** 2).sum().item() for name in gradients)
    whole = sum((gradients[name].double() ** 2).sum().item() for name in gradients)
    return float((squared / whole) ** 0.5) if whole else 0.0
