"""The options of how a bundle runs, the same at every door."""

from __future__ import annotations

import argparse

from engines import console
from engines.bundle import PRECISIONS, Bundle
from engines.extractors import backends
from engines.inspector import Inspector
from engines.search import SEARCHES


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add --backend, --precision, --threads and --search."""
    parser.add_argument("--backend", default="onnxruntime", choices=backends(), help="default: %(default)s")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default: %(default)s")
    parser.add_argument("--threads", default=0, type=console.count, help="CPU threads; 0 is one a core")
    parser.add_argument("--search", choices=SEARCHES, help="where the bank is searched (default: the GPU with TensorRT)")


def open_inspector(bundle: Bundle, chosen: argparse.Namespace) -> Inspector:
    """The inspector that these options ask for. Raises EngineError as `Inspector`."""
    return Inspector(bundle, chosen.backend, precision=chosen.precision, threads=chosen.threads, search=chosen.search)
