"""A LoRA that learns to answer as another adapter does: the KL divergence of its next-token distributions from the teacher's, on the
run's own rows. For what changes no matrix, so that no sum of matrices is near to it: prompts, prefixes, bottlenecks.

    loss = Σ KL( teacher(· | tokens so far) ‖ student(· | tokens so far) ) / tokens        at the tokens that the run learned

Teacher and student take turns on one base. For each step the teacher makes the hidden states of the step's rows, which are kept, a
vector a token; logits of both are made of them a few positions at a time, so that no row's logits stand in memory, and nothing
of the teacher's is written to the disk.

Shapes: N learned tokens of a row, R of a chunk, C channels, V vocabulary or labels.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.data.corpus.batches import Plan, Row, make_row
from tunesmith.data.corpus.documents import Documents
from tunesmith.errors import UserError
from tunesmith.methods.tuning import Tuning
from tunesmith.models import front, proof, slots
from tunesmith.models.forest import row_arguments
from tunesmith.models.load import Base, attention
from tunesmith.step import forward as forwards
from tunesmith.step.forward import Forward
from tunesmith.step.loss import chunk_rows
from tunesmith.step.optim import Optimizer, learning_rate

STEPS = 200
HELD_OUT, HELD_OUT_SHARE = 32, 0.1  # documents that measure and are not learned, at most; of a few documents this share
LOOKS = 4  # how often on the way the held-out documents are asked; the best is what is kept
EVERY = 10.0  # seconds between two sentences on how far it is
_COPIES = 3  # fp32 logits of a chunk that stand at once beside those that the budget is made for
_WARMUP, _CLIP = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of it. KL divergences are means over the held-out tokens, in nats; `before` is the base without any adapter."""

    steps: int
    documents: int
    tokens: int
    held_out_documents: int
    before: float
    after: float
    best_step: int


@dataclass(frozen=True, slots=True)
class Side:
    """Teacher or student, while its adapter stands in the model."""

    forward: Forward
    virtual_ids: range

    @property
    def logits(self) -> Callable[[Tensor], Tensor]:
        """What makes logits of `hidden`."""
        score: Any = self.forward.score
        if score is not None:
            return lambda h_RC: score(h_RC)
        head = self.forward.head
        return (lambda logits_RV: logits_RV) if head is None else head.logits

    def row(self, documents: Documents, members: Sequence[int]) -> Row:
        """These documents behind what stands in front of them here. The learned tokens are in the same order on both sides."""
        return make_row(documents, members, self.virtual_ids)

    def hidden(self, row: Row) -> Tensor:
        """[N, C] at the learned tokens; where our own head is not trusted, [N, V]: the class's logits."""
        model, packed = self.forward.model, self.forward.packed
        hidden_N, ids_1T = row.hidden_N.to(model.device), row.ids_T[None].to(model.device)
        first = slots.first_position(model)
        if not packed and (first or self.virtual_ids):  # the class's attention finds a prefix in a cache
            ids_1T, hidden_N = ids_1T[:, len(self.virtual_ids) :], hidden_N - len(self.virtual_ids)
            found = front.logits(model, ids_1T)[0] if self.forward.decoder is None else front.hidden(model, ids_1T)[0]
            return found[hidden_N]
        arguments = row_arguments(row.lengths, model.device, first) if packed else {}
        if self.forward.decoder is None:
            logits: Tensor = model(input_ids=ids_1T, use_cache=False, **arguments).logits[0]
            return logits[hidden_N]
        states: Tensor = self.forward.decoder(input_ids=ids_1T, use_cache=False, **arguments).last_hidden_state[0]
        return states[hidden_N]


