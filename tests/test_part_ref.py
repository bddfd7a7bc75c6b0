"""References: bounded, and each belongs to the part it is said to belong to, or to none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import StationError
from edge.part_ref import FileReferences, HeldReferences, QueuedReferences, ReferencedCamera, Refusals, check_ref
from edge.verdict import Arrival, Frame, Missing
from tests.fakes import FakeClock, flat

MS = 1_000_000


@pytest.mark.parametrize("text", ["LOT-7", "x" * 128, "Größe 3/4", "部品-1", "a b"])
def test_printable_text_up_to_128_characters_is_a_reference(text: str) -> None:
    assert check_ref(f"  {text}\r\n") == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "of 0 characters, expected 1 to 128"),
        (" \t ", "of 0 characters"),
        ("x" * 129, "of 129 characters, expected 1 to 128"),
        ("a\x00b", r"the character U\+0000, expected printable"),
        ("a\x1b[2Jb", r"U\+001B"),
        ("a\nb", r"U\+000A"),
        ("right\u202eleft", r"U\+202E"),
        (b"\xff\xfe".decode("utf-8", "surrogateescape"), r"U\+DCFF"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(StationError, match=reason):
        check_ref(text)


def test_refusals_are_journalled_once_in_ten_seconds_with_their_number() -> None:
    clock = FakeClock()
    notes: list[tuple[str, object]] = []
    refusals = Refusals(lambda name, details: notes.append((name, dict(details))), clock)
    for _ in range(5):
        refusals.add("http", "too long")
    clock.advance_ms(10_000)
    refusals.add("http", "empty")
    assert notes == [
        ("part_ref refused", {"source": "http", "reason": "too long", "refused": 1}),
        ("part_ref refused", {"source": "http", "reason": "empty", "refused": 5}),
    ]
    assert refusals.count == 6


def test_a_reference_holds_for_parts_that_triggered_after_it_was_set() -> None:
    clock = FakeClock(100)
    held = HeldReferences(clock)
    assert held.take(50) is None
    held.set("A")
    clock.sleep_until_ns(200)
    held.set("B")
    clock.sleep_until_ns(300)
    held.set(None)
    # asked for late, as a part that waited is, each still has the one of its time
    assert [held.take(at_ns) for at_ns in (99, 100, 150, 199, 200, 299, 300, 400)] == [
        None, "A", "A", "A", "B", "B", None, None,
    ]  # fmt: skip
    assert held.counts == {"references set": 3}


def queue(clock: FakeClock, min_age_ms: float = 0, max_age_ms: float = 1000) -> QueuedReferences:
    return QueuedReferences(clock, min_age_ns=round(min_age_ms * MS), max_age_ns=round(max_age_ms * MS))


def test_references_queue_in_order_and_one_that_no_part_took_is_dropped_and_counted() -> None:
    clock = FakeClock(0)
    queued = queue(clock)
    for part_ref in ("A", "B", "C"):
        queued.add(part_ref)
        clock.advance_ms(400)
    # read at 0, 400 and 800 ms
    assert queued.take(1000 * MS) == "A"  # as old as may be
    assert queued.take(1401 * MS) == "C"  # B is older than a second
    assert queued.take(1402 * MS) is None
    assert queued.counts == {"references read": 3, "references surplus": 1, "parts without reference": 1}


def test_a_reference_that_was_read_after_the_trigger_is_the_next_parts() -> None:
    clock = FakeClock(500 * MS)
    queued = queue(clock)
    queued.add("A")
    assert queued.take(499 * MS) is None
    assert queued.take(500 * MS) == "A"


def test_more_than_64_in_the_queue_drop_the_oldest() -> None:
    clock = FakeClock(0)
    queued = queue(clock)
    for number in range(70):
        queued.add(str(number))
    assert queued.take(0) == "6"
    assert queued.counts["references surplus"] == 6


@given(
    st.lists(st.tuples(st.integers(100, 400), st.integers(-40, 40), st.booleans()), min_size=1, max_size=40),
    st.integers(300, 1500),
)
def test_with_the_way_from_scanner_to_trigger_known_no_part_gets_anothers(
    parts: list[tuple[int, int, bool]], way_ms: int
) -> None:
    """Parts at least 100 ms apart, 40 ms of play on the way, some labels not read: three and more parts on the way at once."""
    clock = FakeClock(0)
    queued = queue(clock, way_ms - 40, way_ms + 40)
    events: list[tuple[int, int, str | None]] = []
    scanned_ms = 0
    for number, (gap_ms, play_ms, read) in enumerate(parts):
        scanned_ms += gap_ms
        if read:
            events.append((scanned_ms, 0, str(number)))
        events.append((scanned_ms + way_ms + play_ms, 1, str(number) if read else None))
    for at_ms, kind, part_ref in sorted(events, key=lambda event: event[:2]):
        clock.sleep_until_ns(at_ms * MS)
        if kind == 0:
            assert part_ref is not None
            queued.add(part_ref)
        else:
            assert queued.take(at_ms * MS) == part_ref
    assert queued.counts["references surplus"] == 0


class Files:
    """A file of references, and what was refused."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "order.txt"
        self.clock = FakeClock(0)
        self.notes: list[object] = []
        refusals = Refusals(lambda name, details: self.notes.append(details["reason"]), self.clock)
        self.references = FileReferences(self.path, self.clock, refusals, poll_s=0)

    def look(self, times: int = 2) -> str | None:
        for _ in range(times):
            self.clock.advance_ms(20_000)
            self.references.look()
        return self.references.take(self.clock.now_ns())


