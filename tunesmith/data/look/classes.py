"""What a head is to tell apart: the labels of texts, or the types of entities, with what is worth saying of them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.data.look.labels import NAMED, Answers, alike, findings
from tunesmith.data.look.places import count
from tunesmith.data.rendering.labelled import UNMARKED, label_of
from tunesmith.data.sample import RowError, Sample
from tunesmith.errors import UserError

MOST = 1000  # different answers, where nothing but their length says that they may be labels
NO_LABEL = "no row has a label; say which columns are the text and the label, as the file names them: data.columns={text: ..., label: ...}"
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
SCHEMES = ("IOB1", "IOB2", "BIOES", "BILOU", "BMES")


@dataclass(frozen=True, slots=True)
class Found:
    """Labels or types in order: by their letters, numbers by their size. `counts`: rows of each, or entities."""

    labels: list[str]
    counts: dict[str, int]
    notes: list[str]


def labels_of(samples: Iterable[Sample]) -> Found:
    """The labels of texts. Raises UserError where there are none, only one, or answers that are none."""
    counts, named, reason = Counter[str](), 0, ""
    for rows, sample in enumerate(samples, start=1):
        try:
            counts[label_of(sample)] += 1
        except RowError as error:  # whoever renders the row refuses it, or leaves it out
            reason = reason or f"{sample.origin}: {error}"
        named += sample.label is not None
        if not named and len(counts) > MOST and len(counts) > rows / 2:
            raise UserError(
                f"task.name=classify: the answers are no labels, {len(counts):,} different ones in the first {rows:,} rows",
                "task.name=generate learns answers as they are; labels have a column of their own: data.columns={text: ..., label: ...}",
            )
    if len(counts) < 2:
        only = f"every row has the label {next(iter(counts))!r}: there is nothing to tell apart" if counts else NO_LABEL
        raise UserError(f"task.name=classify: {only}", *([reason] if reason else []))
    told = Answers(rows=counts.total(), counts=counts)
    return Found(in_order(counts), _sorted(counts), [finding.said() for finding in findings(told, known=True)])


def types_of(samples: Iterable[Sample]) -> Found:
    """The types of marked entities, and how their tags were written. Raises UserError where there are none."""
    counts, schemes, rows, without, reason = Counter[str](), Counter[str](), 0, 0, ""
    for sample in samples:
        if sample.entities is None:
            reason = reason or f"{sample.origin}: {UNMARKED}"
            continue
        rows += 1
        without += not sample.entities
        counts.update(kind for _, _, kind in sample.entities)
        schemes[sample.scheme] += 1
    if not counts:
        none = f"no entity is marked in {count(rows, 'row')}" if rows else "no row has marked entities"
        raise UserError(f"task.name=tag: {none}", *([reason] if reason else []))
    shown = ", ".join(f"{kind} {number:,}" for kind, number in counts.most_common(NAMED)) + (" ..." if len(counts) > NAMED else "")
    notes = [f"entities of {count(len(counts), 'type')}: {shown}; {without:,} of {rows:,} rows have none"]
    notes += _schemes(schemes)
    for group in alike(counts):
        how = ", ".join(f"{kind!r} {counts[kind]:,}" for kind in group)
        notes.append(f"types that differ in case, spaces, width or end punctuation only, each learned as a type of its own: {how}")
    return Found(in_order(counts), _sorted(counts), notes)


def in_order(labels: Iterable[str]) -> list[str]:
    """By their letters; where all are numbers by their size."""
    every = list(labels)
    numbers = all(NUMBER.fullmatch(label) for label in every)
    return sorted(every, key=lambda label: (float(label), label)) if numbers else sorted(every)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {label: counts[label] for label in in_order(counts)}


def _schemes(counts: Counter[str]) -> list[str]:
    """How tags are written. Where some sentences are IOB2 beyond doubt, those that look like IOB1 are mistakes in it."""
    found = {scheme: counts[scheme] for scheme in SCHEMES if counts[scheme]}
    wrong = found.pop("IOB1", 0) if "IOB2" in found else 0
    if not found:
        return []
    more = f" ({count(wrong, 'sentence')} in which an entity begins with I-)" if wrong else ""
    if len(found) == 1:
        return [f"the tags are {next(iter(found))}{more}; they are learned as BIO"]
    each = ", ".join(f"{scheme} in {count(number, 'sentence')}" for scheme, number in found.items())
    return [f"the tags are of several schemes: {each}{more}; they are learned as BIO"]
