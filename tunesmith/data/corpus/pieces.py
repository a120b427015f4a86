"""A block of rows becomes a piece of the tokens: read, understood, rendered, fitted, proved. The work of one process.

Shapes: R usable rows, D documents, N tokens of the block.
"""

import codecs
import dataclasses
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.files.json_values import Decoder
from tunesmith.data.files.read import Row, row_of_line
from tunesmith.data.files.row import Unreadable
from tunesmith.data.rendering import labelled_overlength, labelled_proof, overlength, proof
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.overlength import OnOverlength
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import BadRow, RowError, Sample
from tunesmith.data.sources import Decided, Reading, Tally, judged, place, to_sample
from tunesmith.errors import UserError

# What became of a row. Those that are refused stop the run, or are dropped where data.on_bad_row says so.
FATES = ("kept", "cut", "split", "dropped", "unwritable", "too long")
KEPT, CUT, SPLIT, DROPPED, UNWRITABLE, TOO_LONG = range(len(FATES))
BATCH = 256  # rows tokenised together
CHANGED = "changed or vanished while it was read; begin again once it is written"

Stamp = tuple[int, int] | None  # a file's size and the time of its last change (ns)


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
    stamp: Stamp  # the file's, when the lines were found
    ours: bool  # a file of our own, written from a file of another kind
    begin_K: npt.NDArray[np.int64]
    end_K: npt.NDArray[np.int64]
    line_K: npt.NDArray[np.int64]
    again_K: npt.NDArray[np.bool_]  # a row that came before: of a weighted source, learned but not counted again
    place_K: npt.NDArray[np.int64]  # of the row in its block, whose rows may stand in many files


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
    learned_D: npt.NDArray[np.int64]  # how many tokens, or labels, are learned
    unended_D: npt.NDArray[np.bool_]  # the last answer lost its end
    again_R: npt.NDArray[np.bool_]  # the row came before
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

    renderer: Renderer | Labelled
    max_length: int
    on_overlength: OnOverlength

    def __call__(self, block: Block) -> Piece:
        """Raises ProofFailed where a mask is wrong."""
        before, making = self.renderer.notes.copy(), _Making()
        batch: list[tuple[int, Sample, bool]] = []
        for each in _samples(block.parts, making):
            batch.append(each)
            if len(batch) == BATCH:
                self._add(batch, making)
                batch = []
        self._add(batch, making)
        return making.piece(block.size, self.renderer.notes - before)

    def _add(self, batch: list[tuple[int, Sample, bool]], making: "_Making") -> None:
        made: list[Any] = []
        prove: Any = labelled_proof.prove if self.renderer.labelled else proof.prove
        for (number, sample, again), found in zip(batch, self._rendered(batch), strict=True):
            documents, fate, reason = self._fitted(sample, found)
            making.add(number, sample, documents, fate, reason, again)
            made += [] if again else documents
        making.proved.update(dataclasses.asdict(prove(made, self.renderer)))

    def _rendered(self, batch: list[tuple[int, Sample, bool]]) -> list[list[Any] | RowError]:
        fresh = iter(self.renderer.documents_of([sample for _, sample, again in batch if not again]))
        notes = self.renderer.notes.copy()  # nor must a row that comes again
        repeated = iter(self.renderer.documents_of([sample for _, sample, again in batch if again]))
        self.renderer.notes = notes
        return [next(repeated if again else fresh) for _, _, again in batch]

    def _fitted(self, sample: Sample, found: list[Any] | RowError) -> tuple[list[Any], int, str]:
        if isinstance(found, RowError):
            return [], UNWRITABLE, str(found)
        notes = self.renderer.notes.copy()  # a row that is rendered again to fit it must not be counted again
        fit: Any = labelled_overlength.fit if self.renderer.labelled else overlength.fit
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
    again: list[bool] = field(default_factory=list)
    flat: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]] = field(default_factory=list)
    texts: int = 0
    proved: Counter[str] = field(default_factory=Counter)
    rows: Counter[int] = field(default_factory=Counter)
    bad: dict[int, list[BadRow]] = field(default_factory=dict)
    tallies: dict[int, Tally] = field(default_factory=dict)

    def add(self, number: int, sample: Sample, documents: Sequence[Any], fate: int, reason: str, again: bool) -> None:
        row = len(self.files)
        self.files.append(number)
        self.lines.append(int(sample.origin.rpartition(":")[2] or 0))
        self.fates.append(fate)
        self.again.append(again)
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
            np.array(self.again, np.bool_),
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


def samples_in(block: Block, lost: list[str]) -> Iterator[Sample]:
    """The usable rows of a block; the others are passed over, and why the first of them is goes into `lost`."""
    making = _Making()
    yield from (sample for _, sample, _ in _samples(block.parts, making))
    lost += [place(rows[0]) for rows in making.bad.values()][:1]


