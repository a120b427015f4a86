"""Scores of a model on data it was not trained on, next to another model's where asked."""

import argparse
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.run_yaml import parse_value

HELP = "loss, exact match, JSON fields, accuracy of a run, an adapter or a base model on data"
SETTINGS = ("data.format", "data.columns", "data.prompt", "data.on_bad_row")
METRICS = "loss, exact_match, json_valid, json_fields, entity_f1, accuracy, macro_f1, contains, chrf"
WITHOUT_ADAPTER = "\0"  # no source is called that


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR|M", help="run folder, adapter folder or base model")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help=f"how the data is read: {', '.join(SETTINGS)}")
    parser.add_argument("--data", metavar="D", help="file, folder, glob, PATH#500 or builtin:NAME; by default the run's data.test")
    parser.add_argument("--metrics", metavar="A,B", help=METRICS)
    parser.add_argument("--against", metavar="M", help="a second model beside it; `base` is the same one without its adapter")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer; by default twice the longest reference")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Prints the scores; a run folder also gets `scores.json` and `predictions.jsonl`."""
    folder = Path(arguments.model)
    run = config.load(folder / "run.yaml").run if (folder / "run.yaml").is_file() else None
    source, samples = _samples(arguments, run)  # before the model: wrong data should not cost its loading time

    from tunesmith.tuned import open_tuned

    tuned = open_tuned(arguments.model)
    metrics, other = _metrics(arguments, run), _other(arguments, tuned)
    new = _evaluate(arguments, tuned, samples, metrics, labels := _words(run))
    old = None
    if other == WITHOUT_ADAPTER:
        with tuned.without_adapter():
            old = _evaluate(arguments, tuned, samples, metrics, labels, arguments.against)
    elif other:
        head = tuned.head
        del tuned  # two models at once might not fit
        old = _evaluate(arguments, _same_kind(open_tuned(other), head, other), samples, metrics, labels, arguments.against)
    result = report(source, samples, new, old)
    if run is not None:
        _write(folder, result, new, old)
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _show(result, new, folder if run is not None else None)
    return 0


def report(source: Any, samples: list[Any], new: Any, old: Any = None) -> dict[str, Any]:
    """What `scores.json` holds: how it was measured, the scores, and with a second model the paired difference."""
    from tunesmith.evaluate.scored import difference

    result = {
        "command": ["tunesmith", *sys.argv[1:]],
        "data": {"source": source, "rows": len(samples), "sha256": fingerprint(samples)},
        **_scores(new),
    }
    if old is not None:
        result["against"] = _scores(old)
        result["difference"] = {}
        for name, scored in new.scored.items():
            value, (low, high) = difference(scored, old.scored[name])
            result["difference"][name] = {"value": value, "interval": [low, high]}
    return result


