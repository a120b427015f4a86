"""The least recompute that fits the memory there is, and shorter rows where even the most does not."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith import hardware
from tunesmith.config import Run
from tunesmith.data.corpus.documents import Documents
from tunesmith.errors import UserError
from tunesmith.methods.method import METHODS
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots
from tunesmith.step.memory import Memory, Question, gigabytes, predicted
from tunesmith.train import folder

SHARE = 0.9  # of the memory that is free: what the allocator cannot use, what others take meanwhile
SHORTEST = 256  # tokens of a row, below which products get slow
LATER = 64 << 20  # bytes that Python and its libraries take on the way to the first step


@dataclass(frozen=True, slots=True)
class Choice:
    """A level of recompute, of the `first` blocks alone where that is given, and the memory that is then expected."""

    level: str
    first: int | None
    row_tokens: int
    memory: Memory
    budget: int  # bytes
    reason: str
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """For a preview."""
        return f"about {self.memory.sentence()}; {gigabytes(self.budget)} GB may be taken, train.recompute is {self.level}{_some(self)}"


def budget_bytes(text: str, device: torch.device) -> tuple[int, str]:
    """Bytes that the run may take, Python and its libraries included where they share the memory, and why."""
    if text.endswith("%"):
        total = hardware.total_memory(device)
        return int(float(text[:-1]) / 100 * total), f"{text} of {gigabytes(total)} GB"
    if (size := hardware.bytes_of(text)) is not None:
        return size, f"train.memory_budget {text}"
    own = program_bytes(device)
    return int((hardware.free_memory(device) + own) * SHARE), "of what is free now"


def program_bytes(device: torch.device) -> int:
    """What Python and its libraries take of the memory that the model is going to share with them."""
    return hardware.private_bytes(os.getpid()) if device.type == "cpu" else 0


def question(
    run: Run, skeleton: Any, tuning: Tuning, weight_bytes: int, dtype: torch.dtype, device: torch.device, documents: Documents, longest: int
) -> Question:
    """What the prediction depends on, from a run whose steps are decided."""
    virtual, train = tuning.virtual_tokens, run.train
    assert isinstance(train.tokens_per_step, int)
    return Question(
        skeleton, tuning, weight_bytes, dtype, train.optimizer, train.optimizer_in_backward, 1 if train.optimizer_in_backward else 2,
        documents.learned_tokens / max(1, documents.tokens), longest + virtual, train.tokens_per_step + longest + virtual, device.type,
        run.model.quantize is not None, program_bytes(device) + (LATER if device.type == "cpu" else 0),
    )  # fmt: skip


def choose(run: Run, question: Question, row_tokens: int, shorten: bool, budget: tuple[int, str]) -> Choice:
    """The level that the run asks for, or the least that fits; with `shorten`, shorter rows where none does. Raises UserError where
    nothing fits, with what would."""
    most, why = budget
    asked = run.train.recompute
    levels = [asked] if asked != "auto" else ["none", "elementwise", "blocks", *(["offload"] if question.device_type == "cuda" else [])]
    while True:
        tried: list[tuple[str, Memory]] = []
        for level in levels:
            memory = predicted(question, level, row_tokens)
            if memory.total <= most:
                return _chosen(question, tried, level, memory, row_tokens, most, asked == "auto")
            tried.append((level, memory))
        if not shorten or row_tokens // 2 < max(SHORTEST, question.longest):
            break
        row_tokens //= 2
    level, memory = min(tried, key=lambda each: each[1].total)
    if run.train.memory_budget == "auto" and (asked != "auto" or memory.rough):
        note = f"about {gigabytes(memory.total)} GB will be needed ({memory.sentence()}), and {gigabytes(most)} GB may be taken ({why})"
        return Choice(level, None, row_tokens, memory, most, "the most that there is", (note,))
    raise UserError(
        f"a step needs about {memory.sentence()} with train.recompute={level}, and {gigabytes(most)} GB may be taken ({why})",
        *_cures(run, question, memory, most, row_tokens, level),
    )


def _chosen(
    question: Question, tried: Sequence[tuple[str, Memory]], level: str, memory: Memory, row_tokens: int, most: int, auto: bool
) -> Choice:
    """With `blocks` as few of them as the budget asks for: what is kept falls evenly from block to block."""
    depth, first = len(slots.blocks(question.skeleton)), None
    if auto and level == "blocks" and tried:
        above = tried[-1][1]
        first = min(depth, max(1, -int(-depth * (above.total - most) // max(1, above.total - memory.total))))
        parts = dict(memory.parts)
        parts["activations"] = int(above.parts["activations"] + (parts["activations"] - above.parts["activations"]) * first / depth)
        memory, first = Memory(parts, memory.rough), None if first == depth else first
    what = {"none": "everything is kept"}.get(level, f"keeping more takes {gigabytes(tried[-1][1].total) if tried else ''} GB")
    choice = Choice(level, first, row_tokens, memory, most, "")
    return replace(choice, reason=f"{what}, {gigabytes(memory.total)} of {gigabytes(most)} GB needed{_some(choice, depth)}")


def _some(choice: Choice, depth: int = 0) -> str:
    return "" if choice.first is None else f", of {choice.first} blocks" + (f" of {depth}" if depth else "")


def _cures(run: Run, question: Question, memory: Memory, most: int, row_tokens: int, level: str) -> list[str]:
    """What would make it fit, each with the setting."""
    activations = memory.parts.get("activations", 0)
    left = most - (memory.total - activations)
    fewer = int(row_tokens * left / max(1, activations)) // 16 * 16

    def needed() -> int:
        return predicted(replace(question, longest=min(question.longest, fewer)), level, fewer).total

    while fewer >= 16 and needed() > most:  # what does not grow with the row was taken for what does
        fewer = int(0.95 * fewer) // 16 * 16
    cures = []
    if fewer >= max(16, question.longest):
        cures.append(f"train.row_tokens={fewer} would fit")
    elif fewer >= 16:
        cures.append(f"data.max_length={fewer} would fit: the longest document has {question.longest:,} tokens")
    if level not in ("blocks", "offload"):
        cures.append("train.recompute=blocks keeps less")
    if memory.parts.get("optimizer", 0) > memory.total / 10 and question.optimizer == "adamw":
        cures.append("train.optimizer=adamw_8bit has a quarter of the optimizer's states")
    if memory.parts.get("gradients", 0) > memory.total / 10:
        cures.append("train.optimizer_in_backward=true holds no gradients")
    if run.model.quantize is None and METHODS[run.method.name].NF4:
        cures.append("model.quantize=nf4 has a quarter of the weights, or less")
    return [*cures, f"train.memory_budget={gigabytes(memory.total * 1.05)}GB would allow it"]


def rung(out: Path, choice: Choice) -> dict[str, Any]:
    """What plan.json says of the level that the run begins with; a resumed run whose level is the same keeps how many blocks it was."""
    kept = folder.read_json(out / folder.PLAN).get("recompute") if (out / folder.PLAN).exists() else None
    if kept is not None and kept["level"] == choice.level:
        return dict(kept)
    return {"level": choice.level, "first_blocks": choice.first}
