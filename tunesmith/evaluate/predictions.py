"""Scores of a run with a head: labels of texts, or entities of their words, without a word being generated."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from tunesmith.data.formats.conll import by_type
from tunesmith.data.rendering.labelled import LabelledDocument
from tunesmith.data.sample import Sample
from tunesmith.errors import UserError
from tunesmith.evaluate.confusion import confusion
from tunesmith.evaluate.evaluation import LOSS, Answered, Evaluation, likeliest
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.predict import Predicted, predict
from tunesmith.evaluate.rows import usable
from tunesmith.evaluate.scored import interval
from tunesmith.models.score import Score
from tunesmith.tasks import TASKS, tag

CONFUSION = "confusion"  # a table, not a number; it comes with the accuracy
SUITED = {"classify": (LOSS, "accuracy", "macro_f1", "exact_match", CONFUSION), "tag": (LOSS, "entity_f1")}


def evaluate(
    tuned: Any,
    samples: Sequence[Sample],
    metrics: list[str] | Literal["auto"],
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score `tuned`, which has a head. The loss is the mean over labels, each counted once whatever weights training gave it.

    Raises UserError for metrics that say nothing of labels, for no samples, and for rows without a label that the head knows.
    """
    head = tuned.head
    names = choose(metrics, head.task)
    if not samples:
        raise UserError("there are no rows to evaluate on")
    rendered = usable(samples, tuned.renderer.documents_of(samples), f"a run of task.name={head.task} cannot be scored on these rows")
    documents: list[LabelledDocument] = [document for [document] in rendered]
    found = predict(tuned, [document.fed for document in documents], on_progress=on_progress)
    row_of, compared = (_classified, _labels) if head.task == "classify" else (_tagged, _entities)
    rows = [row_of(head, *each) for each in zip(samples, documents, found, strict=True)]
    ours, theirs = zip(*[compared(*each) for each in zip(samples, documents, found, rows, strict=True)], strict=True)
    scored = {name: METRICS[name].score(list(ours), list(theirs)) for name in names if name in METRICS}
    scores = {LOSS: _loss(documents, found)} if LOSS in names else {}
    for name, result in scored.items():
        scores[name] = result.value
        if name != "accuracy":  # a head has no answers that are none of its labels
            scores |= {f"{name}.{part}": value for part, value in result.also.items()}
        for row, value in zip(rows, result.per_row, strict=True):
            row.scores[name] = value
    told = None
    if {"accuracy", CONFUSION} & {*names}:
        told = confusion([row.prediction for row in rows], [row.reference for row in rows], head.labels)
    count = sum(len(document.targets) for document in documents) if LOSS in names else 0
    return Evaluation(tuned.name, scores, {name: interval(each) for name, each in scored.items()}, rows, scored, count, 0, told)


def choose(metrics: list[str] | Literal["auto"], task: str) -> list[str]:
    """The metrics' names. Raises UserError for those that are not of the task."""
    if metrics == "auto":
        return [LOSS, *TASKS[task].METRICS]
    if strange := [name for name in metrics if name not in SUITED[task]]:
        raise UserError(f"{', '.join(strange)}: a run of task.name={task} is scored by {', '.join(SUITED[task])}")
    return list(dict.fromkeys(metrics))


def _loss(documents: Sequence[LabelledDocument], found: Sequence[Predicted]) -> float:
    """Mean over all labels, in nats."""
    total, count = 0.0, 0
    for document, predicted in zip(documents, found, strict=True):
        total -= predicted.logp_PL[range(len(document.targets)), list(document.targets)].sum(dtype=torch.float64).item()
        count += len(document.targets)
    return total / max(count, 1)


def _classified(head: Score, sample: Sample, document: LabelledDocument, found: Predicted) -> Answered:
    [target], probabilities = document.targets, likeliest(head.labels, found.logp_PL[0])
    return Answered(
        sample.origin, document.fed.source, head.labels[target], next(iter(probabilities)), {}, True, probabilities=probabilities
    )


def _labels(sample: Sample, document: LabelledDocument, found: Predicted, row: Answered) -> tuple[str, str]:
    """By number: two labels may differ in the case of a letter alone, which the metrics overlook."""
    [ours], [theirs] = found.numbers, document.targets
    return str(ours), str(theirs)


def _tagged(head: Score, sample: Sample, document: LabelledDocument, found: Predicted) -> Answered:
    fed = document.fed
    tagged = tag.decode(head.labels, fed, found.numbers)
    expected = by_type((kind, fed.source[start:end]) for start, end, kind in sorted(sample.entities or ()))
    return Answered(sample.origin, fed.source, expected, tagged.json(fed.source), {}, True, entities=tagged.entities)


def _entities(sample: Sample, document: LabelledDocument, found: Predicted, row: Answered) -> tuple[str, str]:
    """By their places, and those of the row as they are marked, whether one tag a word can say them or not."""
    return json.dumps(row.entities), json.dumps(sample.entities or ())
