"""Golden images stand where a wrong score would flip a decision, but not so close that rounding would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from engines.images import Image, encode_png
from engines.preprocess import Roi
from tests.fakes import textured
from train import golden as module
from train.data import Sample
from train.golden import CLEARANCE, MARKED, NORMALS, choose_golden

SIZE = (48, 60)
THRESHOLD, SPREAD = 10.0, 2.0


def save(folder: Path, count: int) -> tuple[Sample, ...]:
    samples = []
    for number in range(count):
        path = folder / f"{number:02d}.png"
        path.write_bytes(encode_png(textured(number, SIZE)))
        samples.append(Sample(path, "good"))
    return tuple(samples)


class Changed:
    """A score that grows with what was changed in a picture: 5 unmarked, and up from there."""

    def __init__(self, samples: tuple[Sample, ...]) -> None:
        self.calls = 0
        self._originals = [sample.image().astype(float) for sample in samples]

    def __call__(self, image: Image) -> float:
        self.calls += 1
        return 5.0 + min(float(np.abs(image - original).sum()) for original in self._originals) / 300


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    return save(tmp_path, 9)


def spaced_scores(count: int) -> npt.NDArray[np.float64]:
    """Scores from 4 to the threshold itself, as the highest held-out score is."""
    return np.linspace(4.0, THRESHOLD, count)


def test_normals_span_their_scores_and_keep_clear_of_the_threshold(samples: tuple[Sample, ...]) -> None:
    scores = spaced_scores(9)[::-1].copy()
    chosen = choose_golden(samples, scores, Changed(samples), threshold=THRESHOLD, spread=SPREAD, roi=None, seed=0)
    normals = [candidate for candidate in chosen if "marked" not in candidate.name]
    assert len(normals) == NORMALS
    assert normals[0].name == "08.png"  # the lowest score
    assert normals[-1].name == "01.png"  # the highest that is clear; 00.png is the threshold
    by_name = {sample.path.name: sample for sample in samples}
    assert all(np.array_equal(candidate.image, by_name[candidate.name].image()) for candidate in normals)


def test_marked_images_come_close_to_either_side(samples: tuple[Sample, ...]) -> None:
    score = Changed(samples)
    chosen = choose_golden(samples, spaced_scores(9), score, threshold=THRESHOLD, spread=SPREAD, roi=None, seed=0)
    marked = [candidate for candidate in chosen if "marked" in candidate.name]
    assert len(marked) == MARKED
    away = [(score(candidate.image) - THRESHOLD) / SPREAD for candidate in marked]
    wanted = (0.25, -0.25, 0.5, -0.5, 1.0, 2.0)
    assert all(abs(got - want) <= CLEARANCE / 2 for got, want in zip(away, wanted, strict=True))
    assert all(abs(got) > CLEARANCE for got in away)


def test_tuning_stops_when_it_is_close(samples: tuple[Sample, ...]) -> None:
    calls = 0

    def score(image: Image) -> float:
        nonlocal calls
        calls += 1
        return THRESHOLD + 0.25 * SPREAD  # what the first mark aims at, and no other

    choose_golden(samples, spaced_scores(9), score, threshold=THRESHOLD, spread=SPREAD, roi=None, seed=0)
    assert calls == 1 + 8 * (MARKED - 1)


def test_a_mark_that_cannot_leave_the_threshold_is_left_out(samples: tuple[Sample, ...]) -> None:
    chosen = choose_golden(
        samples, spaced_scores(9), lambda image: THRESHOLD, threshold=THRESHOLD, spread=SPREAD, roi=None, seed=0
    )
    assert not [candidate for candidate in chosen if "marked" in candidate.name]


def test_without_a_threshold_marks_are_half_strength_and_nothing_is_scored(samples: tuple[Sample, ...]) -> None:
    score = Changed(samples)
    chosen = choose_golden(samples, spaced_scores(9), score, threshold=None, spread=0.0, roi=None, seed=0)
    marked = [candidate for candidate in chosen if "marked" in candidate.name]
    assert len(marked) == MARKED
    assert all(candidate.name.endswith("marked 0.500") for candidate in marked)
    assert len(chosen) == NORMALS + MARKED
    assert score.calls == 0


def test_marks_are_drawn_by_seed(samples: tuple[Sample, ...]) -> None:
    def marked(seed: int) -> list[Image]:
        chosen = choose_golden(samples, spaced_scores(9), Changed(samples), threshold=None, spread=0.0, roi=None, seed=seed)
        return [candidate.image for candidate in chosen[NORMALS:]]

    assert all(np.array_equal(one, other) for one, other in zip(marked(1), marked(1), strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(marked(1), marked(2), strict=True))


def test_marks_lie_in_the_judged_region(samples: tuple[Sample, ...]) -> None:
    roi = Roi(20, 10, 24, 16)
    chosen = choose_golden(samples, spaced_scores(9), Changed(samples), threshold=None, spread=0.0, roi=roi, seed=0)
    by_name = {sample.path.name: sample for sample in samples}
    for candidate in chosen[NORMALS:]:
        changed = (candidate.image != by_name[candidate.name.split()[0]].image()).any(axis=2)
        assert changed.any()
        changed[10:26, 20:44] = False
        assert not changed.any()


def test_one_image_is_enough(tmp_path: Path) -> None:
    (only,) = save(tmp_path, 1)
    chosen = choose_golden((only,), np.array([3.0]), Changed((only,)), threshold=None, spread=0.0, roi=None, seed=0)
    assert chosen[0].name == "00.png"
    assert len(chosen) == 1 + MARKED


def test_where_all_normals_stand_at_the_threshold_one_still_does(samples: tuple[Sample, ...]) -> None:
    scores = np.full(9, THRESHOLD)
    chosen = choose_golden(samples, scores, Changed(samples), threshold=THRESHOLD, spread=0.0, roi=None, seed=0)
    assert len([candidate for candidate in chosen if "marked" not in candidate.name]) == 1


def test_large_frames_are_kept_in_half_the_number(samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE_PX", SIZE[0] * SIZE[1] - 1)
    steps: list[tuple[int, int]] = []
    chosen = choose_golden(
        samples,
        spaced_scores(9),
        Changed(samples),
        threshold=None,
        spread=0.0,
        roi=None,
        seed=0,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert len(chosen) == NORMALS // 2 + MARKED // 2
    assert steps == [(1, 3), (2, 3), (3, 3)]
