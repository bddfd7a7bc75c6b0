"""What a service tells systemd: that it is ready, what it does, and that its deciding loop turns (sd_notify(3)).

The protocol is a datagram of `NAME=value` lines to the socket that NOTIFY_SOCKET names. Without that variable nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping


class Notifier:
    """Tells systemd. Nothing here waits or raises: a manager that does not listen must hold up no part."""

    def __init__(self, environment: Mapping[str, str] = os.environ, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Take the socket's address and the watchdog's time from the environment.

        Args:
            environment: NOTIFY_SOCKET, a path or `@` and an abstract name; WATCHDOG_USEC and WATCHDOG_PID.
            now_ns: monotonic time.
        """
        self._now_ns = now_ns
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "")
        self._period_ns = int(usec) * 1000 // 4 if mine and usec.isdecimal() else None  # four chances to be heard in time
        self._ping_ns = 0
        self._status = ""
        self._started = False

    def ready(self) -> None:
        """The start is over."""
        self._started = True
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again."""
        if self._started:
            self._send("RELOADING=1", f"MONOTONIC_USEC={self._now_ns() // 1000}")

    def reloaded(self) -> None:
        """That is over. To a manager this is `READY=1` again, which nothing may say before the start is over."""
        if self._started:
            self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent where it is another one."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={' '.join(text.split())}")

    def turn(self) -> None:
        """The deciding loop turns: ping the watchdog, where it is due. For that loop alone."""
        now_ns = self._now_ns()
        if self._period_ns is not None and now_ns >= self._ping_ns:
            self._ping_ns = now_ns + self._period_ns
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Release the socket; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)
