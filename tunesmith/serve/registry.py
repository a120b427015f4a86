"""Which versions of an adapter there are, what each was trained on and scored, and which one a name means. One SQLite file.

    support@1  runs/a  ─┐                        pointings of `support`, the newest counts:
    support@2  runs/b   ├─ versions, kept for ever   1 ► {1: 1.0}   2 ► {2: 0.9, 3: 0.1}   3 ► {3: 1.0}
    support@3  runs/c  ─┘

A version is its weights and its adapter's settings, by hash: the same content registered twice is one version. Several processes may
use one file at a time, on one machine (SQLite's write-ahead log needs shared memory, which network drives do not have).
"""

import hashlib
import json
import random
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.serve.provenance import facts_of, hashes, result

MARK = 0x54534D52  # SQLite's application_id: tells a registry from other SQLite files
LAYOUT = 1  # SQLite's user_version
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_TABLES = """
CREATE TABLE versions (
  name TEXT NOT NULL, version INTEGER NOT NULL, content TEXT NOT NULL, folder TEXT NOT NULL, registered REAL NOT NULL,
  weights_sha256 TEXT NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (name, version), UNIQUE (name, content)
);
CREATE TABLE pointings (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, time REAL NOT NULL, shares TEXT NOT NULL, note TEXT NOT NULL, before INTEGER
);
CREATE INDEX pointings_by_name ON pointings (name, id);
"""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a name. `facts`: method, run (its settings), scores, data (hashes and counts), base (its fingerprint), where
    the folder has them."""

    name: str
    version: int
    folder: Path
    registered: float  # seconds since 1970
    weights_sha256: str
    facts: dict[str, Any]

    @property
    def spelled(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Pointing:
    """What a name means from a time on: the share of requests of each version."""

    time: float  # seconds since 1970
    shares: dict[int, float]
    note: str


class Registry:
    """The file. Every call opens it for itself, so an object may be used from any thread."""

    def __init__(self, path: Path):
        """Make it where there is none. Raises UserError for a file that is something else or cannot be written."""
        self.path = path
        try:
            with self._writing() as db:
                (mark,), (layout,) = db.execute("PRAGMA application_id").fetchone(), db.execute("PRAGMA user_version").fetchone()
                tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if not tables:
                    for statement in filter(str.strip, _TABLES.split(";")):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id = {MARK}")
                    db.execute(f"PRAGMA user_version = {LAYOUT}")
                elif mark != MARK:
                    raise UserError(f"{path}: a SQLite file, but no registry of tunesmith's; take another path")
                elif layout != LAYOUT:
                    raise UserError(f"{path}: written by another version of tunesmith (layout {layout}, here {LAYOUT}); use that one")
            with self._reading() as db, suppress(sqlite3.OperationalError):  # locked: another process is just doing it
                db.execute("PRAGMA journal_mode = WAL")  # stays with the file
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used as a registry ({error}); take another path") from None

    def register(self, name: str, folder: Path) -> Version:
        """A run folder or adapter folder as the next version of a name. The same content again is the version that it was, its scores
        and folder brought up to date. The first version of a name is pointed to. Raises UserError for a folder without a result."""
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r}: a name in the registry has letters, digits, . _ - (at most 64) and begins with a letter or digit")
        folder = folder.expanduser().resolve()
        weights, content = hashes(result(folder))
        facts = json.dumps(facts_of(folder), ensure_ascii=False)
        with self._writing() as db:
            known = db.execute("SELECT version FROM versions WHERE name = ? AND content = ?", (name, content)).fetchone()
            if known:
                db.execute("UPDATE versions SET folder = ?, facts = ? WHERE name = ? AND version = ?", (str(folder), facts, name, known[0]))
                number = known[0]
            else:
                number = db.execute("SELECT coalesce(max(version), 0) + 1 FROM versions WHERE name = ?", (name,)).fetchone()[0]
                row = (name, number, content, str(folder), time.time(), weights, facts)
                db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            if _current(db, name) is None:
                _point(db, name, {number: 1.0}, "first version", None)
            return _version(db, name, number)

    def names(self) -> list[str]:
        with self._reading() as db:
            return [name for (name,) in db.execute("SELECT DISTINCT name FROM versions ORDER BY name")]

    def versions(self, name: str) -> list[Version]:
        """The oldest first; empty for an unknown name."""
        with self._reading() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM versions WHERE name = ? ORDER BY version", (name,))
            return [_read(row) for row in rows]

    def history(self, name: str) -> list[Pointing]:
        """What the name meant, the newest last."""
        with self._reading() as db:
            rows = db.execute("SELECT time, shares, note FROM pointings WHERE name = ? ORDER BY id", (name,)).fetchall()
        return [Pointing(when, _shares(shares), note) for when, shares, note in rows]

    def point(self, name: str, to: int | Mapping[int, float], note: str = "") -> Pointing:
        """Let the name mean a version from now on, or several, each for a share of the requests; shares add up to 1. Raises LookupError
        for versions that there are not, ValueError for shares that are no shares, and for a folder that is gone or has changed."""
        shares = {to: 1.0} if isinstance(to, int) else {int(version): float(share) for version, share in to.items()}
        check_shares(shares)
        for version in sorted(shares):
            if why := self.trouble(self.resolve(f"{name}@{version}")):
                raise ValueError(why)
        with self._writing() as db:
            current = _current(db, name)
            _point(db, name, shares, note, None if current is None else current[0])
        return self.history(name)[-1]

    def before(self, name: str) -> Pointing:
        """What `roll_back` would go to. Raises LookupError where there is nothing before."""
        with self._reading() as db:
            return _before(db, name)[0]

    def roll_back(self, name: str, note: str = "") -> Pointing:
        """What the name meant before; a second time, what it meant before that. Raises LookupError where there is nothing before."""
        with self._writing() as db:
            to, before = _before(db, name)
            _point(db, name, to.shares, note or "rolled back", before)
        return self.history(name)[-1]

    def resolve(self, spelled: str, key: str = "") -> Version:
        """The version that `support` or `support@3` means. Where a name means several, requests of one `key` (a user) always get the
        same one while the shares stand, those without a key one by chance. Raises LookupError."""
        name, at, number = spelled.rpartition("@")
        with self._reading() as db:
            if at:
                if not number.isdecimal():
                    raise LookupError(f"{spelled}: behind @ stands the number of a version")
                return _version(db, name, int(number))
            current = _current(db, spelled)
            if current is None:
                raise LookupError(f"{spelled} is not in the registry")
            return _version(db, spelled, chosen(spelled, _shares(current[1]), key))

    def pointed(self) -> dict[str, Version]:
        """{spelled as it is asked for: version} of all that the names mean: `support`, and of a name with shares each `support@3` too."""
        found: dict[str, Version] = {}
        for name in self.names():
            history = self.history(name)
            shares = history[-1].shares if history else {}
            most = max(shares, key=lambda version: shares[version], default=None)
            if most is not None:
                found[name] = self.resolve(f"{name}@{most}")
            if len(shares) > 1:
                found |= {f"{name}@{version}": self.resolve(f"{name}@{version}") for version in shares}
        return found

    def trouble(self, version: Version) -> str:
        """Why a version cannot be served any more; "" where it can. Reads its weights."""
        try:
            weights, _ = hashes(result(version.folder))
        except UserError:
            return f"{version.spelled}: {version.folder} is gone or holds no result any more; register another folder with these weights"
        if weights != version.weights_sha256:
            return f"{version.spelled}: the weights in {version.folder} have changed since it was registered; register it as a new version"
        return ""

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all or nothing, and no other process writes meanwhile."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def check_shares(shares: Mapping[int, float]) -> None:
    """Raises ValueError for what are no shares of requests."""
    if not (all(share > 0 for share in shares.values()) and abs(sum(shares.values()) - 1) <= 1e-6):  # NaN is neither
        raise ValueError("shares are above 0 and add up to 1")


def chosen(name: str, shares: Mapping[int, float], key: str = "") -> int:
    """The version for a key: by a hash, so that when shares move, only the users in between change theirs. No key: by chance."""
    place = int.from_bytes(hashlib.sha256(f"{name}\0{key}".encode()).digest()[:8], "big") / 2**64 if key else random.random()
    for version in sorted(shares):
        place -= shares[version]
        if place < 0:
            return version
    return max(shares)  # shares add up to 1 but for rounding


_COLUMNS = "name, version, folder, registered, weights_sha256, facts"


def _version(db: sqlite3.Connection, name: str, number: int) -> Version:
    row = db.execute(f"SELECT {_COLUMNS} FROM versions WHERE name = ? AND version = ?", (name, number)).fetchone()
    if row is None:
        raise LookupError(f"{name}@{number} is not in the registry")
    return _read(row)


def _read(row: tuple[Any, ...]) -> Version:
    name, version, folder, registered, weights, facts = row
    return Version(name, version, Path(folder), registered, weights, json.loads(facts))


def _current(db: sqlite3.Connection, name: str) -> Any:
    """(id, shares, the id of the one before) of what a name means, or None."""
    return db.execute("SELECT id, shares, before FROM pointings WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()


def _before(db: sqlite3.Connection, name: str) -> tuple[Pointing, int | None]:
    """What a name meant before, and the id of what it meant before that."""
    current = _current(db, name)
    if current is None:
        raise LookupError(f"{name} is not in the registry")
    row = db.execute("SELECT time, shares, note, before FROM pointings WHERE id = ?", (current[2],)).fetchone()
    if row is None:
        raise LookupError(f"{name} never meant anything else")
    return Pointing(row[0], _shares(row[1]), row[2]), row[3]


def _point(db: sqlite3.Connection, name: str, shares: Mapping[int, float], note: str, before: int | None) -> None:
    kept = json.dumps({str(version): shares[version] for version in sorted(shares)})
    db.execute("INSERT INTO pointings (name, time, shares, note, before) VALUES (?, ?, ?, ?, ?)", (name, time.time(), kept, note, before))


def _shares(text: str) -> dict[int, float]:
    return {int(version): share for version, share in json.loads(text).items()}
