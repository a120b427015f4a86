"""A run, from its first line to its last, as a function that yields events.

`train` begins a run, `resume` goes on with one; both are the same generator after the start. Whoever reads the events draws a
progress bar, a page or a test; each event is in `events.jsonl` before it is handed out.
"""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith import config, events, hardware
from tunesmith.config import Run
from tunesmith.data.batches import Plan, Row
from tunesmith.errors import Interrupted, UserError
from tunesmith.methods import layout, method
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import proof, slots
from tunesmith.models.load import Base
from tunesmith.step import forward as forwards
from tunesmith.step.forward import Forward
from tunesmith.step.optim import Optimizer, learning_rate
from tunesmith.train import checkpoint, folder, report, weights
from tunesmith.train.checkpoint import Checkpoint, Clock, Progress, Stopwatch
from tunesmith.train.setting import Setting, adapter_folder, decide

Stop = Callable[[], int]  # 0, or the exit code with which to stop after the step


def train(run: Run, origins: dict[str, str] | None = None, *, stop: Stop = lambda: 0, tell: Callable[[str], None] = print) -> Iterator[events.Event]:
    """Begin a run. Raises UserError before anything large is read, ProofFailed where a mask is wrong, Interrupted on `stop`."""
    yield from begin(decide(run, origins or {}, tell), stop=stop, tell=tell)


def begin(setting: Setting, *, stop: Stop = lambda: 0, tell: Callable[[str], None] = print) -> Iterator[events.Event]:
    """The same for a run whose settings are decided."""
    out = folder.begin(setting.run.out)
    (out / folder.RUN).write_text(config.dump(setting.run, setting.origins), encoding="utf-8")
    folder.write_json(out / folder.DATA, setting.report)
    yield from _recorded(out, _steps(setting, out, None, stop, tell))


def resume(name: str | Path, *, steps: int | None = None, stop: Stop = lambda: 0, tell: Callable[[str], None] = print) -> Iterator[events.Event]:
    """Go on exactly where a run stopped. Raises UserError for a finished run without more `steps`, and for data that changed."""
    out, loaded = folder.open_run(name)
    checkpoint.clean(out)
    setting = decide(loaded.run, loaded.origins, tell)
    if setting.report["mask_sha256"] != folder.read_json(out / folder.DATA)["mask_sha256"]:
        raise UserError(f"{out}: the data, the chat template or the tokenizer is no longer what the run began with; nothing was changed")
    last = checkpoint.load(out)
    if steps is not None:
        if steps < (last.progress.step if last else 0):
            raise UserError(f"train.steps={steps}, but {out} has already done {last.progress.step if last else 0}")
        setting.steps = steps
        loaded.run = config.parse(_with(loaded.run, "train", "steps", steps))
        loaded.origins["train.steps"] = "resume"
        folder.write_text(out / folder.RUN, config.dump(loaded.run, loaded.origins))
    if last is not None and last.progress.step >= setting.steps:
        raise UserError(f"{out} is finished after {last.progress.step} steps; for more: tunesmith resume {out} train.steps={2 * setting.steps}")
    yield from _recorded(out, _steps(setting, out, last or Checkpoint({}, {}, Progress()), stop, tell))


def _recorded(out: Path, happening: Iterator[events.Event]) -> Iterator[events.Event]:
    """Write each event down before handing it out; a warning's text also where the run fails."""
    log = events.EventLog(out / folder.EVENTS)
    try:
        for event in happening:
            log.write(event)
            yield event
    finally:
        log.close()


