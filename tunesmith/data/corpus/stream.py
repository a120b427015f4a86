"""Optimizer steps out of data that is still being tokenised: a large file takes its first step after seconds.

All rows are put into one order by the seed and cut into chunks; processes tokenise chunk after chunk ahead of the run:
beside it where a GPU computes, in bursts between two steps where the processor itself does. A step takes the next
documents of that order until it has its tokens. So a step is a function of data, settings and seed, not of who was
faster, and a resumed run finds the chunks in the cache.

From the second epoch on the chunks come in another order, and the documents inside each too.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.corpus import index as indexes
from tunesmith.data.corpus import pieces, store
from tunesmith.data.corpus.batches import Row, make_rows
from tunesmith.data.corpus.blocks import Sources
from tunesmith.data.corpus.documents import NAMED, Documents, Gathered, OnBadRow, flat, refusals, reports_of, settings, told_file, weighed
from tunesmith.data.corpus.index import Index
from tunesmith.data.corpus.pieces import Block, Piece, Tokenise
from tunesmith.data.corpus.workers import Workers
from tunesmith.data.sources import where
from tunesmith.errors import UserError

FIRST = 256  # rows of the first chunk, which is waited for
CHUNK = 1 << 20  # bytes of the others, about
AHEAD = 32  # chunks that are asked for before they are needed
BURST = 8  # chunks for each process that are made at once where they cannot work beside the run

Place = tuple[int, int]  # (how many chunks came before, documents of this one that came before)


@dataclass(frozen=True)
class Keep:
    """The work of one process: make a piece and keep it in a file."""

    work: Tokenise

    def __call__(self, item: tuple[Path, Block]) -> None:
        path, block = item
        pieces.save(self.work(block), path)


@dataclass
class Chunks:
    """The rows of all sources in the order in which they are learned, tokenised in chunks as they are asked for."""

    index: Index
    order_E: npt.NDArray[np.uint32]  # rows; one of a weighted source may come twice
    folder: Path
    work: Tokenise
    on_bad_row: OnBadRow
    workers: int
    beside: bool  # whether processes may work while the run computes, and not only in bursts between two steps
    bounds: list[int] = field(init=False)  # of the chunks in the order
    again_E: npt.NDArray[np.bool_] = field(init=False)  # the row came before in the order
    lengths: list[npt.NDArray[np.int64]] = field(default_factory=list)  # tokens of the documents of each chunk that is ready
    _asked: dict[int, Future[Any]] = field(default_factory=dict)
    _pool: Workers | None = None

    def __post_init__(self) -> None:
        rows = max(1, round(CHUNK * len(self.index.file_R) / max(1, self.index.bytes)))
        entries = len(self.order_E)
        self.bounds = [0, *range(min(FIRST, rows, entries), entries, rows), entries] if entries else [0]
        self.again_E = np.zeros(entries, np.bool_)
        met_R = np.zeros(len(self.index.file_R), np.bool_)
        met_R[self.order_E] = True
        if met_R.sum() < entries:  # else each row stands there once, and what tells which came first takes 30 bytes a row
            self.again_E[:] = True
            self.again_E[np.unique(self.order_E, return_index=True)[1]] = False

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def piece(self, number: int) -> Piece:
        """A chunk that is ready."""
        with contextlib.suppress(OSError):
            os.utime(self.folder.parent)  # what is in use is not removed to make room
        return self._load(number, tokens=True)

    def wait_for(self, number: int) -> None:
        """Have the chunks up to this one ready. Raises UserError for rows that must not be passed over.

        Where the processes must not work beside the run, some more are made while it waits anyway.
        """
        while len(self.lengths) <= number:
            first = len(self.lengths)
            burst = BURST * self.workers if first and not self.beside else 1
            for ahead in range(first, min(max(number + 1, first + burst), len(self))):
                self._ask(ahead)
            for future in list(self._asked.values()) if not self.beside else ():
                future.result()
            self._take_in()

    def look_ahead(self) -> None:
        """Take in what has become ready, and have more made while the run goes on."""
        while len(self.lengths) < len(self) and (self._is_there(len(self.lengths)) or self._is_done(len(self.lengths))):
            self._take_in()
        if len(self.lengths) == len(self):
            self.close()
        elif self.beside and self.workers:
            for number in range(len(self.lengths), min(len(self.lengths) + AHEAD, len(self))):
                self._ask(number)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool, self._asked = None, {}

    def report(self, chunks: int) -> dict[str, Any]:
        """`data.json` of the first chunks: rows = kept + cut + split + the number of dropped."""
        gathered = Gathered([replace(report, bad=list(report.bad)) for report in self.index.reports], [])
        counts, learned = np.zeros(len(pieces.FATES), np.int64), 0
        lost, cut = list[dict[str, str]](), list[str]()
        for number in range(chunks):
            piece = self._load(number, tokens=False)
            gathered.add(piece)
            once_R = ~piece.again_R
            counts += np.bincount(piece.fate_R[once_R], minlength=len(counts))
            learned += int(piece.learned_D.sum())
            lost += [{"origin": self._origin(piece, row), "reason": reason} for row, reason in piece.reasons.items() if once_R[row]]
            cut += [self._origin(piece, row) for row in np.flatnonzero((piece.fate_R == pieces.CUT) & once_R).tolist()]
        facts, bad = gathered.facts(), [row for report in gathered.reports for row in report.bad]
        lengths = self.lengths[:chunks]
        return {
            "rows": int(counts.sum()) + len(bad),
            **{pieces.FATES[fate]: int(counts[fate]) for fate in (pieces.KEPT, pieces.CUT, pieces.SPLIT)},
            "dropped": [{"origin": where(row), "reason": row.reason} for row in bad] + lost,
            "cut_origins": cut[:NAMED],
            **facts["rendering"],
            "documents": sum(len(length_D) for length_D in lengths),
            "tokens": sum(int(length_D.sum()) for length_D in lengths),
            "learned_tokens": learned,
            "longest": max((int(length_D.max(initial=0)) for length_D in lengths), default=0),
            **settings(self.work.renderer, self.work.max_length, self.work.on_overlength),
            "files": [told_file(each) for each in reports_of(facts)],
        }

    def is_text(self) -> bool:
        """Whether the first chunk is raw text."""
        piece = self.piece(0)
        return bool(len(piece.fate_R)) and piece.texts == len(piece.fate_R)

    def _ask(self, number: int) -> None:
        if number in self._asked or self._is_there(number):
            return
        item = self._item(number)
        if not self.workers or number == 0:  # the first is made before processes would have started
            Keep(self.work)(item)
            return
        if self._pool is None:
            self._pool = Workers(Keep(self.work), self.workers)
            if self.beside:
                self._pool.calm()  # they have the machine to themselves whenever the run waits for them
        self._asked[number] = self._pool.submit(item)

    def _take_in(self) -> None:
        number = len(self.lengths)
        if number in self._asked:
            self._asked.pop(number).result()
        piece = self._load(number, tokens=False)
        self._refuse(piece)
        self.lengths.append(piece.length_D)

    def _item(self, number: int) -> tuple[Path, Block]:
        own = slice(self.bounds[number], self.bounds[number + 1])
        return self._path(number), self.index.block(self.order_E[own].astype(np.int64), self.again_E[own])

    def _load(self, number: int, tokens: bool) -> Piece:
        """A chunk, made again where it was damaged or taken away."""
        piece = pieces.load(self._path(number), tokens)
        if piece is None:
            Keep(self.work)(self._item(number))
            piece = pieces.load(self._path(number), tokens)
        if piece is None:
            raise UserError(f"{self._path(number)}: cannot be read again; the disk is broken, or something removes files from the cache")
        return piece

    def _refuse(self, piece: Piece) -> None:
        names = enumerate(self.index.reports)
        reports = [replace(report, rows=piece.rows[number], bad=piece.bad.get(number, [])) for number, report in names]
        once = [(row, reason) for row, reason in piece.reasons.items() if not piece.again_R[row]]
        refused = [(int(piece.fate_R[row]), self._origin(piece, row), reason) for row, reason in once]
        if problems := refusals(reports, refused, self.on_bad_row, self.work.max_length):
            raise UserError(*problems)

    def _origin(self, piece: Piece, row: int) -> str:
        return f"{self.index.reports[piece.file_R[row]].file}:{piece.line_R[row]}"

    def _is_done(self, number: int) -> bool:
        return number in self._asked and self._asked[number].done()

    def _is_there(self, number: int) -> bool:
        return number not in self._asked and self._path(number).exists()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"


@dataclass
class Stream:
    """Which documents each optimizer step sees, as `batches.Plan` says it for data that is all there."""

    chunks: Chunks
    tokens_per_step: int
    row_tokens: int
    seed: int
    pack: bool = True
    virtual_ids: range = range(0)
    share: bool = False
    key: str = ""
    _begins: list[Place] = field(default_factory=lambda: [(0, 0)])  # where each step begins

    def rows(self, step: int) -> list[Row]:
        """The packed rows of a step. Raises UserError for rows met on the way that must not be passed over."""
        documents = self.step_documents(step)
        self.chunks.look_ahead()
        return make_rows(documents, range(len(documents)), self.row_tokens, self.pack, self.virtual_ids, self.share)

    def step_documents(self, step: int) -> Documents:
        self._begin(step + 1)
        taken, _ = self._after(self._begins[step])
        names = [report.file for report in self.chunks.index.reports]
        return _joined([documents_of(self.chunks.piece(chunk), names).take(chosen_D) for chunk, chosen_D in taken], names)

    def tokens_in(self, steps: int) -> int:
        """About how many real tokens the first `steps` steps have."""
        return steps * self.tokens_per_step

    def alone(self) -> "Stream":
        """The same steps, a row for each document."""
        return replace(self, pack=False)

    def behind(self, virtual_ids: range) -> "Stream":
        """The same steps, each document behind these placeholders."""
        return replace(self, virtual_ids=virtual_ids)

    def shared(self, share: bool) -> "Stream":
        """The same steps, with what documents begin with in common computed once, or each time."""
        return replace(self, share=share)

    def close(self) -> None:
        self.chunks.close()

    def report(self, ended_after: int | None = None) -> dict[str, Any]:
        """`data.json` as far as it is known; once the run has ended after so many steps, of what it has used.

        rows = kept + cut + split + the number of dropped; rows_read = rows + those of `set_aside`.
        """
        used = len(self.chunks.lengths)
        if ended_after is not None:
            self._begin(ended_after)
            visit, offset = self._begins[ended_after]
            used = min(len(self.chunks), visit + (offset > 0))
        report = self.chunks.report(used)
        again_E, reached = self.chunks.again_E, self.chunks.bounds[used]
        missing = int((~again_E[reached:]).sum())
        set_aside = {"not_reached": missing, "weight": len(self.chunks.index.file_R) - int((~again_E).sum())}
        report |= {"stream_sha256": self.key, "rows_read": report["rows"] + sum(set_aside.values())}
        report["set_aside"] = {reason: count for reason, count in set_aside.items() if count}
        return report if ended_after is not None or not missing else {"provisional": True} | report

    def _begin(self, step: int) -> None:
        """Find where the steps up to this one begin."""
        while len(self._begins) <= step:
            self._begins.append(self._after(self._begins[-1])[1])

    def _after(self, place: Place) -> tuple[list[tuple[int, npt.NDArray[np.int64]]], Place]:
        """The documents of the step that begins here, as (chunk, which of its documents), and where the next one begins."""
        visit, offset = place
        taken, missing, empty = list[tuple[int, npt.NDArray[np.int64]]](), self.tokens_per_step, 0
        while True:
            chunk, order_D = self._visit(visit)
            ends_D = self.chunks.lengths[chunk][order_D][offset:].cumsum()
            count = int(np.searchsorted(ends_D, missing)) + 1
            if count <= len(ends_D):
                return [*taken, (chunk, order_D[offset : offset + count])], (visit, offset + count)
            if len(ends_D):
                taken.append((chunk, order_D[offset:]))
                missing -= int(ends_D[-1])
                empty = 0
            elif (empty := empty + 1) > 2 * len(self.chunks):
                raise UserError("no row is left to learn from: all of them were dropped")
            visit, offset = visit + 1, 0

    def _visit(self, visit: int) -> tuple[int, npt.NDArray[np.int64]]:
        """The chunk that is visited after so many others, and the order of its documents then."""
        epoch, position = divmod(visit, len(self.chunks))
        if epoch == 0:
            self.chunks.wait_for(position)
            return position, np.arange(len(self.chunks.lengths[position]))
        self.chunks.wait_for(len(self.chunks) - 1)
        chunk = int(_shuffled([self.seed, epoch], len(self.chunks))[position])
        return chunk, _shuffled([self.seed, epoch, chunk], len(self.chunks.lengths[chunk]))


def open_chunks(
    sources: Sources,
    weights_of: Callable[[list[int]], list[float]],
    work: Tokenise,
    cache: Path,
    *,
    seed: int,
    on_bad_row: OnBadRow,
    workers: int,
    beside: bool,
) -> tuple[Chunks, str]:
    """Index the sources and put their rows in order; nothing is tokenised yet. The second value names data, settings and order.

    `weights_of` gives each source its weight, by how many rows each has.
    """
    told = [work.renderer.fingerprint, work.max_length, work.on_overlength, sources.fingerprint()]
    name = hashlib.sha256(json.dumps([store.code(), *told]).encode()).hexdigest()
    folder = cache / f"{name[:32]}.stream"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        index = indexes.make(sources, folder)
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror}"
        raise UserError(f"{what}; data.stream needs a cache with room that can be written (TUNESMITH_CACHE says where)") from None
    problems = [*index.broken, *refusals(index.reports, [], on_bad_row, work.max_length)]
    if problems:
        raise UserError(*problems)
    weights, order_E = _in_order(index, sources, weights_of, seed)
    key = hashlib.sha256(json.dumps([told, seed, weights]).encode()).hexdigest()
    own = folder / key[:16]
    own.mkdir(exist_ok=True)
    store.trim(cache)
    return Chunks(index, order_E, own, work, on_bad_row, workers, beside), key


def _in_order(
    index: Index, sources: Sources, weights_of: Callable[[list[int]], list[float]], seed: int
) -> tuple[list[float], npt.NDArray[np.uint32]]:
    """The sources' weights, and all rows in the order in which they are learned: 4 bytes a row, since there may be many."""
    source_R = np.array(sources.source_F, np.uint32)[index.file_R]
    weights = weights_of([int((source_R == number).sum()) for number in range(len(sources.wanted))])
    chosen = [weighed(np.flatnonzero(source_R == number).astype(np.uint32), weight) for number, weight in enumerate(weights)]
    entries_E = np.concatenate([np.zeros(0, np.uint32), *chosen])
    np.random.Generator(np.random.PCG64([seed])).shuffle(entries_E)
    return weights, entries_E


def documents_of(piece: Piece, names: Sequence[str]) -> Documents:
    tokens = (piece.ids_N, piece.learned_N, piece.length_D.cumsum())
    return flat(*tokens, piece.file_R[piece.row_D], piece.line_R[piece.row_D], names, piece.learned_D)


def _joined(parts: Sequence[Documents], names: Sequence[str]) -> Documents:
    """Documents of several pieces, one behind the other, with tokens of their own."""
    spans = [(part, begin, end) for part in parts for begin, end in zip(part.begin_D.tolist(), part.end_D.tolist(), strict=True)]
    return flat(
        np.concatenate([np.zeros(0, np.uint32), *(part.ids_N[begin:end] for part, begin, end in spans)]),
        np.concatenate([np.zeros(0, np.bool_), *(part.learned_N[begin:end] for part, begin, end in spans)]),
        np.cumsum(np.array([end - begin for _, begin, end in spans], np.int64)),
        np.concatenate([np.zeros(0, np.uint32), *(part.file_D for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.line_D for part in parts)]),
        names,
    )


def _shuffled(seeds: Sequence[int], count: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64([*seeds])).permutation(count)
