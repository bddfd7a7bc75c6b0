"""What the doors share: one-line errors, exit codes, progress bars and tables. Library code never prints."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from engines import InspectionError

_Number = TypeVar("_Number", int, float)

DONE, NO, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

out = Console(highlight=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def run_door(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run one command and turn what it raises into a line for a person and an exit code.

    Returns:
        The command's own code; 2 for an InspectionError; 130 after Ctrl-C or SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text that the terminal knows
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        with _terminate_as_interrupt():
            return command(arguments)
    except InspectionError as error:
        for line in f"error: {error}".split("\n"):  # a configuration has a line for each of its faults
            err.print(one_line(line), markup=False)
        return BAD_INPUT
    except KeyboardInterrupt:
        err.print("interrupted; nothing half-written was left behind", markup=False)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away: no traceback for `... | head`, but the work was not done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO
    except OSError as error:
        err.print(one_line(f"error: {error}; check the disk and permissions"), markup=False)
        return BAD_INPUT


def say(message: str) -> None:
    """Print one line of result to standard output."""
    out.print(one_line(message), markup=False)


def warn(message: str) -> None:
    """Print one line that a person should read to standard error."""
    err.print(one_line(f"warning: {message}"), markup=False)


def one_line(text: str) -> str:
    r"""Text that a file's name or a person may have put anything into, with what does not print as escapes such as `\n`.

    It neither breaks a line in two nor tells the terminal to do anything.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def account() -> str:
    """Name of the account that runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned."""
    drawn = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):  # folded where it is too long: a digest that is cut off says nothing
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(one_line(str(cell))) for cell in row))
    width = None if out.is_terminal else 160  # a log has none of its own
    Console(file=out.file, width=width, highlight=False, emoji=False, soft_wrap=True).print(drawn)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error: yields a function to call with (done, total) and, if there is one, a note."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


@contextlib.contextmanager
def live() -> Iterator[Callable[[Sequence[str]], None]]:
    """Lines on standard error that are drawn over: yields a function to call with them. For a terminal alone."""
    with Live(console=err, auto_refresh=False, transient=True) as drawn:
        yield lambda lines: drawn.update(Text("\n".join(lines)), refresh=True)


def positive_int(text: str) -> int:
    """argparse type: an integer above 0."""
    value = _number(int, text)
    if value is None or value <= 0:
        raise argparse.ArgumentTypeError(f"{text}, expected an integer above 0")
    return value


def count(text: str) -> int:
    """argparse type: an integer of 0 or more."""
    value = _number(int, text)
    if value is None or value < 0:
        raise argparse.ArgumentTypeError(f"{text}, expected an integer of 0 or more")
    return value


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = _number(float, text)
    if value is None or not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}, expected a number above 0")
    return value


def _number(kind: Callable[[str], _Number], text: str) -> _Number | None:
    """None where the text is none: each type says itself what it expected."""
    try:
        return kind(text)
    except ValueError:
        return None


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files go with it."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the host process owns its signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
