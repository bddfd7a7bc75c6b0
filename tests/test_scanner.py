"""A scanner on a serial port, over a pseudo-terminal; and the lines it sends."""

from __future__ import annotations

import contextlib
import os
import pty
import queue
import termios
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from edge import StationError, scanner
from edge.part_ref import QueuedReferences, Refusals
from edge.scanner import SerialReferences, open_serial
from edge.text_lines import LineReader
from tests.fakes import FakeClock


class Port:
    """Both ends of a serial line: `device` is the station's, `send` what the scanner does."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.device = Path(os.ttyname(theirs))
        self._theirs = theirs  # held open, as the station may close and open it

    def send(self, data: bytes) -> None:
        os.write(self._ours, data)

    def unplug(self) -> None:
        for descriptor in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def port() -> Iterator[Port]:
    """A port that is unplugged in the end."""
    opened = Port()
    yield opened
    opened.unplug()


class Heard(QueuedReferences):
    """Says when a label was read."""

    def __init__(self) -> None:
        super().__init__(FakeClock(0), min_age_ns=0, max_age_ns=10**9)
        self.labels: queue.Queue[str] = queue.Queue()

    def add(self, part_ref: str) -> None:
        super().add(part_ref)
        self.labels.put(part_ref)


class Told:
    """Events, one by one."""

    def __init__(self) -> None:
        self.events: queue.Queue[Mapping[str, object]] = queue.Queue()
        self.refusals = Refusals(lambda name, details: self.events.put(details), FakeClock())


def test_labels_are_read_in_order_and_what_is_none_is_refused(port: Port) -> None:
    heard, told = Heard(), Told()
    references = SerialReferences(port.device, 9600, heard, told.refusals)
    port.send(b"SN-1\r\nSN-2\r\r\n\nSN")
    assert [heard.labels.get(timeout=20) for _ in range(2)] == ["SN-1", "SN-2"]
    port.send(b"-3\r" + b"x" * 200 + b"\r" + b"SN-4\n")
    assert [heard.labels.get(timeout=20) for _ in range(2)] == ["SN-3", "SN-4"]
    event = told.events.get(timeout=20)
    assert event["source"] == str(port.device)
    assert "200 characters" in str(event["reason"])
    assert [references.take(0) for _ in range(5)] == ["SN-1", "SN-2", "SN-3", "SN-4", None]
    references.close()
    references.close()
    assert references.counts["references read"] == 4


def test_what_waited_in_the_port_before_the_start_is_dropped(port: Port) -> None:
    port.send(b"OLD\n")
    heard = Heard()
    references = SerialReferences(port.device, 9600, heard, Told().refusals)
    port.send(b"NEW\n")
    assert heard.labels.get(timeout=20) == "NEW"
    references.close()


def test_the_port_is_set_raw_and_to_its_speed(port: Port) -> None:
    descriptor = open_serial(port.device, 115200)
    attributes = termios.tcgetattr(descriptor)
    os.close(descriptor)
    assert attributes[4] == attributes[5] == termios.B115200
    assert attributes[3] & (termios.ICANON | termios.ECHO) == 0
    assert attributes[2] & termios.CREAD


def test_a_scanner_that_is_lost_is_told_and_opened_again(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "_REOPEN_S", 0.01)
    heard, told = Heard(), Told()
    second = Port()
    opened: list[Path] = []

    def reopen(device: Path, baud: int) -> int:
        opened.append(device)
        if len(opened) == 1:
            return open_serial(device, baud)
        if len(opened) == 2:
            raise StationError("not yet")
        return open_serial(second.device, baud)

    monkeypatch.setattr(scanner, "open_serial", reopen)
    references = SerialReferences(port.device, 9600, heard, told.refusals)
    port.unplug()
    assert "the scanner is lost" in str(told.events.get(timeout=20)["reason"])
    while len(opened) < 3:
        threading.Event().wait(0.005)
    # what comes while the port is being opened is dropped, so send until one is heard
    label = None
    while label is None:
        second.send(b"SN-9\n")
        with contextlib.suppress(queue.Empty):
            label = heard.labels.get(timeout=0.05)
    assert label == "SN-9"
    assert references.counts["scanner lost"] == 1
    references.close()
    second.unplug()


def test_a_port_that_cannot_be_used_says_why(tmp_path: Path, port: Port) -> None:
    with pytest.raises(StationError, match=r"ttyNONE: the scanner cannot be opened \(No such file or directory\)"):
        open_serial(tmp_path / "ttyNONE", 9600)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StationError, match="file: not a serial port"):
        open_serial(tmp_path / "file", 9600)
    with pytest.raises(StationError, match="12345 baud, expected a usual speed"):
        open_serial(port.device, 12345)


def read_lines(*chunks: bytes) -> list[str]:
    """What a reader gives out for these pieces, each read by itself."""
    theirs, ours = os.pipe()
    lines: list[str] = []
    ended = threading.Event()
    reader = LineReader(theirs, lines.append, lambda reason: ended.set(), "test")
    for chunk in chunks:
        os.write(ours, chunk)
    os.close(ours)
    assert ended.wait(20)
    reader.close()
    os.close(theirs)
    return lines


@pytest.mark.parametrize(
    ("sent", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"", []),
        (b"x" * 5000 + b"\nb\n", ["x" * 1024, "b"]),
        (b"\xff\n", ["\udcff"]),
    ],
)
def test_lines_end_in_any_of_the_three_ways_and_are_bounded(sent: bytes, lines: list[str]) -> None:
    assert read_lines(sent) == lines
    if len(sent) < 100:
        assert read_lines(*(bytes([byte]) for byte in sent)) == lines


def test_a_line_that_ends_with_a_carriage_return_does_not_wait_for_what_follows() -> None:
    theirs, ours = os.pipe()
    lines: queue.Queue[str] = queue.Queue()
    reader = LineReader(theirs, lines.put, lambda reason: None, "test")
    os.write(ours, b"SN-1\r")
    assert lines.get(timeout=20) == "SN-1"
    os.write(ours, b"\nSN-2\r")
    assert lines.get(timeout=20) == "SN-2"
    reader.close()
    reader.close()
    os.close(theirs)
    os.close(ours)