def _steps(setting: Setting, out: Path, last: Checkpoint | None, stop: Stop, tell: Callable[[str], None]) -> Iterator[events.Event]:
    """The run itself. `last` is None for a new run; an empty checkpoint for one that was killed before its first."""
    run, sitting = setting.run, Stopwatch()
    assert isinstance(run.train.threads, int) and isinstance(run.train.learning_rate, float)
    assert isinstance(run.train.checkpoint_every, int) and isinstance(run.evaluate.every, int)
    torch.set_num_threads(run.train.threads)
    _seed(run.train.seed, 0)

    if last is not None:
        dropped = events.rewind(out / folder.EVENTS, last.progress.step)
        yield events.Resumed(step=last.progress.step, dropped_events=dropped)
    with hardware.MemorySampler(setting.device) as memory:
        # the model, what is trained, and what may be left to us
        tell(f"loading {setting.located.name}")
        base = loading.load(
            setting.located.folder, dtype=setting.dtype, quantize=run.model.quantize is not None, double_quant=run.model.double_quant, device=setting.device
        )
        memory.mark()
        tuning = _tuning(run, base, setting)
        method.place(base.model, tuning)
        trusted = _proof(out, base, new=last is None)
        forward = forwards.prepare(base.model, trusted, base.own_attention)
        if run.train.recompute == "blocks":
            forwards.recompute_blocks(base.model)
        optimizer = Optimizer(tuning.parameters, run.train.optimizer, weight_decay=run.train.weight_decay, ratios=tuning.learning_rate_ratios)
        plan = setting.plan if forward.packed else _alone(setting.plan)
        progress, clock = Progress(), Clock()
        if last is not None and last.trained:
            method.restore(tuning, last.trained, f"checkpoint of step {last.progress.step}")
            optimizer.restore(last.optimizer)
            progress, clock = last.progress, last.clock
        if last is None:
            folder.write_json(out / folder.PLAN, _plan_json(setting, tuning, trusted))
        yield _started(setting, out, base, tuning, plan)
        for note in dict.fromkeys([*base.notes, *setting.notes, *trusted.failures]):
            yield events.Warned(message=note, step=progress.step)

        saved = progress.step
        while progress.step < setting.steps:
            # one optimizer step: the mean loss over all its learned tokens, row by row
            step, begun = progress.step, Stopwatch()
            rows = plan.rows(step)
            learned = sum(len(row.targets_N) for row in rows)
            _seed(run.train.seed, step + 1)  # dropout is a function of seed and step, so that a resumed run repeats it
            tuning.train()
            losses = [_learn(forward, optimizer, row, 1 / max(1, learned)) for row in rows]
            loss = torch.stack(losses).sum().item()
            norm = optimizer.clip(run.train.clip).item()
            rate = learning_rate(step, setting.steps, run.train.learning_rate, run.train.schedule, run.train.warmup)
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                optimizer.step(rate)
            else:
                optimizer.forget()
                warned = events.Warned(message=_nonfinite(setting, forward, rows, losses, step + 1), step=step + 1)
                yield warned
                if run.train.on_nonfinite == "stop":
                    if saved < progress.step:
                        _save(out, setting, base, tuning, optimizer, progress, clock)
                    raise UserError(warned.message, f"{out} stands at step {progress.step}; lower train.learning_rate, mend those rows, or set train.on_nonfinite=skip")
            tuning.train(False)

            progress.step += 1
            progress.tokens += sum(row.tokens for row in rows)
            progress.computed_tokens += sum(row.computed_tokens for row in rows)
            progress.learned_tokens += learned
            _count(clock, progress, sum(row.tokens for row in rows), begun.seconds(), sitting)
            yield events.Step(
                step=progress.step,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=sum(row.tokens for row in rows),
                computed_tokens=sum(row.computed_tokens for row in rows),
                learned_tokens=learned,
                tokens_per_second=_speed(clock, progress),
                peak_memory_bytes=memory.mark() if progress.step == 1 else memory.peak_bytes,
                skipped=not finite,
            )

            ended, code = progress.step == setting.steps, stop()
            if setting.evaluation is not None and (progress.step % run.evaluate.every == 0 or ended):
                pause = Stopwatch()
                evaluated = _evaluate(forward, setting, progress)
                if evaluated.best:
                    weights.write(out / "best", base, tuning, setting)
                clock.seconds_after_first += pause.seconds()
                yield evaluated
            if progress.step % run.train.checkpoint_every == 0 or ended or code:
                pause = Stopwatch()
                path = _save(out, setting, base, tuning, optimizer, progress, clock)
                saved = progress.step
                clock.seconds_after_first += pause.seconds()
                yield events.Saved(step=progress.step, path=str(path.relative_to(out)), seconds=pause.seconds())
            if code:
                if not tuning.adapter:
                    weights.write(out / weights.KIND[False], base, tuning, setting)
                raise Interrupted(code, f"stopped after step {progress.step}; go on with `tunesmith resume {out}`")

        weights.write(out / weights.KIND[bool(tuning.adapter)], base, tuning, setting)
        clock.seconds += sitting.seconds()
        finished = _finished(out, progress, clock, memory.mark())
    yield finished
    report.write(out, setting.run, finished)


