"""x"""

from pathlib import Path


def run(seconds: int, seed: int, out: Path | None) -> int:
    """x"""
    return 0
