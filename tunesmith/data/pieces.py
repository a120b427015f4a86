"""A block of rows becomes a piece of the tokens: read, understood, rendered, fitted, proved. The work of one process.

Shapes: R usable rows, D documents, N tokens of the block.
"""

import codecs
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.json_values import Decoder
from tunesmith.data.overlength import OnOverlength, fit
from tunesmith.data.proof import prove
from tunesmith.data.read import Row, row_of_line
from tunesmith.data.render import Document, Renderer
from tunesmith.data.sample import BadRow, RowError, Sample
from tunesmith.data.sources import Decided, Reading, Tally, to_sample

# What became of a row. Those that are refused stop the run, or are dropped where data.on_bad_row says so.
FATES = ("kept", "cut", "split", "dropped", "unwritable", "too long")
KEPT, CUT, SPLIT, DROPPED, UNWRITABLE, TOO_LONG = range(len(FATES))
BATCH = 256  # rows tokenised together


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one file, as lines that stand in it or as what they hold. `number` is the file's in the list of all files."""

    number: int
    reading: Reading
    decided: Decided
    rows: "Sequence[Row | BadRow | Sample] | Lines | Picks"


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines between two bytes of a file of JSON Lines; the first of them is line `first`."""

    path: Path
    name: str
    codec: str
    begin: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class Picks:
    """Single lines of such a file, in any order: K of them."""

    path: Path
    name: str
    codec: str
    begin_K: npt.NDArray[np.int64]
    end_K: npt.NDArray[np.int64]
    line_K: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """What is worked on at once. `size`: bytes or characters of it, about."""

    parts: Sequence[Part]
    size: int


@dataclass(slots=True)
class Piece:
    """What a block of rows came to. Token n of document d is a target where `learned_N[n]`."""

    file_R: npt.NDArray[np.uint32]
    line_R: npt.NDArray[np.int64]
    fate_R: npt.NDArray[np.uint8]
    row_D: npt.NDArray[np.int64]  # which of the R rows
    length_D: npt.NDArray[np.int64]
    learned_D: npt.NDArray[np.int64]  # how many tokens are learned
    unended_D: npt.NDArray[np.bool_]  # the last answer lost its end
    ids_N: npt.NDArray[np.uint32]
    learned_N: npt.NDArray[np.bool_]
    reasons: dict[int, str]  # row: why it was not kept
    texts: int  # rows of raw text
    size: int  # of the block
    notes: Counter[str]
    proved: Counter[str]
    rows: Counter[int] = field(default_factory=Counter)  # file: rows read, usable or not
    bad: dict[int, list[BadRow]] = field(default_factory=dict)  # file: rows that cannot be read
    tallies: dict[int, Tally] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokenise:
    """The work: `Tokenise(renderer, ...)(block)` is a Piece."""

    renderer: Renderer
    max_length: int
    on_overlength: OnOverlength

    def __call__(self, block: Block) -> Piece:
        """Raises ProofFailed where a mask is wrong."""
        before, making = self.renderer.notes.copy(), _Making()
        batch: list[tuple[int, Sample]] = []
        for number, sample in _samples(block.parts, making):
            batch.append((number, sample))
            if len(batch) == BATCH:
                self._add(batch, making)
                batch = []
        self._add(batch, making)
        return making.piece(block.size, self.renderer.notes - before)

    def _add(self, batch: list[tuple[int, Sample]], making: "_Making") -> None:
        made: list[Document] = []
        for (number, sample), found in zip(batch, self.renderer.documents_of([sample for _, sample in batch]), strict=True):
            documents, fate, reason = self._fitted(sample, found)
            making.add(number, sample, documents, fate, reason)
            made += documents
        making.proved.update(dataclasses.asdict(prove(made, self.renderer)))

    def _fitted(self, sample: Sample, found: list[Document] | RowError) -> tuple[list[Document], int, str]:
        if isinstance(found, RowError):
            return [], UNWRITABLE, str(found)
        notes = self.renderer.notes.copy()  # rendering a row again to fit it must not count it again
        fitted = fit(sample, found, self.renderer, max_length=self.max_length, on_overlength=self.on_overlength)
        self.renderer.notes = notes
        fate = TOO_LONG if fitted.fate == "refused" else FATES.index(fitted.fate)
        return fitted.documents, fate, fitted.reason


@dataclass(slots=True)
class _Making:
    files: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    fates: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    row_D: list[int] = field(default_factory=list)
    unended: list[bool] = field(default_factory=list)
    flat: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]] = field(default_factory=list)
    texts: int = 0
    proved: Counter[str] = field(default_factory=Counter)
    rows: Counter[int] = field(default_factory=Counter)
    bad: dict[int, list[BadRow]] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)

    def add(self, number: int, sample: Sample, documents: Sequence[Document], fate: int, reason: str) -> None:
        row = len(self.files)
        self.files.append(number)
        self.lines.append(int(sample.origin.rpartition(":")[2] or 0))
        self.fates.append(fate)
        self.texts += sample.text is not None
        if fate >= DROPPED:
            self.reasons[row] = reason
        for document in documents:
            learned_L = np.zeros(len(document.ids), np.bool_)
            for begin, end in document.spans:
                learned_L[begin:end] = True
            self.flat.append((np.array(document.ids, np.uint32), learned_L))
            self.row_D.append(row)
            self.unended.append(document.cut)

    def piece(self, size: int, notes: Counter[str]) -> Piece:
        ids, learned = [ids_L for ids_L, _ in self.flat], [learned_L for _, learned_L in self.flat]
        return Piece(
            np.array(self.files, np.uint32),
            np.array(self.lines, np.int64),
            np.array(self.fates, np.uint8),
            np.array(self.row_D, np.int64),
            np.array([len(ids_L) for ids_L in ids], np.int64),
            np.array([learned_L.sum() for learned_L in learned], np.int64),
            np.array(self.unended, np.bool_),
            np.concatenate([np.zeros(0, np.uint32), *ids]),
            np.concatenate([np.zeros(0, np.bool_), *learned]),
            self.reasons,
            self.texts,
            size,
            notes,
            self.proved,
            self.rows,
            self.bad,
            self.tallies,
        )


def _samples(parts: Sequence[Part], making: _Making) -> Iterator[tuple[int, Sample]]:
    """The usable rows with the number of their file; all others are counted in `making`."""
    for part in parts:
        tally = making.tallies.setdefault(part.number, Tally())
        for row in _rows(part.rows):
            if isinstance(row, Sample):  # of a source from which a sample was taken: counted when it was
                yield part.number, row
                continue
            making.rows[part.number] += 1
            found = to_sample(row, part.reading, part.decided, tally)
            if isinstance(found, BadRow):
                making.bad.setdefault(part.number, []).append(found)
            else:
                yield part.number, found


def _rows(rows: Any) -> Iterator[Row | BadRow | Sample]:
    if not isinstance(rows, Lines | Picks):
        yield from rows
        return
    decoder = Decoder()
    with open(rows.path, "rb") as file:
        for line, text in _lines(file, rows) if isinstance(rows, Lines) else _picked(file, rows):
            row = row_of_line(rows.name, line, text, decoder)
            if row is not None:
                yield row


def _lines(file: Any, lines: Lines) -> Iterator[tuple[int, str]]:
    file.seek(lines.begin)
    content = file.read(lines.end - lines.begin)
    if lines.begin == 0:
        content = content.removeprefix(codecs.BOM_UTF8)
    yield from enumerate(content.decode(lines_codec(lines.codec)).split("\n"), start=lines.first)


def _picked(file: Any, picks: Picks) -> Iterator[tuple[int, str]]:
    for begin, end, line in zip(picks.begin_K.tolist(), picks.end_K.tolist(), picks.line_K.tolist(), strict=True):
        file.seek(begin)
        content = file.read(end - begin)
        yield line, (content.removeprefix(codecs.BOM_UTF8) if begin == 0 else content).decode(lines_codec(picks.codec))


def lines_codec(codec: str) -> str:
    """The codec of a single line: a byte order mark stands at the file's beginning only."""
    return "utf-8" if codec == "utf-8-sig" else codec