def _samples(parts: Sequence[Part], making: _Making) -> Iterator[tuple[int, Sample, bool]]:
    """The usable rows with the number of their file, and whether they came before; all others are counted in `making`."""
    for part, row, again in _in_order(parts):
        if isinstance(row, Sample):  # of a source from which a sample was taken: counted when it was
            yield part.number, row, False
            continue
        tally = making.tallies.setdefault(part.number, Tally())
        found = to_sample(row, part.reading, part.decided, Tally() if again else tally)
        making.rows[part.number] += not again
        if isinstance(found, Sample) and (reason := judged(found)):
            found = BadRow(row.origin, row.line, reason)
        if not isinstance(found, BadRow):
            yield part.number, found, again
        elif not again:
            making.bad.setdefault(part.number, []).append(found)


def _in_order(parts: Sequence[Part]) -> Iterator[tuple[Part, Row | BadRow | Sample, bool]]:
    """Rows, and whether each came before: part after part, but single lines in their order, whatever file they stand in.

    Raises Unreadable where a file is no longer what it was.
    """
    picked: list[tuple[int, Part, Row | BadRow, bool]] = []
    for part in parts:
        try:
            if isinstance(part.rows, Picks):
                picked += ((place, part, row, again) for place, row, again in _picked(part.rows))
            else:
                yield from ((part, row, False) for row in (_lines(part.rows) if isinstance(part.rows, Lines) else part.rows))
        except (OSError, UnicodeError):
            assert isinstance(part.rows, Picks | Lines)
            raise Unreadable(part.rows.name, 0, CHANGED) from None
    yield from ((part, row, again) for _, part, row, again in sorted(picked, key=lambda each: each[0]))


def stamp_of(path: Path | None) -> Stamp:
    """None for what is no file, or is there no more."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status is not None else None


def _lines(lines: Lines) -> Iterator[Row | BadRow]:
    decoder = Decoder()
    with open(lines.path, "rb") as file:
        text = _text(file, lines.begin, lines.end, lines.codec)
    for line, part in enumerate(text.split("\n"), start=lines.first):
        if (row := row_of_line(lines.name, line, part, decoder)) is not None:
            yield row


def _picked(picks: Picks) -> Iterator[tuple[int, Row | BadRow, bool]]:
    """Rows with their places, and whether each came before."""
    found, known = stamp_of(picks.path), picks.stamp
    again_written = picks.ours and found and known and found[0] == known[0]  # by another run, and the same
    if found != known and not again_written:  # the run may have begun days ago
        raise Unreadable(picks.name, 0, CHANGED)
    decoder = Decoder()
    arrays = (picks.begin_K, picks.end_K, picks.line_K, picks.again_K, picks.place_K)
    with open(picks.path, "rb") as file:
        for begin, end, line, again, place in zip(*(array_K.tolist() for array_K in arrays), strict=True):
            text = _text(file, begin, end, picks.codec)
            row = Row(picks.name, line, json.loads(text)) if picks.ours else row_of_line(picks.name, line, text, decoder)
            if row is not None:
                yield place, row, again


def _text(file: IO[bytes], begin: int, end: int, codec: str) -> str:
    file.seek(begin)
    content = file.read(end - begin)
    return (content.removeprefix(codecs.BOM_UTF8) if begin == 0 else content).decode(lines_codec(codec))


def lines_codec(codec: str) -> str:
    """The codec of a single line: a byte order mark stands at the file's beginning only."""
    return "utf-8" if codec == "utf-8-sig" else codec


# --- a piece in a file of its own, for runs that begin before all pieces are made ---

ARRAYS = ("file_R", "line_R", "fate_R", "row_D", "length_D", "learned_D", "unended_D", "again_R")
TOKENS = ("ids_N", "learned_N")


def save(piece: Piece, path: Path) -> None:
    """Whole or absent. Raises UserError where there is no room for it."""
    from safetensors import SafetensorError
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
    arrays = {name: getattr(piece, name) for name in (*ARRAYS, *TOKENS)}
    told |= {"sums": {name: zlib.crc32(array.data) for name, array in arrays.items()}}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(told)
        save_file(arrays, aside, {"told": text, "sum": str(zlib.crc32(text.encode()))})
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{path.parent}: cannot be written ({error}); make room, or set TUNESMITH_CACHE to a folder with room") from None


def load(path: Path, tokens: bool = True) -> Piece | None:
    """None where it is absent or damaged. Without `tokens` the arrays of tokens are left empty."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata()
            told = json.loads(about["told"])
            arrays = {name: file.get_tensor(name) for name in (*ARRAYS, *(TOKENS if tokens else ()))}
        if str(zlib.crc32(about["told"].encode())) != about["sum"]:
            return None
        if any(zlib.crc32(array.data) != told["sums"][name] for name, array in arrays.items()):
            return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
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
