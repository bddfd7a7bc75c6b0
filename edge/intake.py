"""Joins a camera with what makes its parts and with their references, as the configuration says. It chooses implementations."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from edge import StationError
from edge.agreement import parse_address
from edge.announcing import AnnouncingRejector
from edge.camera import Camera
from edge.camera_sections import FolderSource
from edge.clock import SystemClock
from edge.commands import Handlers, Json, Verdicts
from edge.control import ControlServer, read_token
from edge.part_ref import (
    FileReferences,
    HeldReferences,
    Note,
    QueuedReferences,
    ReferencedCamera,
    References,
    Refusals,
    check_ref,
)
from edge.presence import EmptyScene, Presence, load_empty
from edge.presence_camera import AheadCamera, PresenceCamera
from edge.rejector import ProcessRejector, Rejector
from edge.scanner import SerialReferences
from edge.sections import (
    FilePartRef,
    HttpPartRef,
    LineTrigger,
    PresenceTrigger,
    SerialPartRef,
    SoftwareTrigger,
    StationConfig,
    TimerTrigger,
)
from edge.text_lines import LineReader
from edge.trigger import LineTriggers, SoftwareTriggers, TimerTriggers, Triggers
from edge.triggered_camera import TriggeredCamera
from edge.verdict import Arrival, Verdict


def waits_for_station(config: StationConfig) -> bool:
    """A replay without a beat of its own: its frames come when they are asked for."""
    return isinstance(config.source, FolderSource) and config.source.fps is None


def looks_aside(config: StationConfig) -> bool:
    """Frames are taken from the camera by a thread beside the deciding loop, which so must not beat for it."""
    return isinstance(config.triggered, PresenceTrigger) and not waits_for_station(config)


def load_scene(wanted: PresenceTrigger) -> EmptyScene:
    """Its empty scene. Raises StationError: not there, or learnt for another region."""
    scene = load_empty(wanted.empty)
    if wanted.region is not None and wanted.region != scene.region:
        raise StationError(
            f"{wanted.empty}: learnt for the region {list(scene.region)}, configured is {list(wanted.region)};"
            " learn it again with `python -m edge empty`"
        )
    return scene


def make_presence(wanted: PresenceTrigger, note: Note = lambda name, details: None) -> Presence:
    """The presence test that a configuration describes. Raises StationError as `load_scene`."""
    return Presence(load_scene(wanted), enters=wanted.enters, share=wanted.share, blind_s=wanted.blind_s, note=note)


def join_triggers(
    camera: Camera, triggers: Triggers, rejector: Rejector, *, replayed: bool = False
) -> tuple[TriggeredCamera, Rejector]:
    """A camera whose parts are those of the triggers, and a rejector that hears of each one while its picture is waited for.

    Args:
        camera: closed with the one that comes back.
        triggers: a trigger line's come from the rejector itself, which needs not be told.
        rejector: closed with the one that comes back.
        replayed: as for `TriggeredCamera`.
    """
    joined = TriggeredCamera(camera, triggers, replayed=replayed)
    return joined, rejector if isinstance(triggers, LineTriggers) else AnnouncingRejector(rejector, joined)


class Intake:
    """What the station takes its parts from.

    Attributes:
        camera: gives one arrival for each part.
        rejector: to be told of them.
        trigger: makes a part, from any thread, and returns its number; None where that is not how parts are made.
        set_part_ref: sets the reference of the parts that follow, from any thread; None where they come from elsewhere.
    """

    def __init__(self, config: StationConfig, camera: Camera, rejector: Rejector, beat: Callable[[], None], note: Note) -> None:
        """Join them, and start to take triggers and references.

        Args:
            config: of the station.
            camera: closed by the caller, after this.
            rejector: closed by the caller.
            beat: for the deciding loop while it waits.
            note: journals an event, from any thread.

        Raises:
            StationError: no empty scene, no scanner, or a trigger line without a rejector that owns it.
        """
        clock = SystemClock()
        self._closing = contextlib.ExitStack()
        self._refusals = Refusals(note, clock)
        self._verdicts = Verdicts()
        self._control = config.control
        self._counters: list[Counter[str]] = []
        self._triggered: TriggeredCamera | None = None
        self._ahead: AheadCamera | None = None
        self._referenced: ReferencedCamera | None = None
        self._reads: SoftwareTriggers | None = None
        self.camera = camera
        self.rejector = rejector
        self.trigger: Callable[[str | None], int] | None = None
        self.set_part_ref: Callable[[str | None], None] | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._watch(config, beat, note)
            triggers = self._triggers(config, beat)
            if triggers is not None:
                self._counters.append(triggers.counts)
                self._closing.callback(triggers.close)
                self._triggered, self.rejector = join_triggers(
                    self.camera, triggers, self.rejector, replayed=waits_for_station(config)
                )
                self.camera = self._triggered
            references = self._references(config, clock)
            if references is not None:
                self._counters.append(references.counts)
                self._closing.callback(references.close)
                self.camera = self._referenced = ReferencedCamera(self.camera, references)
            if isinstance(triggers, SoftwareTriggers):
                self._listen(config, triggers)
            undo.pop_all()

    def begin(self) -> None:
        """The station is ready: what waits on standard input are parts from now on. May be called again."""
        triggers, self._reads = self._reads, None
        if triggers is None:
            return
        reader = read_triggers(sys.stdin.fileno(), triggers, self._refusals, ends=self.trigger is None)
        self._closing.callback(reader.close)
        self._closing.callback(triggers.close)  # first, so that no line waits for room

    def waiting(self) -> int:
        """Parts that triggered and have no arrival yet. Raises StationError: the rejector is lost."""
        if self._triggered is not None:
            return self._triggered.waiting
        return 0 if self._ahead is None else len(self._ahead.pending())

    def rest(self, reason: str) -> Iterator[Arrival]:
        """What is left of the parts that triggered, without pictures, where the station ends before their turn."""
        waiting = self._triggered or self._ahead
        if waiting is None:
            return iter(())
        left = waiting.rest(reason)
        return left if self._referenced is None else self._referenced.refer(left)

    def serve(
        self,
        status: Callable[[], Json],
        *,
        change_recipe: Callable[[str, str, str], str] | None = None,
        roll_back: Callable[[str, str], str] | None = None,
        halt: Callable[[str, str], None] | None = None,
        resume: Callable[[str, str], None] | None = None,
        reset_drift: Callable[[str, str], None] | None = None,
        challenge: Callable[[str], None] | None = None,
    ) -> None:
        """Open the control, where there is one; what it may call is given, as in `edge.commands.Handlers`.

        Raises:
            StationError: its address cannot be had, or its token not be read.
        """
        if self._control is None:
            return
        handlers = Handlers(
            status=status,
            trigger=self.trigger,
            verdict=self._verdicts.wait,
            part_ref=self.set_part_ref,
            refused=lambda reason: self._refusals.add("http", reason),
            change_recipe=change_recipe,
            roll_back=roll_back,
            halt=halt,
            resume=resume,
            reset_drift=reset_drift,
            challenge=challenge,
        )
        token = None if self._control.token is None else read_token(self._control.token)
        self._closing.callback(ControlServer(parse_address(self._control.address), handlers, token).close)
        self._closing.callback(self._verdicts.close)

    def tell(self, verdict: Verdict) -> None:
        """A part was judged: for whoever waits for it."""
        self._verdicts.tell(verdict)

    def counts(self) -> dict[str, int]:
        """What became of triggers and references, by name."""
        counts: Counter[str] = Counter()
        for counter in self._counters:
            counts.update(dict(counter))
        if self._refusals.count > 0:
            counts["references refused"] = self._refusals.count
        return {name: count for name, count in sorted(counts.items()) if count > 0}

    def close(self) -> None:
        """Take no more; may be called twice."""
        self._closing.close()

    def _watch(self, config: StationConfig, beat: Callable[[], None], note: Note) -> None:
        wanted = config.triggered
        if not isinstance(wanted, PresenceTrigger):
            return
        presence = make_presence(wanted, note)
        camera = self.camera
        if not looks_aside(config):
            self.camera = PresenceCamera(camera, presence, SystemClock(), beat)
            return
        ahead = self._ahead = AheadCamera(lambda go: PresenceCamera(camera, presence, SystemClock(), go), beat, wanted.waiting)
        self._closing.callback(ahead.close)
        self._counters.append(ahead.counts)
        self.camera = ahead
        self.rejector = AnnouncingRejector(self.rejector, ahead)

    def _triggers(self, config: StationConfig, beat: Callable[[], None]) -> Triggers | None:
        wanted = config.triggered
        if isinstance(wanted, LineTrigger):
            if not isinstance(self.rejector, ProcessRejector):
                raise StationError("a trigger line needs the rejector's process, which owns it")
            return LineTriggers(self.rejector, beat, wanted.waiting)
        if isinstance(wanted, TimerTrigger):
            return TimerTriggers(SystemClock(beat), round(wanted.period_ms * 1e6))
        if isinstance(wanted, SoftwareTrigger):
            return SoftwareTriggers(SystemClock(), beat, wanted.waiting)
        return None

    def _references(self, config: StationConfig, clock: SystemClock) -> References | None:
        wanted = config.part_ref
        if isinstance(wanted, HttpPartRef):
            held = HeldReferences(clock)
            self.set_part_ref = held.set
            return held
        if isinstance(wanted, FilePartRef):
            return FileReferences(wanted.path, clock, self._refusals)
        if isinstance(wanted, SerialPartRef):
            ages = {"min_age_ns": round(wanted.min_age_ms * 1e6), "max_age_ns": round(wanted.max_age_ms * 1e6)}
            return SerialReferences(wanted.device, wanted.baud, QueuedReferences(clock, **ages), self._refusals)
        return None

    def _listen(self, config: StationConfig, triggers: SoftwareTriggers) -> None:
        wanted = config.triggered
        by = wanted.by if isinstance(wanted, SoftwareTrigger) and wanted.by is not None else ()
        if "http" in by:
            self.trigger = triggers.trigger
        self._reads = triggers if "stdin" in by else None


def read_triggers(descriptor: int, triggers: SoftwareTriggers, refusals: Refusals, *, ends: bool = True) -> LineReader:
    """Start to make a part of each line, its text the part's reference, none where the line is empty or no reference.

    Args:
        descriptor: read by a thread; its writer waits where far too many parts do.
        triggers: take the parts; to be closed before the reader.
        refusals: are told of lines that are no references.
        ends: close the triggers at the end of the file.
    """

    def line(text: str) -> None:
        part_ref: str | None = None
        if text.strip():
            try:
                part_ref = check_ref(text)
            except StationError as error:  # the part is one all the same
                refusals.add("standard input", str(error))
        with contextlib.suppress(StationError):  # the run is over
            triggers.trigger(part_ref, wait=True)

    def end(_reason: str) -> None:
        if ends:
            triggers.close()

    return LineReader(descriptor, line, end, "standard input")
