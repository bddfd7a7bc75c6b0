"""The system calls by which a program changes files, recorded with strace and read back."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,rename,renameat,renameat2,link,linkat,"
    "symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync,syncfs,lseek,dup,dup2,dup3,fcntl,copy_file_range,sendfile"
)
_TOKEN = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?|([\w|-]+)(?:<((?:\\x[0-9a-f]{2})*)>)?(?:\(deleted\))?')
_LINE = re.compile(r"(\d+) +(.*)")
_RESULT = re.compile(r"(.*)\) += (-?\d+)(.*)", re.DOTALL)


class DiskError(Exception):
    """A system call that the model does not know, or a log that is not whole."""


@dataclass(frozen=True)
class Call:
    """One system call that succeeded.

    Attributes:
        name: of the call.
        texts: its string arguments, and the paths that strace gives for file descriptors, by position.
        words: its other arguments, by position; a descriptor's number.
        result: what it returned.
        begun: number of calls in the log that were complete when it began.
    """

    name: str
    texts: tuple[bytes | None, ...]
    words: tuple[str | None, ...]
    result: int
    begun: int


def record(command: Sequence[str], log: Path, cwd: Path) -> None:
    """Run a command to its end under strace. Raises DiskError where it fails or strace is not there."""
    if shutil.which("strace") is None:
        raise DiskError("strace is not installed; apt-get install strace")
    options = ["-f", "-y", "-xx", "-s", str(2**28 - 1), "--seccomp-bpf", "-o", str(log), "-e", f"trace={CALLS}"]
    done = subprocess.run(["strace", *options, *command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DiskError(f"the recorded program ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def read_log(log: Path) -> list[Call]:
    """The calls of a log in the order in which they ended. Raises DiskError."""
    calls: list[Call] = []
    unfinished: dict[str, tuple[str, int]] = {}
    for line in log.read_text(encoding="ascii").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise DiskError(f"{log}: not a line of strace -f: {line[:80]}")
        process, text = match.groups()
        begun = len(calls)
        if text.startswith(("+++", "---")):
            continue
        if text.endswith("<unfinished ...>"):
            unfinished[process] = text.removesuffix("<unfinished ...>").rstrip(), begun
            continue
        if text.startswith("<... "):
            before, begun = unfinished.pop(process)
            text = before + text.partition("resumed>")[2]
        done = _RESULT.fullmatch(text)
        if done is None:
            raise DiskError(f"{log}: not a call with a result: {text[:80]}")
        if int(done[2]) >= 0:
            name, _, arguments = done[1].partition("(")
            texts, words = _arguments(arguments)
            calls.append(Call(name, texts, words, int(done[2]), begun))
    return calls


def _arguments(text: str) -> tuple[tuple[bytes | None, ...], tuple[str | None, ...]]:
    texts: list[bytes | None] = []
    words: list[str | None] = []
    for match in _TOKEN.finditer(text):
        string, cut, word, path = match.groups()
        if cut:
            raise DiskError(f"a string was cut off in the log: {text[:80]}")
        raw = string if word is None else path
        texts.append(None if raw is None else bytes.fromhex(raw.replace("\\x", "")))
        words.append(word)
    return tuple(texts), tuple(words)