def distil(
    base: Base,
    teacher: Tuning,
    student: Tuning,
    documents: Documents,
    *,
    rate: float,
    steps: int = STEPS,
    tokens_per_step: int = 512,
    row_tokens: int = 1024,
    seed: int = 0,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Distilled:
    """Train `student`, which has its first values, to answer as `teacher`. Neither stands in the model before or after.

    The same seed gives the same student. Raises UserError where there is nothing to learn from, or where no step's loss is finite.
    """
    model, begun = base.model, time.monotonic()
    learned, held = _split(documents, seed)
    found = proof.prove(model.config, type(model), base.own_attention, bool(teacher.prefix_tokens), share=False)
    trusted = proof.Proof(found.own_head, found.packed and found.behind_prefix, found.failures)
    sides = {}
    student.train(False)
    teacher.train(False)
    with attention(model, model.config._attn_implementation):  # put back at the end
        for name, tuning in (("teacher", teacher), ("student", student)):
            with placed(model, tuning):
                own = _prepared(model, trusted, base.own_attention, teacher)
                sides[name] = Side(own, slots.virtual_ids(model))
        plan = Plan(learned, tokens_per_step, max(row_tokens, int(documents.lengths_D.max())), seed, trusted.packed)
        asked = _rows(held, plan.row_tokens, trusted.packed)
        work = _Work(model, teacher, student, sides["teacher"], sides["student"])
        targets = work.targets(held, asked)
        before = work.apart(held, asked, targets)
        best, best_step, kept = (before if math.isfinite(before) else math.inf), 0, _copy(student)
        optimizer = Optimizer(student.parameters, "adamw", weight_decay=0.0, ratios=student.learning_rate_ratios)
        for parameter in student.parameters.values():
            parameter.requires_grad_(True)
        said, finite = begun, 0
        for step in range(steps):
            chosen = learning_rate(step, steps, rate, "cosine", _WARMUP)
            loss = work.step(learned, [row.documents for row in plan.rows(step)], optimizer, chosen)
            finite += math.isfinite(loss)
            if (step + 1) % max(1, steps // LOOKS) == 0 or step + 1 == steps:
                now = work.apart(held, asked, targets)
                if now < best:
                    best, best_step, kept = now, step + 1, _copy(student)
            if time.monotonic() - said >= EVERY:
                said = time.monotonic()
                left = (said - begun) * (steps - step - 1) / (step + 1)
                tell(f"distilled {step + 1} of {steps} steps, KL {loss:.3g} nats a token, about {_spelled(left)} left")
        if not finite and steps:
            raise UserError("no step of the distillation had a finite loss; the adapter or its base does not compute here")
        with torch.no_grad():
            for name, parameter in student.parameters.items():
                parameter.copy_(kept[name])
                parameter.requires_grad_(False)
    return Distilled(steps, len(learned), learned.tokens, len(held), before, best, best_step)


@contextmanager
def placed(model: Any, tuning: Tuning) -> Iterator[None]:
    """The adapter in the model for a while."""
    slots.place(model, tuning.adapter)
    try:
        yield
    finally:
        slots.lift(model, tuning.adapter)


def _prepared(model: Any, trusted: proof.Proof, own_attention: str, teacher: Tuning) -> Forward:
    if trusted.packed:
        return forwards.prepare(model, trusted, own_attention, teacher.head)
    model.set_attn_implementation(own_attention)
    return Forward(model, trusted.own_head, False, teacher.head)


@dataclass(frozen=True)
class _Work:
    model: Any
    taught: Tuning
    learning: Tuning
    teacher: Side
    student: Side

    @torch.no_grad()
    def targets(self, documents: Documents, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """The teacher's hidden states at the learned tokens of each row."""
        with placed(self.model, self.taught):
            return [self.teacher.hidden(self.teacher.row(documents, members)) for members in rows]

    @torch.no_grad()
    def apart(self, documents: Documents, rows: Sequence[Sequence[int]], targets: Sequence[Tensor]) -> float:
        """Mean KL of the student from the teacher over the learned tokens, in nats."""
        total, count = 0.0, 0
        with placed(self.model, self.learning):
            for members, target_NC in zip(rows, targets, strict=True):
                h_NC = self.student.hidden(self.student.row(documents, members))
                total += divergence(h_NC, target_NC, self.student.logits, self.teacher.logits, self.chunk(h_NC)).item()
                count += len(target_NC)
        return total / (count or 1)

    def step(self, documents: Documents, rows: Sequence[Sequence[int]], optimizer: Optimizer, rate: float) -> float:
        """One step of the optimizer; the mean KL before it."""
        targets = self.targets(documents, rows)
        count = sum(len(target_NC) for target_NC in targets) or 1
        total = torch.zeros((), dtype=torch.float32, device=self.model.device)
        with placed(self.model, self.learning):
            for members, target_NC in zip(rows, targets, strict=True):
                h_NC = self.student.hidden(self.student.row(documents, members))
                total += divergence(h_NC, target_NC, self.student.logits, self.teacher.logits, self.chunk(h_NC), 1 / count)
                optimizer.gather()
        norm = optimizer.clip(_CLIP)
        loss = (total / count).item()
        if math.isfinite(loss) and math.isfinite(norm.item()):
            optimizer.step(rate)
        else:
            optimizer.forget()
        return loss

    def chunk(self, h_NC: Tensor) -> int:
        """Positions whose logits are made at once."""
        head = self.student.forward.head
        answers = head.weight_VC.shape[0] if head is not None else h_NC.shape[1]
        return max(16, chunk_rows(answers, h_NC.device.type) // _COPIES)


def divergence(
    h_NC: Tensor,
    target_NC: Tensor,
    logits: Callable[[Tensor], Tensor],
    target_logits: Callable[[Tensor], Tensor],
    rows: int,
    scale: float | None = None,
) -> Tensor:
    """Σ KL(target ‖ own) over N positions, detached, `rows` of them at a time; with `scale` its backward pass, times that, is done."""
    total = torch.zeros((), dtype=torch.float32, device=h_NC.device)
    gradient_NC = torch.zeros_like(h_NC) if scale is not None and h_NC.requires_grad else None
    for begin in range(0, h_NC.shape[0], rows):
        with torch.no_grad():
            target_RV = target_logits(target_NC[begin : begin + rows]).float().log_softmax(-1)
        with torch.set_grad_enabled(gradient_NC is not None):
            h_RC = h_NC[begin : begin + rows].detach().requires_grad_(gradient_NC is not None)
            own_RV = logits(h_RC).float().log_softmax(-1)
            apart = F.kl_div(own_RV, target_RV, log_target=True, reduction="sum")
            if gradient_NC is not None:
                gradient_NC[begin : begin + rows] = torch.autograd.grad(apart * scale, h_RC)[0]  # type: ignore[operator]
        total += apart.detach()
    if gradient_NC is not None:
        h_NC.backward(gradient_NC)
    return total


def _split(documents: Documents, seed: int) -> tuple[Documents, Documents]:
    """(learned from, held out); a single document is both. Raises UserError where nothing is learned in any."""
    usable_D = np.flatnonzero(documents.learned_D > 0)
    if not len(usable_D):
        raise UserError("there is no row to fit a LoRA on: none has an answer that is learned; name other data with --data")
    order_D = usable_D[np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(usable_D))]
    count = min(HELD_OUT, max(1, round(HELD_OUT_SHARE * len(order_D))))
    learned_D = np.sort(order_D[count:]) if len(order_D) > 1 else order_D
    return documents.take(learned_D), documents.take(np.sort(order_D[:count]))


def _rows(documents: Documents, row_tokens: int, packed: bool) -> list[tuple[int, ...]]:
    """Which documents are asked together."""
    plan = Plan(documents, max(1, documents.tokens), row_tokens, 0, packed)
    return [row.documents for row in plan.rows(0)]


def _copy(tuning: Tuning) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuning.parameters.items()}


def _spelled(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