def test_a_file_is_believed_once_it_was_seen_unchanged_twice(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.path.write_text("ORDER-1\n")
    assert files.look(1) is None
    assert files.look(1) == "ORDER-1"
    files.path.write_text("OR")  # the other system is in the middle of it
    assert files.look(1) == "ORDER-1"
    files.path.write_text("ORDER-2\n")
    assert files.look(1) == "ORDER-1"
    assert files.look(1) == "ORDER-2"
    assert files.look(5) == "ORDER-2"
    assert files.references.counts == {"references set": 2}
    assert files.notes == []


@pytest.mark.parametrize(("content", "reason"), [(b"x" * 200, "200 characters"), (b"\xff", r"U+DCFF"), (b"a\nb", "U+000A")])
def test_a_content_that_is_no_reference_leaves_none_and_is_told_once(tmp_path: Path, content: bytes, reason: str) -> None:
    files = Files(tmp_path)
    files.path.write_text("A")
    assert files.look() == "A"
    files.path.write_bytes(content)
    assert files.look(6) is None
    (told,) = files.notes
    assert reason in str(told)


def test_an_empty_file_is_no_reference_and_a_missing_one_is_told(tmp_path: Path) -> None:
    files = Files(tmp_path)
    missing = "cannot be read (No such file or directory)"
    assert files.look(5) is None
    assert files.notes == [missing]
    files.path.write_text("A")
    assert files.look() == "A"
    files.path.write_text("\n")
    assert files.look() is None
    assert files.notes == [missing]
    files.path.write_text("B")
    assert files.look() == "B"
    files.path.unlink()
    assert files.look(5) is None
    assert files.notes == [missing, missing]


def test_a_file_is_looked_at_by_a_thread(tmp_path: Path) -> None:
    path = tmp_path / "order.txt"
    path.write_text("A")
    clock = FakeClock(0)
    references = FileReferences(path, clock, Refusals(lambda name, details: None, clock), poll_s=0.001)
    thread = references._thread
    assert thread is not None
    while references.counts["references set"] == 0 and thread.is_alive():
        thread.join(0.002)
    assert references.take(0) == "A"
    references.close()
    references.close()
    assert not thread.is_alive()


class Camera:
    """One frame and one part without a picture, which brought a reference of its own."""

    def __init__(self) -> None:
        self.closed = 0

    def frames(self) -> Iterator[Arrival]:
        yield Frame(flat(1), 1, 12, 10, "1")
        yield Missing(2, 20, "2", "late", "own")
        yield Frame(flat(1), 3, 32, 30, "3")

    def close(self) -> None:
        self.closed += 1


def test_parts_get_the_reference_of_their_trigger_and_keep_one_that_came_with_it() -> None:
    clock = FakeClock(5)
    queued = queue(clock)
    for part_ref in ("A", "B", "C"):
        queued.add(part_ref)
    camera = Camera()
    referenced = ReferencedCamera(camera, queued)
    assert [(arrival.part, arrival.part_ref) for arrival in referenced.frames()] == [(1, "A"), (2, "own"), (3, "C")]
    referenced.close()
    assert camera.closed == 1