def _tuning(run: Run, base: Base, setting: Setting) -> Tuning:
    """What is trained, with its first values: the method's, or those of the adapter to go on from."""
    if run.model.adapter is not None:
        return layout.fit(layout.read(adapter_folder(run.model.adapter)), base.model, setting.device)
    tuning = method.build(base.model, run.method, quantized=base.quantized, device=setting.device)
    method.METHODS[run.method.name].init(tuning, run.train.seed)
    return tuning


def _learn(forward: Forward, optimizer: Optimizer, row: Row, scale: float) -> torch.Tensor:
    """Forward and backward of one row; gradients are added up. The row's share of the step's loss, not waited for."""
    head_gradient = None
    if forward.head is not None:
        trained = {id(parameter): name for name, parameter in optimizer.parameters.items()}
        name = trained.get(id(forward.head.weight_VC))
        head_gradient = optimizer.gradient_of(name) if name else None
    loss = forward.loss(row, scale, head_gradient)
    if loss.requires_grad:
        loss.backward()
    optimizer.gather()
    return loss.detach()


def _proof(out: Path, base: Base, new: bool) -> proof.Proof:
    """Proved anew at every start; a resumed run keeps the decisions that it began with."""
    found = proof.prove(base.model.config, type(base.model), base.own_attention)
    if new or not (out / folder.PLAN).exists():
        return found
    kept = folder.read_json(out / folder.PLAN)
    if (kept["packed"] and not found.packed) or (kept["own_head"] and not found.own_head):
        raise UserError("what this run began with no longer holds for this architecture:", *found.failures)
    return proof.Proof(kept["own_head"], kept["packed"], found.failures)


def _alone(plan: Plan) -> Plan:
    return Plan(plan.documents, plan.tokens_per_step, plan.row_tokens, plan.seed, False, plan.virtual_tokens)


def _evaluate(forward: Forward, setting: Setting, progress: Progress) -> events.Evaluated:
    assert setting.evaluation is not None
    plan = Plan(setting.evaluation, setting.evaluation.tokens, setting.plan.row_tokens, 0, forward.packed and setting.run.data.pack)
    loss, learned = forward.mean_loss(plan.rows(0))
    best = progress.best_loss is None or loss < progress.best_loss
    if best:
        progress.best_loss, progress.best_step = loss, progress.step
    return events.Evaluated(step=progress.step, loss=loss, learned_tokens=learned, best=best)


def _save(out: Path, setting: Setting, base: Base, tuning: Tuning, optimizer: Optimizer, progress: Progress, clock: Clock) -> Path:
    """A checkpoint, and for an adapter (small) its folder as of now, so that a killed run can be chatted with."""
    path = checkpoint.save(out, Checkpoint(method.state(tuning), optimizer.state(), progress, clock), setting.run.train.keep)
    if tuning.adapter and progress.step < setting.steps:
        weights.write(out / weights.KIND[True], base, tuning, setting)
    return path


def _count(clock: Clock, progress: Progress, tokens: int, seconds: float, sitting: Stopwatch) -> None:
    if progress.step == 1:
        clock.seconds_to_first_step = sitting.seconds()
    else:
        clock.seconds_after_first += seconds
        clock.tokens_after_first += tokens


