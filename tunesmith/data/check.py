"""The report on files of examples: what can be used, what cannot and why, and what an attentive reader would notice.

The rows are understood exactly as training understands them; only rows of no known shape are tried with the likeliest
`data.columns`, which is said.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter, defaultdict
from typing import Any

from tunesmith.data.encoding import unmangle
from tunesmith.data.recognise import Unreadable
from tunesmith.data.resolve import File, resolve
from tunesmith.data.sample import BadRow, FileReport, Sample
from tunesmith.data.sources import Reading, load_file
from tunesmith.errors import UserError

LONG = 20_000  # characters of a row; about 5,000 tokens of English
SHORT = 2  # characters of an answer that is suspicious where it is rare among long ones
RARE = 0.02  # share of the rows
LABEL = 60  # characters; longer answers are no labels
SHOWN = 5  # lines named in a warning

MANGLED = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]")
PLACEHOLDER = re.compile(r"\{\{\s*\w+\s*\}\}")

Seen = dict[bytes, tuple[str, int]]  # fingerprint of a row -> file where it stood first, and which row of it


def check(sources: list[str], reading: Reading | None = None) -> list[FileReport]:
    """A report on each file of each source, in order. A file that does not exist is reported like one that is broken."""
    reading = reading or Reading(guess=True)
    seen: Seen = {}
    reports = []
    for source in sources:
        try:
            files = resolve(source).files
        except UserError as error:
            reports.append(FileReport(source, bad=[BadRow(source, 0, problem.removeprefix(f"{source}: ")) for problem in error.problems]))
            continue
        reports += [_check_file(file, reading, seen) for file in files]
    return reports


def as_json(reports: list[FileReport]) -> str:
    """One JSON document: [{file, rows, good, bad: [{line, reason}], warnings, format, encoding}]. Line 0 is the file as a whole."""
    documents = []
    for report in reports:
        document: dict[str, Any] = dataclasses.asdict(report)
        document["bad"] = [{"line": row.line, "reason": row.reason} for row in report.bad]
        documents.append(document)
    return json.dumps(documents, ensure_ascii=False, indent=1)


def _check_file(file: File, reading: Reading, seen: Seen) -> FileReport:
    report = FileReport(file.name)
    try:
        samples = load_file(file, reading, report)
    except Unreadable as error:
        report.bad.append(BadRow(file.name, error.line, error.reason))
        report.bad.sort(key=lambda row: row.line)
        return report
    lines = [int(sample.origin.rpartition(":")[2]) for sample in samples]
    report.warnings += _repeated(samples, lines, file.name, seen)
    report.warnings += _conflicting(samples, lines)
    report.warnings += _answers(samples, lines)
    report.warnings += _texts(samples, lines)
    return report


def _repeated(samples: list[Sample], lines: list[int], file: str, seen: Seen) -> list[str]:
    """Rows that stood before, in this file or in another one."""
    inside: list[int] = []
    outside: dict[str, list[int]] = defaultdict(list)
    for index, (sample, line) in enumerate(zip(samples, lines, strict=True)):
        where, first = seen.setdefault(_digest([sample.messages, sample.tools, sample.text]), (file, index))
        if where != file:
            outside[where].append(line)
        elif first != index:
            inside.append(line)
    warnings = [f"{_count(inside, 'exact duplicate')} of earlier rows: {_named(inside)}"] if inside else []
    for other, found in outside.items():
        warnings.append(f"{_count(found, 'row')} also in {other}: {_named(found)}; rows for a test must not be learned")
    return warnings


def _conflicting(samples: list[Sample], lines: list[int]) -> list[str]:
    """The same prompt with different answers."""
    first: dict[bytes, tuple[str, int]] = {}
    conflicts, pairs = [], []
    for sample, line in zip(samples, lines, strict=True):
        if sample.messages:
            answer = _answer(sample)
            earlier, earlier_line = first.setdefault(_digest([sample.messages[:-1], sample.tools]), (answer, line))
            if earlier != answer:
                conflicts.append(line)
                pairs.append(f"{line} and {earlier_line}")
    if not conflicts:
        return []
    shown = ", ".join(pairs[:SHOWN]) + (" ..." if len(pairs) > SHOWN else "")
    return [f"{_count(conflicts, 'row')} with an earlier row's prompt and another answer: lines {shown}"]


def _answers(samples: list[Sample], lines: list[int]) -> list[str]:
    """Answers that are much shorter than the others; labels that are written in several ways or stand once."""
    answers = [_answer(sample) for sample in samples if sample.messages and "tool_calls" not in sample.messages[-1]]
    if len(answers) != len(samples) or not answers:
        return []
    lengths = sorted(map(len, answers))
    warnings = []
    if lengths[len(lengths) // 2] >= 20 * SHORT:
        short = [line for answer, line in zip(answers, lines, strict=True) if len(answer.strip()) <= SHORT]
        if 0 < len(short) <= max(1, RARE * len(samples)):
            warnings.append(f"{_count(short, 'answer')} of {SHORT} characters or fewer among long ones: {_named(short)}")
    counts = Counter(answers)
    if lengths[-1] <= LABEL and len(counts) <= len(answers) / 4:
        warnings += _labels(counts)
    return warnings


def _labels(counts: Counter[str]) -> list[str]:
    shown = ", ".join(f"{label!r} {count}" for label, count in counts.most_common(10)) + (" ..." if len(counts) > 10 else "")
    warnings = [f"the answers are labels, {len(counts)} different: {shown}"]
    alike: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        alike[" ".join(label.casefold().split())].append(label)
    for group in alike.values():
        if len(group) > 1:
            warnings.append(f"labels that differ in case or spaces only: {', '.join(map(repr, group))}")
    if once := [label for label, count in counts.items() if count == 1]:
        warnings.append(f"labels with one row only: {', '.join(map(repr, once[:SHOWN]))}" + (" ..." if len(once) > SHOWN else ""))
    return warnings


def _texts(samples: list[Sample], lines: list[int]) -> list[str]:
    """What the texts themselves show: very long rows, text decoded wrongly once, placeholders left in."""
    long, mangled, holding = [], [], []
    longest, example, placeholders = 0, "", Counter[str]()
    for sample, line in zip(samples, lines, strict=True):
        text = _text(sample)
        if len(text) > LONG and sample.messages:
            long.append(line)
            longest = max(longest, len(text))
        if MANGLED.search(text) and any(unmangle(part) for part in text.split("\n") if MANGLED.search(part)):
            mangled.append(line)
            example = example or MANGLED.findall(text)[0]
        if found := PLACEHOLDER.findall(_answer(sample)):
            holding.append(line)
            placeholders.update(found)
    warnings = []
    if long:
        warnings.append(
            f"{_count(long, 'row')} over {LONG:,} characters (longest {longest:,}): {_named(long)}; "
            "data.on_overlength says what happens past data.max_length"
        )
    if mangled:
        warnings.append(f"{_count(mangled, 'row')} of mangled text (UTF-8 once read as Latin-1, such as {example!r}): {_named(mangled)}")
    if holding:
        names = ", ".join(list(placeholders)[:SHOWN])
        warnings.append(f"{_count(holding, 'answer')} with a placeholder ({names}), which would be learned as it stands: {_named(holding)}")
    return warnings


def _answer(sample: Sample) -> str:
    return sample.messages[-1]["content"] if sample.messages else ""


def _text(sample: Sample) -> str:
    return sample.text or "\n".join(message["content"] for message in sample.messages)


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).digest()[:16]


def _count(lines: list[int], noun: str) -> str:
    return f"{len(lines):,} {noun}" + ("" if len(lines) == 1 else "s")


def _named(lines: list[int]) -> str:
    return f"line{'' if len(lines) == 1 else 's'} {', '.join(map(str, lines[:SHOWN]))}" + (" ..." if len(lines) > SHOWN else "")
