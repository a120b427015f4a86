"""A run, from its first line to its last, as a function that yields events.

`train` begins a run, `resume` goes on with one; both are the same generator after the start. Whoever reads the events draws a
progress bar, a page or a test; each event is in `events.jsonl` before it is handed out.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith import config, events, hardware
from tunesmith.config import Run
from tunesmith.data.corpus.batches import Plan, Row, flat
from tunesmith.errors import Interrupted, UserError
from tunesmith.methods import method
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import load as loading
from tunesmith.models import proof, slots
from tunesmith.models.fingerprint import difference, fingerprint
from tunesmith.models.load import Base
from tunesmith.models.matrix import matrix
from tunesmith.step import forward as forwards
from tunesmith.step import recompute
from tunesmith.step.forward import Forward
from tunesmith.step.optim import learning_rate
from tunesmith.train import accelerations, checkpoint, engine, figures, folder, nonfinite, prefixes, report, tensorboard, weights
from tunesmith.train.adapter import adapter_to_go_on_from
from tunesmith.train.checkpoint import Checkpoint, Clock, Progress, Stopwatch
from tunesmith.train.corpora import Tell
from tunesmith.train.memory import rung
from tunesmith.train.optimizers import AnyOptimizer, must_be_one_row, optimizer_of
from tunesmith.train.setting import Setting, decide
from tunesmith.train.task import sentence

Stop = Callable[[], int]  # 0, or the exit code with which to stop after the step


def train(run: Run, origins: dict[str, str] | None = None, *, stop: Stop = lambda: 0, tell: Tell = print) -> Iterator[events.Event]:
    """Begin a run. Raises UserError before anything large is read, ProofFailed where a mask is wrong, Interrupted on `stop`."""
    yield from begin(decide(run, origins or {}, tell), stop=stop, tell=tell)


def begin(setting: Setting, *, stop: Stop = lambda: 0, tell: Tell = print) -> Iterator[events.Event]:
    """The same for a run whose settings are decided. A run that is refused before its first event leaves no folder behind."""
    out = folder.begin(setting.run.out)
    try:
        with folder.locked(out):
            folder.write_json(out / folder.DATA, setting.report)
            folder.write_text(out / folder.RUN, config.dump(setting.run, setting.origins))
            yield from _recorded(out, setting, _steps(setting, out, None, stop, tell))
    except UserError:
        folder.withdraw(out)
        raise


def resume(name: str | Path, *, steps: int | None = None, stop: Stop = lambda: 0, tell: Tell = print) -> Iterator[events.Event]:
    """Go on exactly where a run stopped. Raises UserError for a finished run without more `steps`, and for data that changed."""
    out, loaded = folder.open_run(name)
    done = checkpoint.newest(out)
    if steps is not None:
        if steps < done:
            raise UserError(f"train.steps={steps}, but {out} has already done {done}")
        loaded.run = config.parse(_with(loaded.run, "train", "steps", steps))
        loaded.origins["train.steps"] = "resume"
    setting = decide(loaded.run, loaded.origins, tell)
    _same_data(out, setting)
    _same_base(out, setting)
    if done >= setting.steps and folder.is_finished(out):
        raise UserError(f"{out} is finished after {done} steps; for more: tunesmith resume {out} train.steps={2 * setting.steps}")
    with folder.locked(out):
        checkpoint.clean(out)
        last = checkpoint.load(out) or Checkpoint({}, {}, Progress())
        if steps is not None:
            folder.write_text(out / folder.RUN, config.dump(loaded.run, loaded.origins))
        dropped = events.rewind(out / folder.EVENTS, last.progress.step)
        resumed = events.Resumed(step=last.progress.step, dropped_events=dropped)
        yield from _recorded(out, setting, _steps(setting, out, last, stop, tell), resumed)


def _recorded(out: Path, setting: Setting, happening: Iterator[events.Event], *first: events.Event) -> Iterator[events.Event]:
    """Write each event down before handing it out, those of `first` before all."""

    def recorded() -> Iterator[events.Event]:
        for source in (first, happening):
            for event in source:
                log.write(event)
                yield event

    log = events.EventLog(out / folder.EVENTS)
    try:
        yield from tensorboard.mirrored(out, recorded()) if setting.run.train.tensorboard else recorded()
    finally:
        log.close()


def _steps(setting: Setting, out: Path, last: Checkpoint | None, stop: Stop, tell: Tell) -> Iterator[events.Event]:
    """The run itself. `last` is None for a new run; an empty checkpoint for one that was killed before its first."""
    run, sitting = setting.run, Stopwatch()
    assert isinstance(run.train.threads, int) and isinstance(run.train.learning_rate, float)
    assert isinstance(run.train.checkpoint_every, int) and isinstance(run.evaluate.every, int)
    torch.set_num_threads(run.train.threads)
    _seed(run.train.seed, 0)

    with hardware.MemorySampler(setting.device) as memory, contextlib.closing(setting.plan):
        # the model, what is trained, and what may be left to us
        tell(f"loading {setting.located.name}")
        base = loading.load(
            setting.located.folder,
            dtype=setting.dtype,
            quantize=run.model.quantize is not None,
            double_quant=run.model.double_quant,
            device=setting.device,
        )
        memory.mark()
        where = f"{out}: the checkpoint of step {last.progress.step if last else 0}"
        tuning = _tuning(run, base, setting, last.trained if last else {}, where)
        method.place(base.model, tuning)
        trusted = _proof(out, base, prefixes.wanted(out, run, setting.report["shared_prefixes"]))
        forward = forwards.prepare(base.model, trusted, base.own_attention, tuning.head)
        switch, not_compiled = engine.compiled_blocks(run, base.model)  # inside of what computes a block again
        told = not_compiled + recompute.place(base.model, run.train.recompute, (ladder := rung(out, setting.memory))["first_blocks"])
        head = _trained_head(forward, tuning)
        optimizer = optimizer_of(run, forward, tuning, head)
        plan = setting.plan.behind(slots.virtual_ids(base.model))
        plan = plan if forward.packed else plan.alone()
        sharing = prefixes.decided(out, run, setting.report["shared_prefixes"], plan, trusted, forward, tuning.parameters)
        plan = sharing.plan
        progress, clock = Progress(), Clock()
        if last is not None and last.trained:
            optimizer.restore(last.optimizer)
            progress, clock = last.progress, last.clock
        last = None  # its tensors have been copied
        faster = accelerations.decided(out, run, forward, tuning, first := plan.rows(0)[0], engine.others(switch, setting.dtype))
        engine.settle(switch)
        eighths, told_of_fp8 = engine.eighths(out, run, forward, tuning, first, progress.step)
        longest = run.data.max_length if run.data.stream else int(setting.documents.lengths_D.max())
        record, told_of_graphs = engine.recordings(
            out, run, forward, tuning, plan.rows(0), plan.row_tokens, longest + len(slots.virtual_ids(base.model))
        )
        told += told_of_graphs
        proved = {key: [*names, *record[key]] for key, names in faster.record.items()}
        decisions = {"prefixes": sharing.record, "accelerations": proved, "recompute": ladder} | engine.kept(out)
        folder.write_json(out / folder.PLAN, figures.plan_json(setting, tuning, trusted) | decisions)
        yield figures.started(setting, out, base, tuning, plan)
        for note in dict.fromkeys([*base.notes, *setting.notes, *trusted.failures, *forward.notes, *told, *faster.warnings, *told_of_fp8]):
            yield events.Warned(message=note, step=progress.step)

        def save() -> Path:
            if (known := plan.report()) is not None:
                folder.write_json(out / folder.DATA, setting.report | known)
            return _save(out, setting, base, tuning, optimizer, progress, figures.with_sitting(clock, sitting.seconds()))

        saved = progress.step
        while progress.step < setting.steps:
            # one optimizer step: the mean loss over all its learned tokens, row by row
            step, begun = progress.step, Stopwatch()
            try:
                rows = plan.rows(step)
            except UserError:  # rows that were tokenised while the run was on its way
                if saved < step:
                    save()
                raise
            must_be_one_row(run, rows)
            every = list(flat(rows))
            tokens, computed = sum(row.tokens for row in every), sum(row.computed_tokens for row in every)
            learned = sum(len(row.targets_N) for row in every)
            _seed(run.train.seed, step + 1)  # dropout is a function of seed and step, so that a resumed run repeats it
            tuning.train()
            weight = sum(forward.weight(row) for row in every) or 1.0
            rate = learning_rate(step, setting.steps, run.train.learning_rate, run.train.schedule, run.train.warmup)
            optimizer.begin(step, rate)
            losses = [_learn(forward, optimizer, head, row, 1 / weight) for row in rows]
            tuning.train(False)
            norm = optimizer.clip(run.train.clip)
            loss, norm = torch.stack([torch.stack(losses).sum(), norm.to(losses[0].device)]).tolist()  # the one wait for the device
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite:
                optimizer.step(rate)
            else:
                optimizer.forget()
                what = f"step {step + 1}: {nonfinite.explain(plan.step_documents(step), forward, rows, losses)}"
                yield events.Warned(message=what, step=step + 1)
                if run.train.on_nonfinite == "stop":
                    if saved < step and optimizer.undoes:
                        save()
                    raise UserError(what, *_after_nonfinite(out, step if optimizer.undoes else saved))

            progress.step += 1
            progress.tokens += tokens
            progress.computed_tokens += computed
            progress.learned_tokens += learned
            figures.count(clock, progress, tokens, begun.seconds(), sitting.seconds())
            yield events.Step(
                step=progress.step,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens=tokens,
                computed_tokens=computed,
                learned_tokens=learned,
                tokens_per_second=figures.speed(clock, progress),
                peak_memory_bytes=memory.mark() if progress.step == 1 else memory.peak_bytes,
                skipped=not finite,
            )

            ended, code, pause = progress.step == setting.steps, stop(), Stopwatch()
            if eighths is not None and (why := engine.left_fp8(out, eighths, forward, first, progress.step)):
                eighths = None
                yield events.Warned(message=why, step=progress.step)
            if setting.evaluation is not None and (progress.step % run.evaluate.every == 0 or ended):
                evaluated = _evaluate(forward, setting, progress, plan.share)
                if evaluated.best:
                    weights.write(out / "best", base, tuning, setting)
                yield evaluated
            if progress.step % run.train.checkpoint_every == 0 or ended or code:
                writing, path = Stopwatch(), save()
                saved = progress.step
                yield events.Saved(step=progress.step, path=str(path.relative_to(out)), seconds=writing.seconds())
            clock.seconds_after_first += pause.seconds()
            if code and not ended:
                if not tuning.adapter:
                    weights.write(out / weights.KIND[False], base, tuning, setting)
                raise Interrupted(code, f"stopped after step {progress.step}; go on with `tunesmith resume {out}`")

        if (known := plan.report(ended_after=progress.step)) is not None:
            folder.write_json(out / folder.DATA, {key: value for key, value in (setting.report | known).items() if key != "provisional"})
        weights.write(out / weights.KIND[bool(tuning.adapter)], base, tuning, setting)
        finished = figures.finished(out, progress, figures.with_sitting(clock, sitting.seconds()), memory.mark())
    report.write(out, run, finished)
    yield finished


def _tuning(run: Run, base: Base, setting: Setting, kept: dict[str, torch.Tensor], where: str) -> Tuning:
    """What is trained: with the values that a checkpoint kept, those of the adapter to go on from, or the method's first ones."""

    def dense(path: str) -> torch.Tensor:
        return matrix(base.folder, path, base.model)

    if run.model.adapter is not None:
        tuning = adapter_to_go_on_from(run, base.model, setting.device)
    else:
        tuning = method.build(base.model, run.method, quantized=base.quantized, device=setting.device)
    brought = tuning.head
    setting.asked.give_head(base.model, tuning, setting.documents, run, setting.device)
    if kept:
        method.restore(tuning, kept, where)
    elif run.model.adapter is None:
        method.begin(tuning, Start(base.model, base.tokenizer, run.train.seed, dense, sentence(run.task)), run.method)
    elif tuning.head is not None and brought is None:
        tuning.head.begin(run.train.seed)
    method.settle(base.model, tuning, dense)
    return tuning


