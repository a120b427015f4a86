"""How much memory a run will take, by parts, before anything is loaded.

Weights and states are counted; what a row takes is found by computing one on the meta device (`step/rehearsal.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.corpus.batches import Row
from tunesmith.methods import method
from tunesmith.methods.tuning import Tuning
from tunesmith.models import host_embedding, slots
from tunesmith.step import adam8bit, rehearsal
from tunesmith.step.forward import Forward
from tunesmith.step.rehearsal import Rehearsed


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device that the model is on, by what takes them; the names are for users."""

    parts: Mapping[str, int]
    rough: bool = False  # what a row takes is estimated, not found

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def sentence(self) -> str:
        """Such as `2.1 GB: weights 0.54, activations 1.1, program 0.4`; what is under a hundredth of it is left out."""
        shown = sorted(((size, name) for name, size in self.parts.items() if size >= self.total / 100), reverse=True)
        return f"{gigabytes(self.total)} GB: " + ", ".join(f"{name} {gigabytes(size)}" for size, name in shown)


def gigabytes(size: float) -> str:
    """Two digits that count: 0.54, 2.1, 47."""
    return f"{size / 1e9:.2g}" if size < 10e9 else f"{size / 1e9:.0f}"


@dataclass(frozen=True, slots=True)
class Question:
    """What the memory of a run depends on, apart from the level of recompute and the tokens of a row.

    `skeleton` and `tuning` stand on the meta device, and the adapter is not placed.
    """

    skeleton: Any
    tuning: Tuning
    weight_bytes: int
    dtype: torch.dtype
    optimizer: str
    in_backward: bool
    rows_per_step: int
    learned_share: float
    longest: int  # tokens of the longest document
    step_tokens: int  # of the fullest step: no row is longer
    device_type: str
    quantized: bool
    program_bytes: int = 0  # of Python and its libraries, where they share the memory


def predicted(question: Question, level: str, row_tokens: int) -> Memory:
    """The peak of a step whose fullest row has `row_tokens`, all blocks at `level`."""
    row, rough = rehearsed(question, level, row_tokens)
    weights = question.weight_bytes
    if level == "offload" and question.device_type == "cuda":  # in the run's dtype, which is not the skeleton's
        embedding = question.skeleton.get_input_embeddings().weight
        away = host_embedding.movable_bytes(question.skeleton, question.tuning.adapter)
        weights -= away // embedding.element_size() * question.dtype.itemsize
    resident = {"weights": weights, **of_optimizer(question), "program": question.program_bytes}
    if question.quantized:
        largest = max((place.in_features * place.out_features for place in slots.linears(question.skeleton)), default=0)
        resident["workspace"] = largest * question.dtype.itemsize
    resident["gradients"] = gradients = _gradient_bytes(question)
    if question.in_backward:
        resident["gradients"] = 0
    elif question.rows_per_step <= 1:  # gradients grow as what was kept goes
        resident["gradients"] = max(0, int(gradients + row.block - row.peak))
    return Memory({name: size for name, size in (resident | {"activations": row.peak}).items() if size}, rough)


def rehearsed(question: Question, level: str, row_tokens: int) -> tuple[Rehearsed, bool]:
    """What one row takes; where the architecture cannot be computed without content, an estimate from its widths, and true."""
    row, skeleton, tuning = _row(question, row_tokens), question.skeleton.to(question.dtype), question.tuning
    trainable = {name: p.requires_grad for name, p in skeleton.named_parameters()}
    try:
        method.place(skeleton, tuning)
        forward = Forward(skeleton, True, True, tuning.head)
        trained = forward.head is not None and any(p is forward.head.weight_VC for p in tuning.parameters.values())
        return rehearsal.rehearse(forward, row, level, trained_head=trained, device_type=question.device_type), False
    except Exception:  # routing that looks at numbers, operators without a meta form: any architecture may have such
        return estimated(question, level, row_tokens), True
    finally:
        slots.lift(skeleton, {path: module for path, module in tuning.adapter.items() if path in slots.placed(skeleton)})
        for name, p in skeleton.named_parameters():
            p.requires_grad_(trainable[name])


def estimated(question: Question, level: str, row_tokens: int) -> Rehearsed:
    """Roughly: of each block eight tensors as wide as the model and four as its MLP, or its input alone."""
    text, size = question.skeleton.config.get_text_config(), question.dtype.itemsize
    width = int(getattr(text, "hidden_size", 1024))
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    block, depth = row_tokens * size * (8 * width + 4 * inner), len(slots.blocks(question.skeleton))
    kept = depth * (block if level in ("none", "elementwise") else row_tokens * size * width)
    return Rehearsed(kept, kept + block, kept + block, block)


def of_optimizer(question: Question) -> dict[str, int]:
    """Bytes of what is trained beside the weights, of the optimizer's moments and of fp32 masters, on the device."""
    own = {id(p) for p in question.skeleton.parameters()}
    beside = states = 0
    for parameter in question.tuning.parameters.values():
        count = parameter.numel()
        beside += 0 if id(parameter) in own else count * parameter.element_size()
        eight = question.optimizer != "adamw" and count >= adam8bit.SMALL
        if not eight:
            states += 8 * count
        elif question.optimizer == "adamw_8bit":
            states += 2 * count + 8 * count // adam8bit.BLOCK
        if _dtype(question, parameter, own) != torch.float32 and not question.in_backward:
            states += 4 * count
    return {"adapter": beside, "optimizer": states}


def _gradient_bytes(question: Question) -> int:
    """Sums are in fp32; a tensor of a lower dtype has a gradient of its own on the way there."""
    own = {id(p) for p in question.skeleton.parameters()}
    sums = sum(4 * p.numel() for p in question.tuning.parameters.values())
    return sums + sum(2 * p.numel() for p in question.tuning.parameters.values() if _dtype(question, p, own) != torch.float32)


def _dtype(question: Question, parameter: Tensor, own: set[int]) -> torch.dtype:
    return question.dtype if id(parameter) in own else parameter.dtype


def _row(question: Question, row_tokens: int) -> Row:
    """A row as full as can be, of documents as long as the longest."""
    row_tokens = max(question.longest, min(row_tokens, question.step_tokens))
    lengths = [question.longest] * max(1, row_tokens // max(1, question.longest))
    if (rest := row_tokens - sum(lengths)) > 0:
        lengths.append(rest)
    total = sum(lengths)
    learned = max(1, round(total * question.learned_share)) if question.tuning.head is None else len(lengths)
    zeros_N = torch.zeros(learned, dtype=torch.int64, device="meta")
    ids_T = torch.zeros(total, dtype=torch.int64, device="meta")
    return Row(ids_T, tuple(lengths), tuple(range(len(lengths))), zeros_N, zeros_N, total, total)
