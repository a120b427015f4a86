"""Rows that stand twice: in one file, in two files, but for case and punctuation, or with two answers to one question.

A row is kept as four 64-bit digests and where it stands, 40 bytes, whatever its length; they are sorted at the end. Among
a hundred million rows the chance that any two different ones share a digest is one in 4,000.
"""

import hashlib
import itertools
import json
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.data.look.lengths import words
from tunesmith.data.look.pairs import parted
from tunesmith.data.look.places import Finding, Places, count, places
from tunesmith.data.sample import Message, Sample

if TYPE_CHECKING:
    import numpy as np

# What two writings of one sentence differ in. Signs that carry meaning in code and arithmetic stay: + - * / = < > $ % # @ & ^ | ~
DROPPED = dict.fromkeys(map(ord, " \t\n\r\v\f\u3000\u200b\ufeff.,;:!?'\"`()[]{}_‘’“”„‚«»‹›…。，、；：！？「」『』《》〈〉（）【】·–—"))


@dataclass(slots=True)
class Digests:
    """What is kept of all rows of all files. Rows of one file stand together."""

    exact: array = field(default_factory=lambda: array("Q"))
    plain: array = field(default_factory=lambda: array("Q"))  # without case, spaces and punctuation
    question: array = field(default_factory=lambda: array("Q"))
    answer: array = field(default_factory=lambda: array("Q"))
    rows: array = field(default_factory=lambda: array("I"))  # number in its file, bad rows counted
    lines: array = field(default_factory=lambda: array("I"))
    files: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # of each file

    def begin(self, file: str) -> None:
        self.files.append(file)
        self.starts.append(len(self.exact))

    def add(self, row: int, line: int, sample: Sample) -> None:
        question, answer = claim(sample)
        whole = f"{question}\0{answer}"
        bare = plain(whole)
        self.exact.append(_digest(whole))
        self.plain.append(_digest(bare) if bare else self.exact[-1])
        self.question.append(_digest(question) if question else self.exact[-1])
        self.answer.append(_digest(answer))
        self.rows.append(row)
        self.lines.append(line)


@dataclass(frozen=True, slots=True)
class Repeated:
    """Rows of a file that stand earlier too: where they are, and where the earlier ones are (in `file`, for two files)."""

    here: Places
    there: Places
    file: str = ""


HOW = {
    "exact": "also in {file}",
    "alike": "also in {file}, but for case, spaces and punctuation",
    "question": "whose prompt stands in {file} too, with another answer",
}


@dataclass(frozen=True, slots=True)
class Repeats:
    """What was found in one file."""

    exact: Repeated
    alike: Repeated  # the same but for case, spaces and punctuation
    conflicts: Repeated
    leaks: tuple[tuple[str, Repeated], ...]  # rows that stand in a file before this one, by how (a key of HOW) and by that file


def claim(sample: Sample) -> tuple[str, str]:
    """What a row asks ("" for raw text) and what it answers, as texts that can be compared.

    Judged answers ask whether the answer is good; preference pairs ask which of the two is better.
    """
    if sample.text is not None:
        return "", sample.text
    tools = json.dumps(sample.tools, ensure_ascii=False) if sample.tools else ""
    if sample.rejected:
        asked, answered = parted(sample)
        chosen, rejected = _said(answered), _said(sample.rejected)
        return "\x1d".join([_said(asked), tools, *sorted([chosen, rejected])]), chosen
    if sample.desirable is not None:
        return f"{_said(sample.messages)}\x1d{tools}", str(sample.desirable)
    return f"{_said(sample.messages[:-1])}\x1d{tools}", _said(sample.messages[-1:])