# --- a piece in a file of its own, for runs that begin before all pieces are made ---

ARRAYS = ("file_R", "line_R", "fate_R", "row_D", "length_D", "learned_D", "unended_D")
TOKENS = ("ids_N", "learned_N")


def save(piece: Piece, path: Path) -> None:
    """Whole or absent."""
    from safetensors.numpy import save_file

    told = {
        "reasons": piece.reasons,
        "texts": piece.texts,
        "size": piece.size,
        "notes": piece.notes,
        "proved": piece.proved,
        "rows": piece.rows,
        "bad": {number: [dataclasses.asdict(row) for row in rows] for number, rows in piece.bad.items()},
        "tallies": {number: dataclasses.asdict(tally) for number, tally in piece.tallies.items()},
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {name: getattr(piece, name) for name in (*ARRAYS, *TOKENS)}
    save_file(arrays, aside, {"told": json.dumps(told, ensure_ascii=False)})
    os.replace(aside, path)


def load(path: Path, tokens: bool = True) -> Piece:
    """Without `tokens` the arrays of tokens are left empty. Raises OSError or SafetensorError where it is absent or damaged."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        told = json.loads(file.metadata()["told"])
        arrays = {name: file.get_tensor(name) for name in ARRAYS}
        if tokens:
            arrays |= {name: file.get_tensor(name) for name in TOKENS}
    arrays = {"ids_N": np.zeros(0, np.uint32), "learned_N": np.zeros(0, np.bool_)} | arrays
    return Piece(
        **arrays,
        reasons={int(row): reason for row, reason in told["reasons"].items()},
        texts=told["texts"],
        size=told["size"],
        notes=Counter(told["notes"]),
        proved=Counter(told["proved"]),
        rows=Counter({int(number): count for number, count in told["rows"].items()}),
        bad={int(number): [BadRow(**row) for row in rows] for number, rows in told["bad"].items()},
        tallies={int(number): Tally.from_dict(tally) for number, tally in told["tallies"].items()},
    )
