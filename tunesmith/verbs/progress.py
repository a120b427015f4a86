"""A run's events as a person sees them: a live bar in a terminal, plain lines elsewhere. Written to stderr; stdout is for results."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tunesmith import config, events


def follow(happening: Iterable[events.Event]) -> events.Finished | None:
    """Draw events until they end; the last one where the run finished."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)  # a message may hold [brackets]
    reader = _Live(console) if console.is_terminal else _Plain(console)
    finished = None
    try:
        for event in happening:
            reader.show(event)
            if isinstance(event, events.Finished):
                finished = event
    finally:
        reader.close()
    return finished


def summary(finished: events.Finished, out: Path | str) -> str:
    """One line about a finished run."""
    return (
        f"{out}: {finished.steps} steps, loss {finished.loss:.4f}, {finished.tokens:,} tokens in {spell_seconds(finished.seconds)} "
        f"({finished.tokens_per_second:,.0f} tokens/s), peak memory {finished.peak_memory_bytes / 1e9:.2f} GB"
    )


def spell_seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Line:
    """The facts of one step in words, shared by both readers."""

    def __init__(self) -> None:
        self.started: events.Started | None = None

    def of(self, step: events.Step) -> str:
        parts = [f"loss {step.loss:.4f}", f"{step.tokens_per_second:,.0f} tok/s"]
        if self.started and self.started.matmul_flops:
            share = step.tokens_per_second * self.started.flops_per_token / self.started.matmul_flops
            parts.append(f"{share:.0%} of matmul rate")
        parts.append(f"{step.peak_memory_bytes / 1e9:.2f} GB")
        return "  ".join(parts)

    def opening(self, event: events.Started) -> str:
        self.started = event
        share = event.trainable_parameters / max(1, event.total_parameters)
        return (
            f"{event.run}: {event.total_steps} steps, {event.total_tokens:,} tokens; {event.trainable_parameters:,} of "
            f"{event.total_parameters:,} parameters ({share:.2%}); {event.device}, {event.threads} threads, "
            f"{event.matmul_flops / 1e9:,.0f} GFLOP/s measured"
        )


class _Live:
    def __init__(self, console: Console):
        self.console, self.line = console, _Line()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(), console=console, transient=False,
        )  # fmt: skip
        self.task: Any = None  # rich's id of the bar's line, once it is there

    def show(self, event: events.Event) -> None:
        if isinstance(event, events.Started):
            self.console.print(self.line.opening(event))
            self.bar.start()
            self.task = self.bar.add_task("training", total=event.total_steps, facts="")
        elif isinstance(event, events.Step) and self.task is not None:
            self.bar.update(self.task, completed=event.step, facts=self.line.of(event))
        elif not isinstance(event, events.Saved | events.Finished):
            self.console.print(_sentence(event))

    def close(self) -> None:
        self.bar.stop()


class _Plain:
    """At most a line every ten seconds, and the first and the last step."""

    def __init__(self, console: Console):
        self.console, self.line = console, _Line()
        self.last = float("-inf")

    def show(self, event: events.Event) -> None:
        if isinstance(event, events.Started):
            self.console.print(self.line.opening(event), soft_wrap=True)
        elif isinstance(event, events.Step):
            total = self.line.started.total_steps if self.line.started else 0
            if time.monotonic() - self.last > 10 or event.step == total:
                self.last = time.monotonic()
                self.console.print(f"step {event.step}/{total}  {self.line.of(event)}{self._left(event, total)}", soft_wrap=True)
        elif not isinstance(event, events.Saved | events.Finished):
            self.console.print(_sentence(event), soft_wrap=True)

    def _left(self, event: events.Step, total: int) -> str:
        started = self.line.started
        if not started or not event.tokens_per_second:
            return ""
        per_step = started.total_tokens / max(1, started.total_steps)
        return f"  {spell_seconds((total - event.step) * per_step / event.tokens_per_second)} left"

    def close(self) -> None:
        pass


def _sentence(event: events.Event) -> str:
    if isinstance(event, events.Warned):
        return f"! {event.message}"
    if isinstance(event, events.Evaluated):
        return f"step {event.step}: evaluation loss {event.loss:.4f}{' (best)' if event.best else ''}"
    if isinstance(event, events.Resumed):
        return f"going on after step {event.step}"
    return str(event)


def to_talk(out: str | Path) -> str:
    """The command that talks to a finished run, beside its base where there is one that answers too."""
    folder = Path(out)
    task = config.load(folder / "run.yaml").run.task
    has_head = task.name == "tag" or (task.name == "classify" and task.head == "score")
    return f"tunesmith chat {out}" + (" --compare" if (folder / "adapter").is_dir() and not has_head else "")
