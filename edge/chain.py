"""The journal's rows on disk: an SQLite file in which each row's hash takes in the hash of the row before.

Row n has the SHA-256 of the hash of row n - 1, n, its kind and its body, so that a row that is changed, deleted, inserted or
moved breaks the chain from there on. A chain cannot see its own end cut off, nor that all of it was written anew: that needs
one of its hashes, a head, kept elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge import StationError

SCHEMA: Final = 1
GENESIS: Final = "0" * 64  # stands for the row before the first
PART, EVENT, EVIDENCE, LABEL = "part", "event", "evidence", "label"
_CONTEXT = ("recipe", "bundle", "backend", "precision", "engine", "calibration")
_DECIDED = ("outcome", "score", "threshold", "threshold_method", "reason", "latency_ms")
_TIMES = ("recorded", "triggered", "trigger_ns", "capture_ms")
PART_KEYS = ("run", "part", *_DECIDED, *_TIMES, "source", *_CONTEXT, "part_ref")
LABEL_KEYS = ("run", "part", "recorded", "truth", "kind", "by", "note")
_TYPES: dict[str, dict[str, type]] = {
    PART: {"run": str, "part": int, "recorded": str, "outcome": str},
    EVENT: {"run": str, "recorded": str, "event": str, "details": dict},
    EVIDENCE: {"run": str, "part": int, "recorded": str, "outcome": str, "path": str, "pixels": str},
    LABEL: {"run": str, "part": int, "recorded": str, "truth": str, "by": str, "note": str, "row": int, "hash": str},
}
_SQLITE = b"SQLite format 3\0"


def _view(name: str, kind: str, keys: tuple[str, ...]) -> str:
    columns = ", ".join(f"json_extract(body, '$.{key}') AS {key}" for key in keys)
    return f"CREATE VIEW {name} AS SELECT id, {columns} FROM chain WHERE kind = '{kind}'"


_CHAIN = {"chain": "CREATE TABLE chain (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL)"}


@dataclass(frozen=True)
class Layout:
    """A file with a chain.

    Attributes:
        what: it is, for people.
        application_id: so that another program's database is not taken for it.
        kinds: of rows that it may have.
        objects: its tables, indices and views, by name; the views are for people and their tools.
        former: views as earlier versions made them, by name: `renew` puts the present ones in their place.
    """

    what: str
    application_id: int
    kinds: frozenset[str]
    objects: Mapping[str, str]
    former: Mapping[str, str] = field(default_factory=dict)


JOURNAL: Final = Layout(
    "a station's journal",
    0x52454231,
    frozenset({PART, EVENT, EVIDENCE}),
    {
        **_CHAIN,
        "event_rows": f"CREATE INDEX event_rows ON chain (id) WHERE kind = '{EVENT}'",
        # parts announced and not yet decided; not chained, because a row of it lives no longer than its part is judged
        "in_flight": "CREATE TABLE in_flight (run TEXT, part INTEGER, body TEXT NOT NULL, PRIMARY KEY (run, part))",
        "parts": _view("parts", PART, PART_KEYS),
        "events": _view("events", EVENT, ("run", "recorded", "event", "details")),
        "evidence": _view("evidence", EVIDENCE, ("run", "part", "recorded", "outcome", "path", "pixels", "why")),
    },
    {"parts": _view("parts", PART, tuple(key for key in PART_KEYS if key != "threshold_method"))},
)
LABELS: Final = Layout(
    "the labels of a journal",
    0x5245424C,
    frozenset({LABEL}),
    {**_CHAIN, "labels": _view("labels", LABEL, (*LABEL_KEYS, "row", "hash"))},
)


@dataclass(frozen=True)
class Head:
    """A row's number, from 1, and its hash (hex); row 0 is before the first."""

    row: int
    hash: str


@dataclass(frozen=True)
class Row:
    """One row of the chain; `body` is canonical JSON."""

    number: int
    kind: str
    body: str
    hash: str

    @property
    def head(self) -> Head:
        """What to keep elsewhere to know this row again."""
        return Head(self.number, self.hash)


class ChainError(StationError):
    """The first bad row of a chain, and how it is bad."""

    def __init__(self, row: int, how: str) -> None:
        super().__init__(f"row {row}: {how}")
        self.row = row


class EmptyError(StationError):
    """A database in which nothing is yet: whoever made it was cut short."""


def canonical(content: Mapping[str, object]) -> str:
    """JSON with sorted keys, ASCII alone: one text for one content. Raises ValueError for a number that is not finite."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def follow(head: Head, kind: str, body: str) -> Row:
    """The row that comes after `head`."""
    number = head.row + 1
    text = f"{head.hash}\n{number}\n{kind}\n{body}"
    return Row(number, kind, body, hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest())


def walk(connection: sqlite3.Connection, layout: Layout = JOURNAL) -> Iterator[Row]:
    """All rows in order, each checked.

    Raises:
        ChainError: the first row that is missing, changed, inserted or moved, or that cannot be read.
    """
    _check_objects(connection, layout)
    head = Head(0, GENESIS)
    try:
        for number, kind, body, digest in connection.execute("SELECT id, kind, body, hash FROM chain ORDER BY id"):
            wanted = head.row + 1
            if number != wanted:
                raise ChainError(wanted, f"missing, row {number} comes next" if number > wanted else f"row {number} inserted")
            if not (isinstance(kind, str) and isinstance(body, str)):
                raise ChainError(number, "not text: changed")
            row = follow(head, kind, body)
            if row.hash != digest:
                before = f"row {head.row}" if head.row > 0 else "the beginning"
                raise ChainError(number, f"its hash does not follow from {before} and its content: changed, inserted or moved")
            _check_body(row, layout)
            yield row
            head = row.head
    except sqlite3.Error as error:
        raise ChainError(head.row + 1, f"cannot be read ({error}): the file is damaged") from None


def last_head(connection: sqlite3.Connection) -> Head:
    """The newest row's."""
    found = connection.execute("SELECT id, hash FROM chain ORDER BY id DESC LIMIT 1").fetchone()
    return Head(0, GENESIS) if found is None else Head(*found)