def fingerprint(samples: list[Any]) -> str:
    """SHA-256 of what the rows say, wherever the file lies and whatever its shape."""
    digest = hashlib.sha256()
    for sample in samples:
        content = [sample.messages, sample.tools, sample.text]
        digest.update(json.dumps(content, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _samples(arguments: argparse.Namespace, run: config.Run | None) -> tuple[Any, list[Any]]:
    source = arguments.data or (run.data.test if run else None)
    if not source:
        raise UserError("there is no data to evaluate on: give --data FILE" + (", or train with data.test=FILE" if run else ""))
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit: at least 1, not {arguments.limit}")
    settings = _data_settings(arguments, run)
    from tunesmith.data.sources import load_samples

    samples, _ = load_samples(source, on_bad_row=settings.on_bad_row, info=settings.info, **settings.reading)
    return source, samples[: arguments.limit]


def _data_settings(arguments: argparse.Namespace, run: config.Run | None) -> config.Data:
    """The run's columns and prompt template, since its test data has their shape, with KEY=VALUE over them."""
    inherited = [("data.columns", run.data.columns, "run.yaml"), ("data.prompt", run.data.prompt, "run.yaml")] if run else []
    given, problems = [], []
    for text in arguments.settings:
        key, sign, value = text.partition("=")
        if not sign or key not in SETTINGS:
            problems.append(f"{text}: `evaluate` takes {', '.join(name + '=VALUE' for name in SETTINGS)}")
        else:
            given.append((key, parse_value(value), text))
    if problems:
        raise UserError(*problems)
    return config.load(overrides=inherited + given).run.data


def _metrics(arguments: argparse.Namespace, run: config.Run | None) -> Any:
    if arguments.metrics:
        return [name.strip() for name in arguments.metrics.strip("[]").split(",") if name.strip()]
    return run.evaluate.metrics if run else "auto"


def _words(run: config.Run | None) -> tuple[str, ...]:
    """The labels among which a run answers that learned their words; both models of a comparison answer so."""
    if run is None or run.task.name != "classify" or run.task.head != "words" or run.task.labels == "auto":
        return ()
    return tuple(run.task.labels)


def _other(arguments: argparse.Namespace, tuned: Any) -> str | None:
    """The source of the model to compare with, or WITHOUT_ADAPTER; None where nothing is compared."""
    if arguments.against != "base":
        return arguments.against
    if tuned.head is not None:
        raise UserError(
            f"--against base: {arguments.model} predicts with the head that it learned, and its base has none to compare with; "
            "name another run of the same task, such as one of fewer steps or of another method"
        )
    if tuned.has_adapter:
        return WITHOUT_ADAPTER
    if tuned.run is not None and tuned.run.model.source:  # full tuning: the base is another set of weights
        return tuned.run.model.source
    raise UserError(f"--against base: {arguments.model} is a base model itself; name another model")


def _same_kind(other: Any, head: Any, name: str) -> Any:
    """The second model. Raises UserError where one has a head and the other has not, or another one."""
    mine, theirs = ("a model that writes" if each is None else f"a run of task.name={each.task}" for each in (head, other.head))
    if mine != theirs:
        raise UserError(f"--against {name}: it is {theirs}, and what it is compared with is {mine}; their scores mean different things")
    return other


def _evaluate(
    arguments: argparse.Namespace, tuned: Any, samples: list[Any], metrics: Any, labels: tuple[str, ...], name: str | None = None
) -> Any:
    import dataclasses

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tunesmith.evaluate.evaluate import evaluate
    from tunesmith.generate import Sampling

    sampling = Sampling(max_new_tokens=arguments.max_new_tokens) if arguments.max_new_tokens is not None else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"answers of {name or tuned.name}", total=len(samples))
        result = evaluate(
            tuned,
            samples,
            metrics=metrics,
            sampling=sampling,
            labels=labels,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return dataclasses.replace(result, model=name) if name else result


def _scores(evaluation: Any) -> dict[str, Any]:
    told = evaluation.confusion
    table = {} if told is None else {"confusion": {"labels": list(told.labels), "matrix": told.counts_LL, "other": told.other_L}}
    return {
        "model": evaluation.model,
        # JSON has no word for a loss that is not finite
        "scores": {name: value if math.isfinite(value) else None for name, value in evaluation.scores.items()},
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "answers": len(evaluation.rows),
        "unfinished": evaluation.unfinished,
        "learned_tokens": evaluation.learned_tokens,
        **table,  # rows: what was expected; columns: what was predicted
    }


def _write(folder: Path, result: dict[str, Any], new: Any, old: Any) -> None:
    from tunesmith.evaluate.evaluation import record

    lines = [record(row) for row in new.rows]
    for line, row in zip(lines, old.rows if old else [], strict=False):
        line["against"] = {"prediction": row.prediction, "scores": row.scores}
    _replace(folder / "scores.json", json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    _replace(folder / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".new")
    try:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _show(result: dict[str, Any], new: Any, folder: Path | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, against = Console(), result.get("against")
    table = Table(title=escape(f"{result['data']['rows']} rows of {result['data']['source']}"), title_justify="left")
    table.add_column("")
    for side in [against, result] if against else [result]:
        table.add_column(escape(side["model"]), justify="right")
    if against:
        table.add_column("difference", justify="right")
    for name in (name for name in new.scores if name.count(".") < 2):  # a type's precision and recall are in scores.json
        cells = [_cell(side, name) for side in ([against, result] if against else [result])]
        if against:
            paired = result["difference"].get(name)
            cells.append(f"{100 * paired['value']:+.1f} ({_span(paired['interval'], '+.1f')})" if paired else "")
        table.add_row(name, *cells)
    console.print(table)
    if new.confusion is not None and new.confusion.is_small:
        console.print(_confusion(new.confusion))
    for side in [against, result] if against else [result]:
        if side["unfinished"]:
            console.print(
                f"{escape(side['model'])}: {side['unfinished']} of {side['answers']} answers were cut at the limit of tokens",
                highlight=False,
            )
    if folder:
        console.print(
            f"scores: {escape(str(folder / 'scores.json'))}\nanswers: {escape(str(folder / 'predictions.jsonl'))}", highlight=False
        )


def _confusion(told: Any) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    others = any(told.other_L)
    for name in ["expected \\ predicted", *map(escape, told.labels), *(["other"] if others else [])]:
        table.add_column(name, justify="right")
    for name, counts_L, other in zip(told.labels, told.counts_LL, told.other_L, strict=True):
        table.add_row(escape(name), *map(str, counts_L), *([str(other)] if others else []))
    return table


def _cell(side: dict[str, Any], name: str) -> str:
    value = side["scores"][name]
    if value is None:
        return "not finite"
    if name in ("loss", "perplexity"):
        return f"{value:.4g}"
    span = side["intervals"].get(name)
    return f"{100 * value:.1f} %" + (f" ({_span(span, '.1f')})" if span else "")


def _span(ends: list[float], spec: str) -> str:
    low, high = (format(100 * end, spec) for end in ends)
    return f"{low} to {high}"
