"""What systemd hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.systemd import Notifier


class Manager:
    """The other end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every datagram that came."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def listen() -> Iterator[Callable[[str], Manager]]:
    """Opens managers' ends and closes them after the test."""
    opened: list[Manager] = []

    def begin(address: str) -> Manager:
        opened.append(Manager(address))
        return opened[-1]

    yield begin
    for manager in opened:
        manager.socket.close()


def test_what_is_said_word_for_word(tmp_path: Path, listen: Callable[[str], Manager]) -> None:
    path = str(tmp_path / "notify")
    manager = listen(path)
    notifier = Notifier({"NOTIFY_SOCKET": path}, now_ns=lambda: 12_345_678_900)
    notifier.status("initialized: everything\nis there")
    notifier.reloading()
    notifier.reloaded()
    notifier.ready()
    notifier.reloading()
    notifier.reloaded()
    notifier.stopping()
    assert manager.heard() == [
        "STATUS=initialized: everything is there",  # a second line would be another variable
        "READY=1",  # what is read again before that is no reload to systemd
        "RELOADING=1\nMONOTONIC_USEC=12345678",
        "READY=1",
        "STOPPING=1",
    ]
    notifier.close()
    notifier.close()
    notifier.ready()
    assert manager.heard() == []


def test_an_abstract_socket(listen: Callable[[str], Manager]) -> None:
    name = f"reb-test-{os.getpid()}"
    manager = listen(f"\0{name}")
    notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    notifier.close()


def test_the_watchdog_is_pinged_four_times_in_its_time_and_not_more_often(
    tmp_path: Path, listen: Callable[[str], Manager]
) -> None:
    path, now_ns = str(tmp_path / "notify"), 10**12
    manager = listen(path)
    environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environment, now_ns=lambda: now_ns)
    pings = []
    for ms in range(0, 2001, 100):
        now_ns = 10**12 + ms * 10**6
        notifier.turn()
        pings += [ms for _ in manager.heard()]
    assert pings == [0, 500, 1000, 1500, 2000]
    notifier.close()


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_without_a_watchdog_of_its_own_it_does_not_ping(
    tmp_path: Path, listen: Callable[[str], Manager], watchdog: dict[str, str]
) -> None:
    path = str(tmp_path / "notify")
    manager = listen(path)
    notifier = Notifier({"NOTIFY_SOCKET": path, **watchdog})
    notifier.turn()
    assert manager.heard() == []
    notifier.close()


def test_a_status_that_stays_is_said_once(tmp_path: Path, listen: Callable[[str], Manager]) -> None:
    path = str(tmp_path / "notify")
    manager = listen(path)
    notifier = Notifier({"NOTIFY_SOCKET": path})
    for text in ("ready", "ready", "halted"):
        notifier.status(text)
    assert manager.heard() == ["STATUS=ready", "STATUS=halted"]
    notifier.close()


def test_away_from_systemd_nothing_is_sent_and_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        notifier = Notifier(environment)
        for say in (notifier.ready, notifier.reloading, notifier.stopping, notifier.turn):
            say()
        notifier.close()


def test_a_manager_that_does_not_read_holds_nothing_up(tmp_path: Path, listen: Callable[[str], Manager]) -> None:
    path = str(tmp_path / "notify")
    manager = listen(path)
    notifier = Notifier({"NOTIFY_SOCKET": path})
    for _ in range(2000):  # more than a socket holds
        notifier.ready()
    assert 0 < len(manager.heard()) < 2000
    notifier.close()
