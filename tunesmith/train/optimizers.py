"""The optimizer that a run asks for, and what moving tensors in the backward pass asks of the run."""

from collections.abc import Sequence

import torch

from tunesmith.config import Run
from tunesmith.data.corpus.batches import Plan, Row
from tunesmith.data.corpus.stream import Stream
from tunesmith.errors import UserError
from tunesmith.methods.tuning import Tuning
from tunesmith.step.forward import Forward
from tunesmith.step.in_backward import InBackward
from tunesmith.step.optim import Optimizer

AnyOptimizer = Optimizer | InBackward
KEY = "train.optimizer_in_backward"


def optimizer_of(run: Run, forward: Forward, tuning: Tuning, head: str | None) -> AnyOptimizer:
    """`head` is the trained tensor whose gradient our loss makes, where there is one."""
    train, ratios = run.train, tuning.learning_rate_ratios
    if not train.optimizer_in_backward:
        return Optimizer(tuning.parameters, train.optimizer, weight_decay=train.weight_decay, ratios=ratios)
    tied = head is not None and forward.model.get_input_embeddings().weight is tuning.parameters[head]
    return InBackward(
        tuning.parameters, train.optimizer, weight_decay=train.weight_decay, ratios=ratios,
        clip=train.clip, seed=train.seed, tied_head=head if tied else None,
    )  # fmt: skip


def hindrances(run: Run, tuning: Tuning) -> list[str]:
    """Why tensors cannot be moved in this run's backward pass, with what to do, as far as settings tell."""
    if not run.train.optimizer_in_backward:
        return []
    problems = []
    if tuning.adapter:
        problems.append(
            f"{KEY} saves the gradients of a whole model, and those of {run.method.name} are small: leave it out, "
            "or take method.name=full or freeze"
        )
    if not run.data.pack:
        problems.append(f"{KEY}: a step is one row, and data.pack=false gives every document a row of its own; leave data.pack at true")
    if run.data.stream is True:
        problems.append(f"{KEY}: a step is one row, and the longest step of a stream is not known; set data.stream=false")
    return problems


def row_tokens(run: Run, plan: Plan | Stream, steps: int) -> int:
    """Tokens of the longest step. Raises UserError for one that does not fit the rows asked for, and for a stream, where nobody knows."""
    if isinstance(plan, Stream):
        raise UserError(f"{KEY}: a step is one row, and the longest step of a stream is not known; set data.stream=false")
    tokens = [int(plan.lengths_D[plan.members(step)].sum()) for step in range(steps)]
    most, asked, aim = max(tokens), run.train.row_tokens, run.train.tokens_per_step
    assert isinstance(aim, int)
    if isinstance(asked, int) and most > asked:
        fewer = asked - (most - aim)
        or_else = f"train.tokens_per_step={fewer}" if fewer >= 16 else "shorten documents (data.max_length)"
        raise UserError(
            f"{KEY}: a step is one row, and step {tokens.index(most) + 1} has {most:,} tokens: set train.row_tokens={most}, or {or_else}"
        )
    return most


def notes(run: Run, dtype: torch.dtype) -> list[str]:
    """What is different where tensors are moved in the backward pass, in sentences for the user."""
    if not run.train.optimizer_in_backward:
        return []
    told = []
    if run.train.clip:
        told.append(f"{KEY}: the gradient of each tensor is clipped to train.clip={run.train.clip:g} by itself, not that of all together")
    if dtype == torch.bfloat16:
        told.append(f"{KEY}: weights have no fp32 master; each is rounded to bfloat16 by chance, so that small steps add up")
    return told


def must_be_one_row(run: Run, rows: Sequence[Row]) -> None:
    """Raises UserError for a step that is more than one backward pass where that cannot be."""
    if run.train.optimizer_in_backward and (len(rows) != 1 or rows[0].behind):
        count = len(rows) + sum(len(row.behind) for row in rows)
        raise UserError(
            f"{KEY}: a step is one row, and this one has {count}: documents of this architecture cannot share a row, "
            "or train.row_tokens is too small; leave the setting out, or take train.tokens_per_step=1 for a document a step"
        )
