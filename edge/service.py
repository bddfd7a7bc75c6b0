"""The station as a service: signals reach the deciding loop between two parts, and systemd hears what becomes of them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from edge.reload import Reload
from edge.station import Station
from edge.systemd import Notifier


class Service:
    """Ends the station at SIGTERM, and reads its configuration again at SIGHUP."""

    def __init__(
        self,
        station: Station,
        notifier: Notifier,
        read: Callable[[], Reload],
        apply: Callable[[Reload], None],
        say: Callable[[str], None],
        complain: Callable[[str], None],
    ) -> None:
        """Join the pieces.

        Args:
            station: that runs in the main thread.
            notifier: told of each.
            read: reads the configuration and checks it; called in a thread of its own, for it may take long.
            apply: makes it the station's; called between two parts, on the deciding thread. May refuse as `read` does.
            say, complain: told in one line what came of a reload.
        """
        self._station = station
        self._notifier = notifier
        self._read = read
        self._apply = apply
        self._say = say
        self._complain = complain
        self._reading: threading.Thread | None = None
        self._again = False

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Heed SIGTERM and SIGHUP. The handlers only leave word: what they interrupt may be half done."""
        handlers = {
            signal.SIGTERM: lambda _signal, _frame: self._station.stop("SIGTERM"),
            signal.SIGHUP: lambda _signal, _frame: self._station.post(self.reload),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def reload(self) -> None:
        """Begin to read the configuration again; on the deciding thread. One that is asked for meanwhile follows."""
        if self._reading is not None:
            self._again = True
            return
        self._notifier.reloading()
        self._reading = threading.Thread(target=self._work, name="reload", daemon=True)
        self._reading.start()

    def _work(self) -> None:
        try:
            fresh = self._read()
        except Exception as error:  # whatever reading raises, the old configuration goes on
            refused = str(error)
            self._station.post(lambda: self._refuse(refused))
        else:
            self._station.post(lambda: self._take(fresh))

    def _take(self, fresh: Reload) -> None:
        try:
            self._apply(fresh)
        except Exception as error:  # as in _work
            self._refuse(str(error))
            return
        self._station.note("reloaded", {"changed": list(fresh.changed)})
        self._say(f"reloaded: {', '.join(fresh.changed) or 'nothing changed'}")
        self._over()

    def _refuse(self, reason: str) -> None:
        reason = " ".join(reason.split())
        self._station.note("reload refused", {"reason": reason})
        self._complain(f"the configuration is not taken, the old one goes on: {reason}")
        self._over()

    def _over(self) -> None:
        self._notifier.reloaded()
        self._reading = None
        if self._again:
            self._again = False
            self.reload()
