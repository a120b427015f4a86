"""The report on files of examples: what can be used, what cannot and why, and what an attentive reader would notice.

The rows are understood exactly as training understands them; only rows of no known shape are tried with the likeliest
`data.columns`, which is said. Each file is read once, row after row; what is kept of a row takes about 40 bytes.
"""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.files.recognise import Unreadable
from tunesmith.data.look import duplicates, labels
from tunesmith.data.look.beginnings import Begun
from tunesmith.data.look.duplicates import Digests
from tunesmith.data.look.labels import Answers
from tunesmith.data.look.lengths import Lengths, Limit, Measure, estimated, words
from tunesmith.data.look.places import Finding
from tunesmith.data.look.traces import Find, Traces
from tunesmith.data.names.resolve import File, resolve
from tunesmith.data.sample import BadRow, FileReport, RowError, Sample
from tunesmith.data.sources import Reading, read_samples
from tunesmith.errors import UserError

BATCH = 64  # rows measured together
TOP = 200  # labels in the JSON document

Progress = Callable[[File, int, int], None]  # file, line that was reached, rows so far


@dataclass(slots=True)
class Checked:
    """One file's report, and what was found beyond it."""

    report: FileReport
    lengths: Lengths
    answers: Answers = field(default_factory=Answers)
    traces: Traces = field(default_factory=Traces)
    begun: Begun = field(default_factory=Begun)
    kinds: Counter[str] = field(default_factory=Counter)  # conversations, texts, preference pairs, judged answers
    unrendered: list[BadRow] = field(default_factory=list)  # rows that the model's chat template cannot write
    findings: list[Finding] = field(default_factory=list)
    repeats: duplicates.Repeats | None = None

    @property
    def labels(self) -> Counter[str]:
        return self.answers.labels(self.report.format == "labels")

    def warnings(self, most: int | None = None) -> list[str]:
        """All that is worth saying, in sentences; with `most`, each names no more runs of lines than that."""
        return self.report.warnings + [finding.said(most) for finding in self.findings]


def check(
    sources: list[str],
    reading: Reading | None = None,
    limit: Limit | None = None,
    *,
    info: str = "auto",
    measure: Measure | None = None,
    special: Find | None = None,
    progress: Progress | None = None,
) -> list[Checked]:
    """A report on each file of each source, in order. A file that does not exist is reported like one that is broken.

    `info` is `data.info`. `measure` counts tokens, in place of the estimate; `special` finds a tokenizer's special tokens in a text.
    """
    reading = reading or Reading(guess=True)
    limit = limit or Limit()
    digests = Digests()
    found: list[Checked] = []
    for source in sources:
        try:
            resolved = resolve(source, info)
        except UserError as error:
            bad = [BadRow(source, 0, problem.removeprefix(f"{source}: ")) for problem in error.problems]
            found.append(Checked(FileReport(source, bad=bad), Lengths(limit, measure is not None)))
            digests.begin(source)
            continue
        for file in resolved.files:
            checked = Checked(FileReport(file.name), Lengths(limit, measure is not None), traces=Traces(special))
            digests.begin(file.name)
            _read(file, reading, checked, digests, measure or estimated, progress)
            if resolved.rows is not None:
                checked.report.warnings.append(f"every row was looked at; {source} takes {resolved.rows:,} of the source's rows")
            found.append(checked)
    for checked, repeats in zip(found, duplicates.find(digests), strict=True):
        checked.repeats = repeats
        checked.findings = _findings(checked, repeats)
    return found


def as_json(found: list[Checked]) -> str:
    """One JSON document: [{file, rows, good, bad: [{line, reason}], warnings, format, encoding, ...}]. Line 0 is the whole file."""
    return json.dumps([_document(checked) for checked in found], ensure_ascii=False, indent=1)


def _document(checked: Checked) -> dict[str, Any]:
    assert checked.repeats is not None
    document: dict[str, Any] = dataclasses.asdict(checked.report)
    document["bad"] = [{"line": row.line, "reason": row.reason} for row in checked.report.bad]
    document["warnings"] = checked.warnings()
    document["kinds"] = dict(checked.kinds)
    document |= checked.lengths.as_json() | duplicates.as_json(checked.repeats)
    document["labels"] = dict(checked.labels.most_common(TOP))
    document["beginnings"] = checked.begun.as_json()
    document["text"] = checked.traces.as_json()
    return document


def _read(file: File, reading: Reading, checked: Checked, digests: Digests, measure: Measure, progress: Progress | None) -> None:
    """Fill `checked` with all that one pass over the file shows."""
    report = checked.report
    broken = None
    rows = _numbered(file, reading, report)
    try:
        while batch := list(itertools.islice(rows, BATCH)):
            _take(batch, checked, digests, measure)
            if progress is not None:
                progress(file, batch[-1][1], batch[-1][0])
    except Unreadable as error:
        broken = BadRow(file.name, error.line, error.reason)
    unusable = checked.lengths.hopeless + checked.unrendered
    report.good -= len(unusable)
    report.bad += unusable + ([broken] if broken else [])
    report.bad.sort(key=lambda row: row.line)


def _numbered(file: File, reading: Reading, report: FileReport) -> Iterator[tuple[int, int, Sample]]:
    """(number of the row in its file, line, sample)."""
    for sample in read_samples(file, reading, report):
        yield report.good + len(report.bad), int(sample.origin.rpartition(":")[2]), sample


def _take(batch: list[tuple[int, int, Sample]], checked: Checked, digests: Digests, measure: Measure) -> None:
    for (row, line, sample), length in zip(batch, measure([sample for _, _, sample in batch]), strict=True):
        if isinstance(length, RowError):
            checked.unrendered.append(BadRow(checked.report.file, line, str(length)))
            continue
        checked.lengths.add(row, line, sample, length)
        checked.begun.add(sample)
        digests.add(row, line, sample)
        last = sample.messages[-1] if sample.messages else {"content": ""}
        text = sample.text or "\n".join(map(words, sample.messages + sample.rejected))
        checked.traces.add(row, line, sample, text, last["content"])
        checked.answers.add(row, line, None if not sample.messages or "tool_calls" in last else last["content"])
        checked.kinds[_kind(sample)] += 1


def _kind(sample: Sample) -> str:
    if sample.text is not None:
        return "texts"
    if sample.rejected:
        return "preference pairs"
    if sample.desirable is not None:
        return "answers judged good" if sample.desirable else "answers judged bad"
    return "conversations"


def _findings(checked: Checked, repeats: duplicates.Repeats) -> list[Finding]:
    said = []
    special = {kind: number for kind, number in checked.kinds.items() if kind not in ("texts", "conversations")}
    if special:
        what = ", ".join(f"{number:,} {kind}" for kind, number in special.items())
        said.append(Finding(f"preference data: {what}; read and checked, this version does not train on preferences"))
    return [
        *said,
        *duplicates.findings(repeats),
        *labels.findings(checked.answers, checked.report.format == "labels"),
        *checked.lengths.findings(),
        *checked.traces.findings(),
    ]
