"""The figures of a run that stand in its events and in `plan.json`, and the preview of a run that is not begun."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith import events, hardware
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.stream import Stream
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots
from tunesmith.models.fingerprint import fingerprint
from tunesmith.models.load import Base
from tunesmith.models.proof import Proof
from tunesmith.train import engine, folder, prefixes, weights
from tunesmith.train.checkpoint import Clock, Progress
from tunesmith.train.setting import Setting


def started(setting: Setting, out: Path, base: Base, tuning: Tuning, plan: Plan | Stream) -> events.Started:
    """What is known before the first step. Measures the machine's matrix products at this model's shapes (a fraction of a second)."""
    text = base.model.config.get_text_config()
    width = int(getattr(text, "hidden_size", 512))
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    return events.Started(
        run=out.resolve().name,
        total_steps=setting.steps,
        total_tokens=plan.tokens_in(setting.steps),
        trainable_parameters=tuning.count,
        total_parameters=setting.total_parameters,
        device=str(setting.device),
        threads=torch.get_num_threads(),
        matmul_flops=hardware.matmul_flops(setting.device, setting.dtype, min(plan.row_tokens, plan.tokens_per_step), inner, width),
        flops_per_token=flops_per_token(base, tuning, setting.documents.learned_tokens / setting.documents.tokens),
    )


def flops_per_token(base: Base, tuning: Tuning, learned_share: float) -> float:
    """FLOP of forward and backward for one token: 2 for each weight that it meets, again for its input's gradient, and again
    where the weight is trained. The head counts for learned tokens. Attention's own products are left out (small below 1k tokens)."""
    trained = {id(p) for p in tuning.parameters.values()}
    in_blocks = sum(
        place.in_features * place.out_features * (6 if id(base.model.get_submodule(place.path).weight) in trained else 4)
        for place in slots.linears(base.model)
    )
    beside = 6 * (tuning.count if tuning.adapter else 0)
    if tuning.head is not None:  # labels cost nothing beside a vocabulary
        return in_blocks + beside
    head = base.model.get_output_embeddings().weight
    return in_blocks + beside + head.numel() * learned_share * (6 if id(head) in trained else 4)


def plan_json(setting: Setting, tuning: Tuning, trusted: Proof) -> dict[str, Any]:
    """`plan.json`: no times and no paths. `own_head` and `packed` are the decisions that a resumed run keeps, `base` is the model
    that it has to find again."""
    return {
        "trainable_parameters": tuning.count,
        "total_parameters": setting.total_parameters,
        "steps": setting.steps,
        "tokens": setting.plan.tokens_in(setting.steps),
        "own_head": trusted.own_head,
        "packed": trusted.packed,
        "proof": list(trusted.failures),
        "base": fingerprint(setting.located.folder),
    }


def finished(out: Path, progress: Progress, clock: Clock, peak_bytes: int) -> events.Finished:
    """The last event of a run, from its log and its counts."""
    return events.Finished(
        steps=progress.step,
        loss=last_loss([event for event in events.read_events(out / folder.EVENTS) if isinstance(event, events.Step)]),
        tokens=progress.tokens,
        computed_tokens=progress.computed_tokens,
        learned_tokens=progress.learned_tokens,
        seconds=clock.seconds,
        seconds_to_first_step=clock.seconds_to_first_step,
        tokens_per_second=speed(clock, progress),
        peak_memory_bytes=peak_bytes,
    )


def last_loss(steps: list[events.Step]) -> float:
    """Mean loss over the learned tokens of the last tenth of the steps, without those that were skipped; NaN where all were."""
    whole = [step for step in steps if not step.skipped]
    tail = whole[-max(1, len(whole) // 10) :]
    learned = sum(step.learned_tokens for step in tail)
    return sum(step.loss * step.learned_tokens for step in tail) / learned if learned else float("nan")


def count(clock: Clock, progress: Progress, tokens: int, seconds: float, since_start: float) -> None:
    """Book a step that has just been made. `since_start`: seconds since this sitting began."""
    if progress.step == 1:
        clock.seconds_to_first_step = since_start
    else:
        clock.seconds_after_first += seconds
        clock.tokens_after_first += tokens


def speed(clock: Clock, progress: Progress) -> float:
    """Real tokens over wall time after the first step; of the first step alone where there is no other."""
    if clock.tokens_after_first:
        return clock.tokens_after_first / clock.seconds_after_first
    return progress.tokens / max(clock.seconds_to_first_step, 1e-9)


def with_sitting(clock: Clock, seconds: float) -> Clock:
    """The clock as it would stand if the sitting ended now."""
    return replace(clock, seconds=clock.seconds + seconds)


def preview(s: Setting) -> list[str]:
    """What a run would do, in lines: nothing is read beyond the data, nothing is written."""
    report, run = s.report, s.run
    evaluated = report.get("evaluation")
    return [
        f"model    {s.located.name}: {s.total_parameters:,} parameters, {run.model.dtype} on {s.device}"
        + (", NF4" if run.model.quantize else ""),
        f"method   {run.method.name}: {s.tuning.count:,} trainable parameters ({s.tuning.count / s.total_parameters:.2%}) "
        f"in {len(s.tuning.parameters)} tensors",
        f"data     {report['rows']:,} rows: {report['kept']:,} kept, {report['cut']:,} cut, {report['split']:,} split, "
        f"{len(report['dropped']):,} dropped",
        f"         {report['documents']:,} documents, {report['tokens']:,} tokens, {report['learned_tokens']:,} learned "
        f"({report['learned_tokens'] / report['tokens']:.0%})",
        *([f"         evaluated on {evaluated['rows']:,} rows, {evaluated['learned_tokens']:,} learned tokens"] if evaluated else []),
        *([f"sharing  {shared}"] if (shared := prefixes.sentence(report["shared_prefixes"])) else []),
        f"steps    {s.steps:,} of about {run.train.tokens_per_step} tokens, {s.plan.tokens_in(s.steps):,} tokens in all, "
        f"learning rate {run.train.learning_rate:g} ({run.train.schedule})",
        f"compile  {engine.said(run, s.origins)}",
        f"memory   {s.memory.sentence()}",
        f"writes   {run.out}/: run.yaml plan.json data.json events.jsonl checkpoints/ {weights.KIND[bool(s.tuning.adapter)]}/ "
        "loss.png README.md",
        *[f"note     {note}" for note in s.notes],
    ]