def _learn(forward: Forward, optimizer: AnyOptimizer, head: str | None, row: Row, scale: float) -> torch.Tensor:
    """Forward and backward of one row and those behind it; gradients are added up. The row's share of the step's loss, not waited for."""
    return forward.learn(row, scale, optimizer.gradient_of(head) if head else None, optimizer.gather)


def _trained_head(forward: Forward, tuning: Tuning) -> str | None:
    """The name of the head's matrix where it is trained and our loss makes its gradient; tied, it is the embedding's."""
    if forward.head is None:
        return None
    return next((name for name, parameter in tuning.parameters.items() if parameter is forward.head.weight_VC), None)


def _proof(out: Path, base: Base, share: bool) -> proof.Proof:
    """Proved anew at every start; a resumed run keeps the decisions that it began with."""
    prefix = bool(slots.prefix(base.model))
    found = proof.prove(base.model.config, type(base.model), base.own_attention, prefix, share)
    if not (out / folder.PLAN).exists():
        return found
    kept = folder.read_json(out / folder.PLAN)
    if (kept["packed"] and not found.packed) or (kept["own_head"] and not found.own_head):
        raise UserError("what this run began with no longer holds for this architecture:", *found.failures)
    return proof.Proof(kept["own_head"], kept["packed"], found.failures, found.behind_prefix, found.shared)


