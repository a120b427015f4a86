"""Shared beginnings, as a run sees them: whether what documents begin with in common is computed once, why not, what it saves.

The decision is made at the start and kept in `plan.json`; a resumed run does as it began, since sharing moves the last bits of
sums. Before it is used it is compared with the plain computation on a piece of the run's own first documents.
"""

from collections.abc import Callable, Mapping
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
from tunesmith.data.corpus.sharing import LEAST
from tunesmith.data.corpus.stream import Stream
from tunesmith.errors import UserError
from tunesmith.models.proof import Proof
from tunesmith.models.score import DROPOUT
from tunesmith.step.forward import Forward
from tunesmith.train import folder

PREVIEW = 80  # characters of a beginning in data.json
NOTHING = 0.005  # of the tokens: what sharing saves, below which there is nothing to speak of
WORTH_A_WORD = 0.05  # of the tokens: what sharing would save, for the user to be told why it is off
TAIL = 8  # tokens behind a beginning of `LEAST` on which sharing is proved at the start: it is most of the wait for the first step
TOLERANCES = {torch.float32: 1e-3}  # of a gradient's norm; what is wrong is off by the whole of it
TOLERANCE = 0.1  # of 16-bit sums in another order

BUDGET_BYTES = 1 << 28  # of gradients that are compared; of more trained tensors than that, some from every depth


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
    if dropout := DROPOUT.get(run.task.name, 0.0) if run.task.head == "score" else 0.0:
        return f"the head's dropout ({dropout:g}) draws for its documents in their order"
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
    if saved < NOTHING:
        return ""
    named = [f"{each['tokens']:,} tokens of the same beginning in {each['documents']:,} documents" for each in found["beginnings"][:2]]
    what = ", ".join(named) or "tokens that stand in front of every document"
    off = found.get("off")
    return f"{what}: {saved:.0%} {'of the tokens could be computed once, but ' + off if off else 'fewer tokens to compute'}"


def _saved(found: dict[str, Any]) -> float:
    return 1 - found["epoch"]["computed_tokens"] / max(1, found["epoch"]["tokens"])


def wanted(out: Path, run: Run, found: dict[str, Any]) -> bool:
    """Whether there is anything to share, and nothing in the settings against it: only then it is worth a proof. A run that is
    resumed wants what it began with."""
    kept = _kept(out)
    return kept["shared"] if kept else not hindrance(run) and _saved(found) >= NOTHING


def _kept(out: Path) -> dict[str, Any]:
    """The decision that a run began with; empty for a new one."""
    return folder.read_json(out / folder.PLAN).get("prefixes", {"shared": False}) if (out / folder.PLAN).exists() else {}


def decided(
    out: Path, run: Run, found: dict[str, Any], plan: Plan | Stream, trusted: Proof, forward: Forward, parameters: Mapping[str, Tensor]
) -> Decision:
    """The plan as it is to be run, the decision for plan.json, and what to warn of where something worth the name is lost.

    `found` is the report, `parameters` are the trained tensors. Raises UserError for a run that began with shared beginnings and
    can no longer be so computed.
    """
    asked, kept = wanted(out, run, found), _kept(out)
    refused = hindrance(run) or ("" if asked else "documents begin with nothing in common") or _unproved(trusted)
    if kept:
        if kept["shared"] and not refused:  # it may be resumed on another machine
            refused = _disproved(plan, forward, parameters)
        if kept["shared"] and refused:
            raise UserError(f"{out} began with shared beginnings computed once, which no longer holds: {refused}")
        return Decision(plan.shared(kept["shared"]), kept.get("off", ""), kept)
    if not refused:
        refused = _disproved(plan, forward, parameters)
    saved = _saved(found)
    lost = refused and run.data.share_prefixes and saved >= WORTH_A_WORD
    told = f"{saved:.0%} of the tokens are beginnings that documents share, but each is computed anew: {refused}"
    if refused:
        return Decision(plan.shared(False), refused, {"shared": False, "off": refused, "epoch": found["epoch"]}, (told,) if lost else ())
    shared = plan.shared(True)
    rows, alone = list(flat(shared.rows(0))), plan.rows(0)
    step = {"tokens": sum(row.computed_tokens for row in alone), "computed_tokens": sum(row.computed_tokens for row in rows)}
    return Decision(shared, "", {"shared": True, "first_step": step, "epoch": found["epoch"]})


