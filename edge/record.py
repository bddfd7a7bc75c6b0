"""`edge record`: good parts from the station's camera into a training folder. No line is driven and nothing is judged."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path

from edge.camera_sections import FolderSource
from edge.clock import SystemClock
from edge.config import load_config
from edge.intake import make_presence
from edge.presence_camera import PresenceCamera
from edge.run import open_camera
from edge.sections import PresenceTrigger, StationConfig
from edge.training_folder import Refused, TrainingFolder
from edge.verdict import Missing
from engines import EngineError, __version__, console


class _TimeIsUpError(Exception):
    """Ends a wait for a frame."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the door."""
    record = commands.add_parser("record", help="collect pictures of good parts in a training folder; nothing is judged")
    record.add_argument("--config", required=True, type=Path, metavar="FILE")
    record.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder that `train fit --data` takes; goes on in it"
    )
    record.add_argument("--count", type=console.positive_int, help="end with so many more pictures (default: at Ctrl-C)")
    record.add_argument("--seconds", type=console.positive_float, help="end after this time")
    record.add_argument(
        "--every", type=console.positive_float, metavar="MS", help="take a frame this often (default: each one)"
    )
    record.set_defaults(run=_record)


def _record(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    if arguments.every is not None and isinstance(config.source, FolderSource):
        config = config.model_copy(update={"source": config.source.model_copy(update={"fps": 1e3 / arguments.every})})
    with console.progress("reading what is there") as advance:
        folder = TrainingFolder(arguments.out, _about(config), advance)
    for line in folder.unreadable:
        console.warn(line)
    before = folder.there
    reason = "failed"
    try:
        reason = _collect(folder, config, arguments)
    finally:  # whatever ended it, what was collected is reviewed, noted and counted
        _end(folder, reason, before)
    wanted = arguments.count
    if reason == "interrupted" and (wanted is not None or arguments.seconds is not None):
        return console.INTERRUPTED
    return console.NO if wanted is not None and len(folder.kept) < wanted else console.DONE


def _collect(folder: TrainingFolder, config: StationConfig, arguments: argparse.Namespace) -> str:
    """Offer frame after frame; returns why it ended."""
    end = math.inf if arguments.seconds is None else time.monotonic() + arguments.seconds
    every_ns = 0 if arguments.every is None else round(arguments.every * 1e6)
    lines, due_ns = _Lines(), 0

    def beat() -> None:
        if time.monotonic() >= end:
            raise _TimeIsUpError

    with console.progress("kept") as advance, contextlib.ExitStack() as closing:
        closing.callback(lines.flush)
        try:
            camera = open_camera(config, beat)
            closing.callback(camera.close)
            if isinstance(config.triggered, PresenceTrigger):
                camera = PresenceCamera(camera, make_presence(config.triggered), SystemClock(), beat)
            for arrival in camera.frames():
                beat()
                if isinstance(arrival, Missing):
                    lines.say("no picture", f"{arrival.source}: {arrival.reason}")
                    folder.refused["no picture"] += 1
                    continue
                if arrival.captured_ns < due_ns:
                    continue
                due_ns = arrival.captured_ns + every_ns if every_ns > 0 else 0
                found = folder.offer(arrival.image, arrival.source)
                if isinstance(found, Refused):
                    aside = "" if found.file is None else f", set aside as {found.file}"
                    lines.say(found.problem, f"{found.source}: {found.detail}{aside}")
                else:
                    of = "" if arguments.count is None else f" of {arguments.count}"
                    lines.kept(f"{len(folder.kept):5d}{of}  {found.file}  {found.source}")
                refused = sum(folder.refused.values())
                advance(len(folder.kept), arguments.count, f"not kept: {refused}")
                if len(folder.kept) == arguments.count:
                    return "as many as were asked for"
        except _TimeIsUpError:
            return "time is up"
        except KeyboardInterrupt:
            return "interrupted"
    return "end of the source"


def _end(folder: TrainingFolder, reason: str, before: int) -> None:
    failing = reason == "failed"
    if not failing:
        for refused in folder.review():
            console.say(
                f"{refused.problem}: {refused.detail} of the whole set; {refused.source} is set aside as {refused.file}"
            )
    # a disk that is full has said so already; its notes are as they were last
    with contextlib.suppress(EngineError) if failing else contextlib.nullcontext():
        folder.close(reason)
    counts = ", ".join(f"{count} {problem}" for problem, count in sorted(folder.refused.items())) or "none"
    console.say(
        f"kept {len(folder.kept)} pictures in {folder.good}, {folder.there} with those before ({before}); not kept: {counts}"
    )


def _about(config: StationConfig) -> dict[str, object]:
    return {
        "version": __version__,
        "station": config.station,
        "camera": config.camera,
        "source": config.source.model_dump(mode="json"),
    }


class _Lines:
    """One line for each picture that is not kept, and one for a row of pictures with the same problem."""

    def __init__(self) -> None:
        self._problem: str | None = None
        self._more = 0

    def say(self, problem: str, line: str) -> None:
        """One that is not kept."""
        if problem == self._problem:
            self._more += 1
            return
        self.flush()
        self._problem = problem
        console.say(f"{problem}: {line}")

    def kept(self, line: str) -> None:
        """One that is; on a terminal the bar counts it."""
        self.flush()
        if not console.err.is_terminal:
            console.say(line)

    def flush(self) -> None:
        """End the row."""
        if self._more > 0:
            console.say(f"{self._problem}: {self._more} more")
        self._problem, self._more = None, 0