def refuse_other_station(path: Path, connection: sqlite3.Connection, station: str) -> None:
    """Raises StationError where the newest start in a journal is of a station with another name."""
    for (body,) in connection.execute(f"SELECT body FROM chain WHERE kind = '{EVENT}' ORDER BY id DESC"):
        event = json.loads(body)
        if event["event"] == "started":
            other = event["details"].get("station", station)
            if other != station:
                raise StationError(
                    f"{path}: the journal of station {other!r}, configured is {station!r}; give each a journal of its own"
                )
            return


def open_for_reading(path: Path, layout: Layout = JOURNAL) -> sqlite3.Connection:
    """Open a file with a chain and leave no trace, while a station writes to it or after.

    Raises:
        StationError: missing, or not a file of this layout that this program can read; EmptyError where nothing is in it yet.
    """
    if not path.is_file():
        raise StationError(f"{path}: no such file; expected {layout.what}")
    refuse_other_files(path)
    # without a write-ahead log nobody writes: then the file alone is read, also from a medium that cannot be written
    immutable = "" if os.path.exists(f"{path}-wal") else "&immutable=1"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True)
        connection.text_factory = _decode
        if is_new(connection, path, layout):
            connection.close()
            raise EmptyError(f"{path}: an empty database, expected {layout.what}")
        return connection
    except sqlite3.Error as error:
        raise StationError(f"{path}: not {layout.what} that can be read ({error}); give another file") from None


def refuse_other_files(path: Path) -> None:
    """Raises StationError for a file that is no SQLite database; an empty or missing one may become one.

    One with a rollback journal beside it was cut off while SQLite made it, which SQLite then undoes.
    """
    if os.path.exists(f"{path}-journal"):
        return
    try:
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StationError(f"{path}: cannot be read ({error.strerror or error}); expected a journal file") from None
    if start.startswith(b"{"):
        raise StationError(
            f"{path}: a journal of JSON lines, as earlier versions wrote them; expected an SQLite journal:"
            " keep that file, and give this station another name, such as journal.db"
        )
    if start not in (b"", _SQLITE):
        raise StationError(f"{path}: not a station's journal; give another file")


def is_new(connection: sqlite3.Connection, path: Path, layout: Layout = JOURNAL) -> bool:
    """True for an empty database. Raises StationError for another program's, and for a newer one."""
    with _one_state(connection):  # somebody else may be making it right now
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, objects) == (0, 0, 0):
        return True
    if application != layout.application_id:
        raise StationError(f"{path}: a database of another program, expected {layout.what}; give another file")
    if version != SCHEMA:
        raise StationError(f"{path}: journal schema {version}, expected {SCHEMA}; update the program or give another file")
    return False


@contextlib.contextmanager
def _one_state(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read within is of one moment; within a transaction it is so already."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def create(connection: sqlite3.Connection, layout: Layout = JOURNAL) -> None:
    """Make the tables, within the caller's transaction."""
    for statement in layout.objects.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {layout.application_id}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")


def renew(connection: sqlite3.Connection, layout: Layout = JOURNAL) -> None:
    """Bring an older file's views up to date, in one transaction; its rows stay as they are."""
    found = set(connection.execute("SELECT name, sql FROM sqlite_master"))
    old = [name for name, former in layout.former.items() if (name, former) in found]
    if old:
        connection.execute("BEGIN IMMEDIATE")
        for name in old:
            connection.execute(f"DROP VIEW {name}")
            connection.execute(layout.objects[name])
        connection.execute("COMMIT")


def _check_objects(connection: sqlite3.Connection, layout: Layout) -> None:
    """A view that leaves rows out, or a trigger that changes them, would deceive whoever looks with another tool."""
    try:
        found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    except sqlite3.Error as error:
        raise ChainError(1, f"cannot be read ({error}): the file is damaged") from None
    objects = {**layout.objects, **{name: sql for name, sql in layout.former.items() if found.get(name) == sql}}
    differing = sorted(name for name in found.keys() | objects.keys() if found.get(name) != objects.get(name))
    if differing:
        raise ChainError(1, f"the tables around the chain were changed: {', '.join(differing)}")


def _check_body(row: Row, layout: Layout) -> None:
    """A row of this program is canonical JSON; one that is not was forged together with its hash."""
    try:
        content = json.loads(row.body)
        types = _TYPES[row.kind]
        if (
            row.kind not in layout.kinds
            or not all(type(content[key]) is wanted for key, wanted in types.items())
            or canonical(content) != row.body
        ):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ChainError(row.number, "not what a station writes, though its hash follows: forged") from None


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