def plain(text: str) -> str:
    """Without case, width (full-width forms), spaces and punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.casefold().translate(DROPPED)


def find(digests: Digests) -> list[Repeats]:
    """What is repeated in each file, in the order of `files`."""
    import numpy as np

    exact_N, plain_N, question_N, answer_N = (
        np.frombuffer(column, np.uint64) for column in (digests.exact, digests.plain, digests.question, digests.answer)
    )
    one = len(digests.files) == 1  # nothing to leak from
    everywhere = {} if one else {"exact": _first(exact_N), "alike": _first(plain_N), "question": _first(question_N)}
    bounds = [*digests.starts, len(digests.exact)]
    found = []
    for start, end in itertools.pairwise(bounds):
        own = slice(start, end)
        first_R, alike_R, asked_R = (_first(column[own]) + start for column in (exact_N, plain_N, question_N))
        index_R = np.arange(start, end)
        new_R = first_R == index_R
        alike = new_R & (alike_R != index_R)
        conflicts = new_R & (answer_N[own] != answer_N[asked_R])
        leaks: list[tuple[str, Repeated]] = []
        told_R = np.zeros(end - start, np.bool_)
        for how, first_N in everywhere.items():  # the strongest first; each row is told once
            leaked_R = ~told_R & (first_N[own] < start)
            leaks += [(how, leak) for leak in _across(leaked_R, first_N[own], start, digests)]
            told_R |= leaked_R
        inside = ((~new_R, first_R), (alike, alike_R), (conflicts, asked_R))
        exactly, nearly, conflicting = (_inside(chosen, earlier, start, digests) for chosen, earlier in inside)
        found.append(Repeats(exactly, nearly, conflicting, tuple(leaks)))
    return found


def findings(repeats: Repeats) -> list[Finding]:
    """What is worth saying, as sentences."""
    said = []
    if repeats.exact.here.count:
        said.append(Finding(f"{count(repeats.exact.here.count, 'exact duplicate')} of earlier rows", repeats.exact.here))
    if repeats.alike.here.count:
        what = f"{count(repeats.alike.here.count, 'row')} equal to earlier ones but for case, spaces and punctuation"
        said.append(Finding(what, repeats.alike.here, f" (earlier: {repeats.alike.there.said(5)})"))
    if repeats.conflicts.here.count:
        what = f"{count(repeats.conflicts.here.count, 'row')} with an earlier row's prompt and another answer"
        said.append(Finding(what, repeats.conflicts.here, f" (earlier: {repeats.conflicts.there.said(5)})"))
    for how, leak in repeats.leaks:
        what = f"{count(leak.here.count, 'row')} {HOW[how].format(file=leak.file)}"
        said.append(Finding(what, leak.here, f" (there: {leak.there.said(5)}); rows for a test must not be learned"))
    return said


def as_json(repeats: Repeats) -> dict[str, Any]:
    """`duplicates`, `conflicts` and `leaks` with all lines."""
    return {
        "duplicates": {"exact": _numbers(repeats.exact), "alike": _numbers(repeats.alike)},
        "conflicts": _numbers(repeats.conflicts),
        "leaks": [{"file": leak.file, "how": how, **_numbers(leak)} for how, leak in repeats.leaks],
    }


def _numbers(repeated: Repeated) -> dict[str, Any]:
    return {"rows": repeated.here.count, "lines": repeated.here.ranges(), "earlier_lines": repeated.there.ranges()}


def _said(messages: Sequence[Message]) -> str:
    """Borders are control characters, which no normalisation takes away."""
    return "\x1e".join(f"{message['role']}\x1f{words(message)}" for message in messages)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _first(keys_N: "np.ndarray") -> "np.ndarray":
    """For each key where it stands first."""
    import numpy as np

    order_N = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order_N]
    begins_N = np.ones(len(keys_N), np.bool_)
    begins_N[1:] = sorted_N[1:] != sorted_N[:-1]
    first_N = np.empty(len(keys_N), np.int64)
    first_N[order_N] = order_N[begins_N][np.cumsum(begins_N) - 1]
    return first_N


def _inside(chosen_R: "np.ndarray", first_R: "np.ndarray", start: int, digests: Digests) -> Repeated:
    import numpy as np

    here = np.flatnonzero(chosen_R)
    return Repeated(_places(here + start, digests), _places(np.unique(first_R[here]), digests))


def _across(chosen_R: "np.ndarray", first_R: "np.ndarray", start: int, digests: Digests) -> tuple[Repeated, ...]:
    """By the file in which the row stands first."""
    import numpy as np

    here = np.flatnonzero(chosen_R)
    owner = np.searchsorted(np.asarray(digests.starts), first_R[here], side="right") - 1
    return tuple(
        Repeated(
            _places(here[owner == file] + start, digests), _places(np.unique(first_R[here[owner == file]]), digests), digests.files[file]
        )
        for file in np.unique(owner)
    )


def _places(indices: "np.ndarray", digests: Digests) -> Places:
    return places((digests.rows[index], digests.lines[index]) for index in indices)