def _speed(clock: Clock, progress: Progress) -> float:
    """Real tokens over wall time after the first step; of the first step alone where there is no other."""
    if clock.tokens_after_first:
        return clock.tokens_after_first / clock.seconds_after_first
    return progress.tokens / max(clock.seconds_to_first_step, 1e-9)


def _started(setting: Setting, out: Path, base: Base, tuning: Tuning, plan: Plan) -> events.Started:
    text = base.model.config.get_text_config()
    width = int(getattr(text, "hidden_size", 512))
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    return events.Started(
        run=out.name,
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
    head = base.model.get_output_embeddings().weight
    return in_blocks + 6 * (tuning.count if tuning.adapter else 0) + head.numel() * learned_share * (6 if id(head) in trained else 4)


def _plan_json(setting: Setting, tuning: Tuning, trusted: proof.Proof) -> dict[str, Any]:
    return {
        "trainable_parameters": tuning.count,
        "total_parameters": setting.total_parameters,
        "steps": setting.steps,
        "tokens": setting.plan.tokens_in(setting.steps),
        "own_head": trusted.own_head,
        "packed": trusted.packed,
        "proof": list(trusted.failures),
    }


def _finished(out: Path, progress: Progress, clock: Clock, peak: int) -> events.Finished:
    losses = [e.loss for e in events.read_events(out / folder.EVENTS) if isinstance(e, events.Step) and not e.skipped]
    tail = losses[-max(1, len(losses) // 10) :]
    return events.Finished(
        steps=progress.step,
        loss=sum(tail) / max(1, len(tail)),
        tokens=progress.tokens,
        computed_tokens=progress.computed_tokens,
        learned_tokens=progress.learned_tokens,
        seconds=clock.seconds,
        seconds_to_first_step=clock.seconds_to_first_step,
        tokens_per_second=_speed(clock, progress),
        peak_memory_bytes=peak,
    )


def _nonfinite(setting: Setting, forward: Forward, rows: list[Row], losses: list[torch.Tensor], step: int) -> str:
    """Which rows, and where in the model it began."""
    bad = [row for row, loss in zip(rows, losses, strict=True) if not torch.isfinite(loss)]
    origins = [setting.documents.origins[d] for row in bad for d in row.documents]
    where = forwards.first_nonfinite(forward, bad[0]) if bad else ""
    what = f"the loss is not finite in {', '.join(origins[:8])}{' ...' if len(origins) > 8 else ''}" if bad else "the gradient norm is not finite"
    return f"step {step}: {what}" + (f"; the first module whose output is not finite is {where}" if where else "")


def _seed(seed: int, step: int) -> None:
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(mixed)
    torch.manual_seed(mixed)


def _with(run: Run, section: str, key: str, value: Any) -> dict[str, Any]:
    values = run.model_dump()
    values[section][key] = value
    return values


def preview(s: Setting) -> list[str]:
    """What a run would do, in lines: nothing is read beyond the data, nothing is written."""
    report, run = s.report, s.run
    return [
        f"model    {s.located.name}: {s.total_parameters:,} parameters, {run.model.dtype} on {s.device}" + (", NF4" if run.model.quantize else ""),
        f"method   {run.method.name}: {s.tuning.count:,} trainable parameters ({s.tuning.count / s.total_parameters:.2%}) in {len(s.tuning.parameters)} tensors",
        f"data     {report['rows']:,} rows: {report['kept']:,} kept, {report['cut']:,} cut, {report['split']:,} split, {len(report['dropped']):,} dropped",
        f"         {report['documents']:,} documents, {report['tokens']:,} tokens, {report['learned_tokens']:,} learned ({report['learned_tokens'] / report['tokens']:.0%})",
        f"steps    {s.steps:,} of about {run.train.tokens_per_step} tokens, learning rate {run.train.learning_rate:g} ({run.train.schedule})",
        f"writes   {run.out}/: run.yaml plan.json data.json events.jsonl checkpoints/ {weights.KIND[bool(s.tuning.adapter)]}/ loss.png README.md",
        *[f"note     {note}" for note in s.notes],
    ]
