"""The chain: whatever is done to a row, somebody who looks finds the first one that is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import StationError
from edge.audit import audit
from edge.chain import EVENT, GENESIS, Head, canonical, create, follow, open_for_reading

ROWS = 12
EVENTS = [canonical({"run": "r", "recorded": "2024", "event": f"e{number}", "details": {}}) for number in range(1, ROWS + 1)]


def write(path: Path) -> list[Head]:
    """A chain of 12 events; returns the head after each."""
    heads, head = [], Head(0, GENESIS)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        create(connection)
        for body in EVENTS:
            row = follow(head, EVENT, body)
            connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (row.number, row.kind, row.body, row.hash))
            head = row.head
            heads.append(head)
    return heads


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that nobody touched."""
    path = tmp_path_factory.mktemp("chain") / "journal.db"
    write(path)
    return path


@contextlib.contextmanager
def tampering(whole: Path, folder: Path) -> Iterator[tuple[Path, sqlite3.Connection]]:
    """A copy to tamper with."""
    path = folder / "copy.db"
    shutil.copyfile(whole, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield path, connection


def test_two_rows_by_hand(tmp_path: Path) -> None:
    first, second = EVENTS[:2]
    one = hashlib.sha256(("0" * 64 + "\n1\nevent\n" + first).encode()).hexdigest()
    two = hashlib.sha256((one + "\n2\nevent\n" + second).encode()).hexdigest()
    assert first == '{"details":{},"event":"e1","recorded":"2024","run":"r"}'
    assert [head.hash for head in write(tmp_path / "journal.db")[:2]] == [one, two]


def test_a_whole_chain(whole: Path) -> None:
    report = audit(whole)
    assert (report.broken, report.rows, report.head.row) == (None, ROWS, ROWS)


TAMPERING = {
    "a changed body": ("UPDATE chain SET body = replace(body, 'e5', 'e6') WHERE id = 5", "row 5: its hash does not follow"),
    "a changed kind": ("UPDATE chain SET kind = 'part' WHERE id = 5", "row 5: its hash does not follow"),
    "a changed hash": (f"UPDATE chain SET hash = '{'0' * 64}' WHERE id = 5", "row 5: its hash does not follow from row 4"),
    "a changed first row": ("UPDATE chain SET body = '{}' WHERE id = 1", "row 1: its hash does not follow from the beginning"),
    "a changed last row": ("UPDATE chain SET body = '{}' WHERE id = 12", "row 12: its hash does not follow"),
    "a blank more": ("UPDATE chain SET body = body || ' ' WHERE id = 5", "row 5: its hash does not follow"),
    "another type": ("UPDATE chain SET body = CAST(body AS BLOB) WHERE id = 5", "row 5: not text"),
    "another type of hash": ("UPDATE chain SET hash = CAST(hash AS BLOB) WHERE id = 5", "row 5: its hash does not follow"),
    "a deleted row": ("DELETE FROM chain WHERE id = 5", "row 5: missing, row 6 comes next"),
    "a deleted first row": ("DELETE FROM chain WHERE id = 1", "row 1: missing, row 2 comes next"),
    "deleted rows": ("DELETE FROM chain WHERE id BETWEEN 5 AND 9", "row 5: missing, row 10 comes next"),
    "an inserted first row": ("INSERT INTO chain SELECT 0, kind, body, hash FROM chain WHERE id = 1", "row 1: row 0 inserted"),
    "a row added": ("INSERT INTO chain SELECT 13, kind, body, hash FROM chain WHERE id = 12", "row 13: its hash does not"),
    "a row far behind": ("INSERT INTO chain SELECT 99, kind, body, hash FROM chain WHERE id = 12", "row 13: missing, row 99"),
    "a deleted row closed up": (
        "DELETE FROM chain WHERE id = 5; UPDATE chain SET id = -id WHERE id > 5; UPDATE chain SET id = -id - 1 WHERE id < 0",
        "row 5: its hash does not follow",
    ),
    "two rows exchanged": (
        "UPDATE chain SET id = 99 WHERE id = 5; UPDATE chain SET id = 5 WHERE id = 6; UPDATE chain SET id = 6 WHERE id = 99",
        "row 5: its hash does not follow",
    ),
    "another view": ("DROP VIEW parts; CREATE VIEW parts AS SELECT 1", "the tables around the chain were changed: parts"),
    "a trigger": (
        "CREATE TRIGGER late AFTER INSERT ON chain BEGIN DELETE FROM chain WHERE id = new.id; END",
        "the tables around the chain were changed: late",
    ),
    "no chain": ("DROP TABLE chain", "the tables around the chain were changed: chain, event_rows"),
}


@pytest.mark.parametrize("way", TAMPERING)
def test_every_kind_of_tampering_is_found(whole: Path, tmp_path: Path, way: str) -> None:
    statements, found = TAMPERING[way]
    with tampering(whole, tmp_path) as (path, connection):
        connection.executescript(statements)
    broken = audit(path).broken
    assert broken is not None
    assert found in broken


def test_rows_before_the_bad_one_are_counted(whole: Path, tmp_path: Path) -> None:
    with tampering(whole, tmp_path) as (path, connection):
        connection.execute("DELETE FROM chain WHERE id = 5")
    assert audit(path).rows == 4


def forge(connection: sqlite3.Connection, change: Callable[[int, str], str]) -> None:
    """Rewrite all rows, with hashes that follow: what a chain alone cannot see."""
    rows = connection.execute("SELECT id, kind, body FROM chain ORDER BY id").fetchall()
    head = Head(0, GENESIS)
    for number, kind, body in rows:
        row = follow(head, kind, change(number, body))
        connection.execute("UPDATE chain SET body = ?, hash = ? WHERE id = ?", (row.body, row.hash, number))
        head = row.head


def test_a_chain_written_anew_is_whole_and_no_head_fits_it(whole: Path, tmp_path: Path) -> None:
    heads = write(tmp_path / "journal.db")
    with tampering(whole, tmp_path) as (path, connection):
        forge(connection, lambda number, body: body.replace("e5", "e9"))
    assert audit(path).broken is None
    assert audit(path, heads[:4]).broken is None  # before the change
    assert "row 6: not the row that was there when its head was kept: rewritten" in str(audit(path, [heads[5]]).broken)
    assert f"no row or label has the hash {heads[7].hash}" in str(audit(path, digests=[heads[7].hash]).broken)


def test_an_end_cut_off_is_whole_and_a_head_finds_it(whole: Path, tmp_path: Path) -> None:
    heads = write(tmp_path / "journal.db")
    with tampering(whole, tmp_path) as (path, connection):
        connection.execute("DELETE FROM chain WHERE id > 9")
    assert audit(path).broken is None
    assert audit(path, heads[:9], [heads[8].hash]).broken is None
    assert audit(path, heads).broken == "row 10: missing, a head of row 12 was kept: the end was cut off"
    assert "the end was cut off" in str(audit(path, digests=[heads[9].hash]).broken)


def test_heads_that_contradict_each_other(whole: Path) -> None:
    assert audit(whole, [Head(3, "a" * 64), Head(3, "b" * 64)]).broken == "the heads give row 3 two hashes"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "7", '{"run":"r"}', '{"details":{}, "event":"e","recorded":"","run":"r"}', "[" * 9999]
)
def test_a_forged_row_that_no_station_writes(whole: Path, tmp_path: Path, body: str) -> None:
    with tampering(whole, tmp_path) as (path, connection):
        forge(connection, lambda number, old: body if number == 5 else old)
    assert audit(path).broken == "row 5: not what a station writes, though its hash follows: forged"