def _evaluate(forward: Forward, setting: Setting, progress: Progress, share: bool) -> events.Evaluated:
    """The loss of the evaluation rows now; `progress` remembers the best."""
    assert setting.evaluation is not None
    packed = forward.packed and setting.run.data.pack
    plan = Plan(setting.evaluation, setting.evaluation.tokens, setting.plan.row_tokens, 0, packed, slots.virtual_ids(forward.model))
    loss, learned = forward.mean_loss(plan.shared(share).rows(0))
    best = math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss)
    if best:
        progress.best_loss, progress.best_step = loss, progress.step
    return events.Evaluated(step=progress.step, loss=loss, learned_tokens=learned, best=best)


def _save(out: Path, setting: Setting, base: Base, tuning: Tuning, optimizer: AnyOptimizer, progress: Progress, clock: Clock) -> Path:
    """A checkpoint, and for an adapter (small) its folder as of now, so that a killed run can be chatted with."""
    checkpoint.flush_file(out / folder.EVENTS)  # after a power cut no checkpoint may know of a step that the log has lost
    path = checkpoint.save(out, Checkpoint(method.state(tuning), optimizer.state(), progress, clock), setting.run.train.keep)
    if tuning.adapter and progress.step < setting.steps:
        weights.write(out / weights.KIND[True], base, tuning, setting)
    return path