def _unproved(trusted: Proof) -> str:
    return "" if trusted.shared else "this architecture computes each document from its first token on"


def _disproved(plan: Plan | Stream, forward: Forward, parameters: Mapping[str, Tensor]) -> str:
    """A piece of the first step's documents computed both ways; what differs, in a sentence, or an empty text."""
    virtual, documents, names = plan.virtual_ids, _piece(plan), _watched(parameters)
    members = range(len(documents))
    if len(documents) < 2:
        return ""
    watched = [parameters[name] for name in names]
    plain = _learned(forward, watched, [make_row(documents, members, virtual)])  # packing has been proved: one row of both is as good
    if not torch.isfinite(plain[0]):
        return ""  # what the run itself will say
    ways = {"in a row": documents.tokens + len(virtual) * len(documents), "ahead of its rows": TAIL}
    for how, row_tokens in ways.items():
        try:
            shared = _learned(forward, watched, make_rows(documents, members, row_tokens, True, virtual, share=True))
        except Exception as error:  # whatever an architecture raises here means that it does not work this way
            return f"a beginning that stands once {how} cannot be computed here ({type(error).__name__}: {error})"
        worst = _difference(plain, shared)
        if not worst <= TOLERANCES.get(forward.model.dtype, TOLERANCE):
            return f"a beginning that stands once {how} gives something else than documents alone (relative difference {worst:.1e})"
    return ""


def _learned(forward: Forward, tensors: list[Tensor], rows: list[Row]) -> list[Tensor]:
    """The mean loss of rows, and the gradients of the tensors; nothing of it is left in them."""
    weight = sum(forward.weight(row) for row in flat(rows)) or 1.0
    with torch.enable_grad():
        loss = torch.stack([forward.loss(row, 1 / weight) for row in rows]).sum()
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True) if loss.requires_grad else ()
    return [loss.detach(), *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)]


def _watched(parameters: Mapping[str, Tensor]) -> list[str]:
    names = [name for name, tensor in parameters.items() if tensor.requires_grad]
    return names[:: -(-sum(parameters[name].nbytes for name in names) // BUDGET_BYTES) or 1]


def _piece(plan: Plan | Stream) -> Documents:
    """Two documents that share `LEAST` tokens: the ends of the longest two of the first step, the second with the first's beginning."""
    documents = plan.step_documents(0)
    chosen_D = plan.members(0) if isinstance(plan, Plan) else np.arange(len(documents))
    longest_D = sorted(chosen_D.tolist(), key=lambda d: (-int(documents.lengths_D[d]), d))[:2]
    fed = [(int(documents.begin_D[d]), int(documents.lengths_D[d]), int(documents.end_D[d])) for d in longest_D]
    whole = min([LEAST + TAIL, *(length for _, length, _ in fed)])
    common = min(LEAST, whole - 1)  # less would not be shared, and nothing be compared
    ids_DT = np.stack([documents.ids_N[begin + length - whole : begin + length] for begin, length, _ in fed])
    ids_DT[:, :common] = ids_DT[0, :common]
    learned_DT = np.zeros(ids_DT.shape, np.bool_)
    if documents.labelled:  # the last token has the document's last label
        learned_DT[:, -1] = True
        labels_D1 = np.stack([documents.ids_N[end - 1 : end] for *_, end in fed])
        ids_DT, learned_DT = np.concatenate([ids_DT, labels_D1], 1), np.concatenate([learned_DT, np.zeros_like(labels_D1, np.bool_)], 1)
    else:
        learned_DT[:, max(1, common) :] = True
    where = (np.zeros(len(fed), np.uint32), np.zeros(len(fed), np.int64), ("",))
    ends_D = np.arange(1, len(fed) + 1) * ids_DT.shape[1]
    return flat_documents(ids_DT.reshape(-1), learned_DT.reshape(-1), ends_D, *where, labelled=documents.labelled)


def _difference(plain: list[Tensor], shared: list[Tensor]) -> float:
    """The larger relative difference of two: of the loss, and of all gradients' norm."""
    loss = abs(shared[0] - plain[0]).item() / max(abs(plain[0].item()), 1e-6)
    whole = sum(gradient.double().square().sum().item() for gradient in plain[1:])
    apart = sum((one.double() - other.double()).square().sum().item() for one, other in zip(plain[1:], shared[1:], strict=True))
    return float(np.nan_to_num(max(loss, (apart / whole) ** 0.5 if whole else 0.0), nan=np.inf))