def mutate(connection: sqlite3.Connection, data: st.DataObject) -> None:
    """One change of any kind to any row, which may turn out to be none."""
    number = data.draw(st.integers(1, ROWS))
    column = data.draw(st.sampled_from(["id", "kind", "body", "hash", "row"]))
    if column == "row":
        connection.execute("DELETE FROM chain WHERE id = ?", (number,))
    elif column == "id":
        new = data.draw(st.integers(-3, 20))
        other = connection.execute("SELECT 1 FROM chain WHERE id = ?", (new,)).fetchone()
        if other is not None:
            connection.execute("UPDATE chain SET id = 1000 WHERE id = ?", (new,))
        connection.execute("UPDATE chain SET id = ? WHERE id = ?", (new, number))
        connection.execute("UPDATE chain SET id = ? WHERE id = 1000", (number,))
    else:
        (text,) = connection.execute(f"SELECT {column} FROM chain WHERE id = ?", (number,)).fetchone()
        start = data.draw(st.integers(0, len(text)))
        put = data.draw(st.text(max_size=3))
        cut = data.draw(st.integers(0, 3))
        connection.execute(f"UPDATE chain SET {column} = ? WHERE id = ?", (text[:start] + put + text[start + cut :], number))


@given(data=st.data())
def test_random_tampering_is_found_unless_it_changed_nothing(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with tampering(whole, tmp_path_factory.mktemp("copy")) as (path, connection):
        before = connection.execute("SELECT * FROM chain ORDER BY id").fetchall()
        mutate(connection, data)
        after = connection.execute("SELECT * FROM chain ORDER BY id").fetchall()
    first = next((number for number in range(1, ROWS + 1) if after[number - 1 : number] != before[number - 1 : number]), None)
    broken = audit(path, [Head(ROWS, before[-1][3])]).broken
    if before == after:
        assert broken is None
    else:
        assert first is not None
        assert str(broken).startswith(f"row {first}: ")


@given(at=st.integers(0, 2**16), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_in_the_file_is_found_or_touches_no_row(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    data = bytearray(whole.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("copy") / "copy.db"
    path.write_bytes(bytes(data))
    try:
        report = audit(path)
    except StationError:
        return  # not a journal any more
    if report.broken is None:
        with contextlib.closing(open_for_reading(path)) as one, contextlib.closing(open_for_reading(whole)) as other:
            rows = "SELECT * FROM chain ORDER BY id"
            assert one.execute(rows).fetchall() == other.execute(rows).fetchall()


def test_reading_leaves_no_trace(whole: Path) -> None:
    before = sorted(whole.parent.iterdir())
    data = whole.read_bytes()
    audit(whole)
    assert sorted(whole.parent.iterdir()) == before
    assert whole.read_bytes() == data


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StationError, match="no such file"):
        audit(tmp_path / "none.db")
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(StationError, match="an empty database"):
        audit(tmp_path / "empty.db")
    (tmp_path / "short.db").write_bytes(b"SQLite format 3\0" + b"x" * 50)
    with pytest.raises(StationError, match="not a station's journal that can be read"):
        audit(tmp_path / "short.db")
