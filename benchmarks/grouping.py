"""Which pictures does `calibration fit` take for the same part? On real images, beside what the audit of a training set flags.

`python -m benchmarks.grouping --data DIR`, with a folder of products, each as for `train fit`. Good images of training and test
are looked at together. The table has the groups that each rule makes, the largest of them, and the correlation from which on
two pictures of this set count as the same part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from calibration.groups import by_likeness
from calibration.twins import NEAR_COPIES, SAME_PART, find_twins, thumbnail
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.images import Image
from train.data import open_dataset

_RULES = {"the same part": SAME_PART, "near-duplicate": NEAR_COPIES}
_QUICK = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="grouping", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of products, each as for `train fit`")
    parser.add_argument("--products", nargs="+", help="default: all folders in DATA")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} images of each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    products = arguments.products or sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    rows = []
    for product in products:
        dataset = open_dataset(arguments.data / product)
        good = [sample for sample in (*dataset.train, *dataset.test) if sample.good]
        images = [sample.image() for sample in good[: _QUICK if arguments.quick else None]]
        rows += [group(product, rule, images) for rule in _RULES]
    columns = ("product", "rule", "images", "groups", "largest", "from a correlation of")
    console.table("pictures of the same part", columns, [[*row.values()] for row in rows])
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(rows, indent=1) + "\n").encode())
    return console.DONE


def group(product: str, rule: str, images: Sequence[Image]) -> dict[str, object]:
    """One row: the groups that a rule makes."""
    thumbs = [thumbnail(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)) for image in images]
    names = [str(number) for number in range(len(images))]
    groups = by_likeness(names, thumbs, _RULES[rule])
    sizes = Counter(group if group is not None else name for group, name in zip(groups, names, strict=True))
    return {
        "product": product,
        "rule": rule,
        "images": len(images),
        "groups": len(sizes),
        "largest": max(sizes.values()),
        "correlation": round(1 - find_twins(thumbs, _RULES[rule]).limit, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