def _same_data(out: Path, setting: Setting) -> None:
    """Raises UserError where the tokens to learn from, or those evaluated on, are not what the run began with."""
    kept = folder.read_json(out / folder.DATA)
    for what, now, then in (
        ("data", setting.report, kept),
        ("evaluation data", setting.report.get("evaluation") or {}, kept.get("evaluation") or {}),
    ):
        if any(now.get(key) != then.get(key) for key in ("mask_sha256", "stream_sha256")):
            raise UserError(
                f"{out}: the {what}, the chat template or the tokenizer is no longer what the run began with, so it cannot go on exactly; "
                "nothing was changed",
                "put the old files back, or begin a new run (model.adapter goes on from this one's adapter)",
            )


def _same_base(out: Path, setting: Setting) -> None:
    """Raises UserError where the base model under the run's name holds other weights than the run began with."""
    then = folder.read_json(out / folder.PLAN).get("base") if (out / folder.PLAN).exists() else None
    if then and (why := difference(then, fingerprint(setting.located.folder), limit=0)):
        raise UserError(
            f"{out}: {setting.run.model.source} is no longer the model that the run began with: {why}; nothing was changed",
            "put the old model back, or begin a new run",
        )


def _after_nonfinite(out: Path, step: int) -> list[str]:
    """What can be done once a run has stopped at a loss that is not finite."""
    return [
        f"{out} stands after step {step}; set on_nonfinite: skip in {out / folder.RUN} and resume to leave such steps out,",
        "or begin a new run with those rows mended or a lower train.learning_rate",
    ]


def _seed(seed: int, step: int) -> None:
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    random.seed(mixed)
    torch.manual_seed(mixed)


def _with(run: Run, section: str, key: str, value: Any) -> dict[str, Any]:
    values = run.model_dump()
    values[section][key] = value
    return values
