"""A CSV file that is wholly there, or as it was before."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edge import StationError


def write_csv(out: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> int:
    """Write one line for each row as they come, so that a long journal need not fit into memory; returns how many.

    Raises:
        StationError: `out` cannot be written; what stood there still stands.
    """
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w",
            dir=out.parent,
            prefix=f".{out.name}.",
            suffix=".tmp",
            newline="",
            encoding="utf-8",
            errors="backslashreplace",
            delete=False,
        ) as file:
            try:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                for row in rows:
                    writer.writerow(row)
                    count += 1
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, out)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise StationError(f"{out}: cannot be written ({error.strerror or error}); check the folder and the disk") from None
    return count
