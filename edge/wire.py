"""What vision and the rejector say to each other: small messages of one size over a socket that keeps their bounds."""

from __future__ import annotations

import enum
import socket
import struct
from dataclasses import dataclass

from edge import StationError

VERSION = 2
_FORMAT = struct.Struct("<BBxxxxxxqq")


class Kind(enum.IntEnum):
    """What a message is about; `number` and `value` mean what stands here."""

    HELLO = 1
    """Up: the lines are driven; `value` is the real-time priority that the process got, 0 for none."""
    BEAT = 2
    """Down, and answered at once: the deciding loop turns; `number` is 1 where the station is ready, 0 where nothing may pass.
    Up: the rejector turns; `number` are `Flag` bits; each part that triggered by `value`, monotonic ns, was told before."""
    TRIGGER = 3
    """Up: part `number` triggered at `value`, monotonic ns."""
    ANNOUNCE = 4
    """Down: part `number` triggered at `value`, monotonic ns."""
    VERDICT = 5
    """Down: part `number` passes where `value` is 1."""
    BYE = 6
    """Down: vision ends; reject and report. Up: the report is complete."""
    COUNT = 7
    """Up: `value` of `schedule.Count` `number`."""
    TIMING = 8
    """Down: `value` of `schedule.RETIMED` `number`; with the last number, all that were said hold for parts to come."""
    CODE = 9
    """Up: the recipe lines say code `number`."""


class Flag(enum.IntFlag):
    """State of the rejector in a BEAT."""

    READY = 1
    FAULT = 2


@dataclass(frozen=True)
class Message:
    """One message; the numbers are int64."""

    kind: Kind
    number: int = 0
    value: int = 0


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, neither of which blocks."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def send(end: socket.socket, message: Message) -> None:
    """Send one. Raises OSError: the other side is gone, or has not read for long."""
    end.send(_FORMAT.pack(VERSION, message.kind, message.number, message.value))


def receive(end: socket.socket) -> tuple[list[Message], bool]:
    """All messages that are there, and whether the other side is gone. Raises StationError for another version's message."""
    messages: list[Message] = []
    while True:
        try:
            data = end.recv(_FORMAT.size + 1)
        except BlockingIOError:
            return messages, False
        except ConnectionError:
            return messages, True
        if data == b"":
            return messages, True
        if len(data) != _FORMAT.size or data[0] != VERSION:
            raise StationError(
                f"message of {len(data)} bytes, version {data[0]}, expected {_FORMAT.size} bytes, version {VERSION};"
                " vision and rejector are of different releases, install one"
            )
        _, kind, number, value = _FORMAT.unpack(data)
        try:
            messages.append(Message(Kind(kind), number, value))
        except ValueError:
            raise StationError(f"message of kind {kind}, expected {', '.join(map(str, map(int, Kind)))}") from None
