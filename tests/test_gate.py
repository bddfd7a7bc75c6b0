"""The gate before a further precision: which images it asks, and what it lets pass."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import Golden, Method, ProvisionalThreshold, make_preprocessor
from engines.bundle import Input as Spec
from engines.images import Image, encode_png
from engines.inspector import Scorer
from tests.fakes import DIM, GREY, FakeExtractor, Floats, cells, flat, textured, tiny_bank
from train.data import Sample
from train.gate import DEFECTS, Compared, compare, gate_images, judge
from train.golden import OFFSETS, Candidate

THRESHOLD = ProvisionalThreshold(value=1.0, n=20, rate=0.05)
SPREAD = 0.1


def scorer(offset: float = 0.0, *, nan: bool = False) -> Scorer:
    """The tiny network with embeddings that are `offset` too high, or not a number."""

    def spoil(embeddings: Floats) -> Floats:
        return embeddings * np.float32(np.nan) if nan else embeddings + np.float32(offset)

    method = Method(backbone="tiny", dim=DIM, grid=(8, 8), k=1)
    return Scorer(method, make_preprocessor(Spec(size=(64, 64)), None), tiny_bank(cells(GREY)), FakeExtractor(spoil=spoil))


@pytest.fixture
def normals(tmp_path: Path) -> tuple[Sample, ...]:
    samples = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode_png(textured(number, (64, 64 if number else 72))))  # sizes differ
        samples.append(Sample(path, "good"))
    return tuple(samples)


GOLDEN = Golden(("a", "b"), (flat(GREY), flat(GREY + 9)), np.zeros(2))


def test_it_asks_the_golden_images_the_good_ones_and_defects_near_the_threshold(normals: tuple[Sample, ...]) -> None:
    originals = [sample.image() for sample in normals]

    def score(image: Image) -> float:
        """Half the threshold, and up with what was changed."""
        same = [original for original in originals if original.shape == image.shape]
        return 0.5 + min(float(np.abs(image.astype(float) - original).sum()) for original in same) / 5000

    images = gate_images(GOLDEN, normals, score, threshold=1.0, spread=SPREAD, where=None, seed=0)
    assert [one.name for one in images[:5]] == ["a", "b", "0.png", "1.png", "2.png"]
    defects = images[5:]
    assert len(defects) == len({one.name for one in defects}) == DEFECTS
    away = np.array([(score(one.image) - 1.0) / SPREAD for one in defects])
    wanted = np.abs(away[:, None] - np.array(OFFSETS)).min(axis=1) < 0.25
    assert wanted.mean() > 0.5  # a defect may be faint even at full strength
    assert {bool(value > 0) for value in away[wanted]} == {True, False}


def test_defects_lie_where_is_judged(normals: tuple[Sample, ...]) -> None:
    where = np.zeros((64, 64), bool)
    where[:, 40:] = True
    same = normals[1:]
    images = gate_images(GOLDEN, same, lambda image: 0.0, threshold=1.0, spread=SPREAD, where=where, seed=0)
    for number, one in enumerate(images[4:]):
        changed = (one.image != same[number % 2].image()).any(axis=2)
        assert changed.any()
        assert changed[:, 40:].any()


def test_without_a_threshold_nothing_is_near_to_it(normals: tuple[Sample, ...]) -> None:
    def never(image: Image) -> float:
        raise AssertionError("asked for a score")

    assert len(gate_images(GOLDEN, normals, never, threshold=None, spread=SPREAD, where=None, seed=0)) == 5


def test_the_same_seed_draws_the_same(normals: tuple[Sample, ...]) -> None:
    def images(seed: int) -> list[bytes]:
        drawn = gate_images(GOLDEN, normals, lambda image: 0.0, threshold=1.0, spread=SPREAD, where=None, seed=seed)
        return [one.image.tobytes() for one in drawn]

    assert images(1) == images(1)
    assert images(1) != images(2)


def rows_of(expected: float, got: float) -> Compared:
    """One row, as if a scorer had given `got`."""

    class Given:
        def score(self, image: Image) -> Scored:
            return Scored(got)

    class Scored:
        def __init__(self, value: float) -> None:
            self.value = value

    (row,) = compare(Given(), [Candidate("x", flat(0))], [expected], THRESHOLD, SPREAD)  # type: ignore[arg-type]
    return row


@pytest.mark.parametrize(
    ("expected", "got", "flipped"),
    [
        (0.9, 0.95, False),  # no side is changed
        (0.97, 1.03, True),  # three tenths of a spread below: a decision
        (1.03, 0.97, True),
        (0.995, 1.003, False),  # within the clearance, and moved by less than it
        (1.0, 1.009, False),  # as the image that the threshold is the score of
        (0.995, 1.02, True),  # moved by more
        (1.0, math.nan, False),  # `judge` has a reason of its own for that
        (1.5, math.nan, True),
    ],
)
def test_what_counts_as_a_flip(expected: float, got: float, flipped: bool) -> None:
    row = rows_of(expected, got)
    assert row.flipped == flipped
    assert math.isnan(row.difference) if math.isnan(got) else row.difference == pytest.approx(abs(got - expected) / SPREAD)


def test_without_a_threshold_no_decision_flips() -> None:
    images = [Candidate("grey", flat(GREY)), Candidate("light", flat(GREY + 60))]
    done: list[tuple[int, int]] = []
    rows = compare(scorer(3.0), images, [0.0, 0.0], None, SPREAD, lambda *step: done.append(step))
    assert not any(row.flipped for row in rows)
    assert done == [(1, 2), (2, 2)]


def row(difference: float, *, flipped: bool = False) -> Compared:
    return Compared("x", 0.0, difference * SPREAD, difference, flipped)


def test_what_agrees_is_offered() -> None:
    variant = judge("fp16", [row(0.01), row(0.3)], decided=True)
    assert (variant.offered, variant.reason, variant.images, variant.flips, variant.max_difference) == (True, None, 2, 0, 0.3)


@pytest.mark.parametrize(
    ("rows", "decided", "ratio", "reason"),
    [
        ([row(0.01), row(0.4, flipped=True)], True, None, "1 of 2 decisions flip at the provisional threshold, expected 0"),
        ([row(0.01), row(math.nan)], True, None, "a score is not a finite number"),
        ([row(0.2)], False, None, "no provisional threshold, and scores differ by 0.2 of the spread, expected 0.1 or less"),
        ([row(0.01)], True, 1.25, "features take 1.25 times as long as in fp32 on this machine, expected less than 1"),
    ],
)
def test_what_does_not_is_not_offered_and_says_why(
    rows: list[Compared], decided: bool, ratio: float | None, reason: str
) -> None:
    variant = judge("int8-cpu", rows, decided=decided, ratio=ratio)
    assert (variant.offered, variant.reason) == (False, reason)


def test_faster_is_offered_and_so_is_what_agrees_without_a_threshold() -> None:
    assert judge("int8-cpu", [row(0.01)], decided=True, ratio=0.6).offered
    assert judge("fp16", [row(0.09)], decided=False).offered
