from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.looks import LIMIT, focus, robust_z
from calibration.twins import difference, thumbnail
from engines.images import read_image
from engines.pooling import Windows
from train import TrainError, audit
from train.audit import Finding, audit_images, leave_one_out, outliers, summarise
from train.contact_sheet import _share, contact_sheet
from train.data import Sample, open_dataset

SIDE = 160
COUNT = 16


def part(seed: int) -> npt.NDArray[np.uint8]:
    """A good part in a fixed pose: the same outline each time, with a grain of its own."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 1)
    grain = grain + 2 * cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 3)
    image = np.full((SIDE, SIDE), 40, np.float32)
    cv2.circle(image, (SIDE // 2, SIDE // 2), 60, 110, -1)
    cv2.rectangle(image, (50, 70), (110, 90), 150, -1)
    image += 25 * grain
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def save(folder: Path, name: str, image: npt.NDArray[np.uint8], quality: int = 90) -> Sample:
    path = folder / name
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return Sample(path, "good")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("good")
    return [save(folder, f"{seed:02}.png", part(seed)) for seed in range(COUNT)]


def flagged(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.problem, finding.sample.path.name) for finding in findings]


def test_good_parts_in_a_fixed_pose_raise_no_finding(parts: list[Sample]) -> None:
    thumbs = [thumbnail(sample.image()[:, :, 0]) for sample in parts]
    assert difference(thumbs[0], thumbs[1]) < 0.5  # they do look alike
    assert audit_images(parts) == []


def test_progress_counts_every_image_and_an_empty_set_is_clean(parts: list[Sample]) -> None:
    seen: list[tuple[int, int]] = []
    audit_images(parts[:3], lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert audit_images([]) == []


def test_truncated_file_is_a_finding_and_not_an_error(parts: list[Sample], tmp_path: Path) -> None:
    data = parts[0].path.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (finding,) = audit_images([*parts, Sample(tmp_path / "cut.png", "good")])
    assert (finding.problem, finding.sample.path.name) == ("unreadable", "cut.png")
    assert "truncated" in finding.detail
    assert str(tmp_path) not in finding.detail


def test_exact_duplicate_names_the_first_and_is_judged_for_nothing_else(parts: list[Sample], tmp_path: Path) -> None:
    copies = [save(tmp_path, name, part(3)) for name in ("a.bmp", "b.png")]
    findings = audit_images([*parts, *copies])
    assert flagged(findings) == [("duplicate", "a.bmp"), ("duplicate", "b.png")]
    assert all(finding.twin == parts[3] and "03.png" in finding.detail for finding in findings)


@pytest.mark.parametrize("change", ["jpeg", "shift", "half-pixel shift", "brighter", "noise", "half size"])
def test_near_duplicate_is_found_with_its_twin(parts: list[Sample], tmp_path: Path, change: str) -> None:
    image = part(5)

    def shifted(x: float, y: float) -> npt.NDArray[np.uint8]:
        move = np.array([[1, 0, x], [0, 1, y]], np.float32)
        return np.asarray(cv2.warpAffine(image, move, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)

    changed = {
        "jpeg": lambda: image,
        "shift": lambda: shifted(5, -3),
        "half-pixel shift": lambda: shifted(0.63, 0.63),
        "brighter": lambda: np.clip(image * 1.1 + 4, 0, 255).astype(np.uint8),
        "noise": lambda: np.clip(image + np.random.default_rng(9).normal(0, 4, image.shape), 0, 255).astype(np.uint8),
        "half size": lambda: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    }[change]()
    again = save(tmp_path, "again.jpg" if change == "jpeg" else "again.png", np.asarray(changed, dtype=np.uint8))
    (finding,) = [finding for finding in audit_images([*parts, again]) if finding.problem == "near-duplicate"]
    assert finding.sample == again
    assert finding.twin == parts[5]
    assert "05.png" in finding.detail
    assert 0.9 < finding.value <= 1


def test_two_images_alone_are_near_duplicates_only_when_almost_equal(tmp_path: Path) -> None:
    one, again, other = save(tmp_path, "1.png", part(1)), save(tmp_path, "1.jpg", part(1), 95), save(tmp_path, "2.png", part(2))
    assert flagged(audit_images([one, again])) == [("near-duplicate", "1.jpg")]
    assert audit_images([one, other]) == []


def test_plain_images_have_no_structure_to_be_alike_in(tmp_path: Path) -> None:
    plain = [save(tmp_path, f"{level}.png", np.full((64, 64, 3), level, np.uint8)) for level in (100, 101)]
    assert audit_images(plain) == []


@pytest.mark.parametrize("sigma", [2.0, 3.0])
def test_blurred_image_is_found_even_with_fresh_pixel_noise(parts: list[Sample], tmp_path: Path, sigma: float) -> None:
    soft = cv2.GaussianBlur(part(20), (0, 0), sigma) + np.random.default_rng(1).normal(0, 2, (SIDE, SIDE, 1))
    blurred = save(tmp_path, "soft.png", np.clip(soft, 0, 255).astype(np.uint8))
    findings = audit_images([*parts, blurred])
    assert flagged(findings) == [("blurred", "soft.png")]
    assert findings[0].value > LIMIT


def test_focus_knows_neither_contrast_nor_level() -> None:
    grey = part(1)[:, :, 0]
    dim = (grey * 0.5 + 20).astype(np.uint8)
    assert abs(focus(grey) - focus(dim)) < 0.05


def test_over_and_under_exposure_are_told_apart(parts: list[Sample], tmp_path: Path) -> None:
    gained = [save(tmp_path, f"{gain}.png", np.clip(part(30) * gain, 0, 255).astype(np.uint8)) for gain in (2.2, 0.5)]
    findings = [finding for finding in audit_images([*parts, *gained]) if finding.problem != "near-duplicate"]
    assert flagged(findings) == [("over-exposed", "2.2.png"), ("under-exposed", "0.5.png")]
    assert "usual" in findings[0].detail
    assert "of 255" in findings[1].detail


def test_saturation_is_judged_against_the_set_and_not_absolutely(tmp_path: Path) -> None:
    """A white background is saturated in every image: only the image where the part is washed out too is odd."""
    images = [np.where(part(seed) < 60, 255, part(seed)).astype(np.uint8) for seed in range(COUNT)]
    samples = [save(tmp_path, f"{seed}.png", image) for seed, image in enumerate(images)]
    assert audit_images(samples) == []
    washed = save(tmp_path, "washed.png", np.clip(images[0].astype(int) * 3, 0, 255).astype(np.uint8))
    assert ("over-exposed", "washed.png") in flagged(audit_images([*samples[1:], washed]))


def test_wrong_size_needs_a_majority(parts: list[Sample], tmp_path: Path) -> None:
    odd = save(tmp_path, "odd.png", part(40)[:, :120])
    (finding,) = audit_images([*parts[:4], odd])
    assert (finding.problem, finding.detail) == ("wrong size", "120 x 160 pixels, usual 160 x 160")
    assert audit_images([parts[0], odd]) == []


def test_findings_come_by_problem_worst_first(parts: list[Sample], tmp_path: Path) -> None:
    soft = [save(tmp_path, f"{s}.png", cv2.GaussianBlur(part(50 + s), (0, 0), s).astype(np.uint8)) for s in (2, 4)]
    copy = save(tmp_path, "copy.png", part(0))
    order = flagged(audit_images([*soft, *parts, copy]))
    assert order == [("duplicate", "copy.png"), ("blurred", "4.png"), ("blurred", "2.png")]


def test_robust_z_by_hand() -> None:
    """Median 3, absolute deviations 2 1 0 1 97, MAD 1."""
    z = robust_z(np.array([1.0, 2, 3, 4, 100]), 0.1)
    np.testing.assert_allclose(z, np.array([-2, -1, 0, 1, 97]) / 1.4826)


@given(st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=30), st.floats(0.01, 10))
@settings(deadline=None, max_examples=50)
def test_robust_z_never_flags_what_differs_by_less_than_the_least(values: list[float], least: float) -> None:
    array = np.array(values)
    z = robust_z(array, least)
    close = np.abs(array - np.median(array)) < 0.999 * least
    assert (np.abs(z[close]) < LIMIT).all()


def test_leave_one_out_pools_each_image_by_itself_and_finds_the_one_unlike_the_others() -> None:
    rng = np.random.default_rng(0)
    judged = rng.random((6, 6)) < 0.8
    each = int(judged.sum())
    squared = rng.uniform(1, 1.1, (12, each)).astype(np.float32)
    samples = [Sample(Path(f"{image}.png"), "good") for image in range(12)]
    assert leave_one_out(squared.ravel(), judged, samples) == []
    squared[7, : each // 2] = 9
    assert flagged(leave_one_out(squared.ravel(), judged, samples)) == [("outlier", "7.png")]
    assert leave_one_out(squared[:7].ravel(), judged, samples[:7]) == []


def test_leave_one_out_scores_as_a_part_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    judged = rng.random((6, 5)) < 0.7
    squared = rng.random((9, int(judged.sum()))).astype(np.float32)
    samples = [Sample(Path(f"{image}.png"), "good") for image in range(9)]
    seen: list[npt.NDArray] = []
    monkeypatch.setattr(audit, "outliers", lambda scores, of: seen.append(scores) or [])
    leave_one_out(squared.ravel(), judged, samples)
    maps = np.full((9, 6, 5), np.nan, np.float32)
    maps[:, judged] = squared
    assert seen[0].tolist() == [float(Windows(judged).pool(one)) for one in maps]


def test_outliers_are_one_sided_and_finite() -> None:
    samples = [Sample(Path(f"{image}.png"), "good") for image in range(10)]
    scores = np.array([10, 11, 9, 10.5, 9.5, 10, 10.2, 9.8, 0.0, 30])
    assert flagged(outliers(scores, samples)) == [("outlier", "9.png")]
    assert "score 30, usual 10" in outliers(scores, samples)[0].detail
    assert outliers(np.full(10, 5.0), samples) == []
    scores[4] = np.nan
    with pytest.raises(TrainError, match=r"4\.png is not finite"):
        outliers(scores, samples)


def test_leave_one_out_refuses_patches_of_other_images() -> None:
    samples = [Sample(Path(f"{image}.png"), "good") for image in range(2)]
    with pytest.raises(TrainError, match="7 patches for 2 images, expected 4 judged"):
        leave_one_out(np.zeros(7, np.float32), np.ones((2, 2), bool), samples)


def test_summary_line() -> None:
    sample = Sample(Path("a.png"), "good")
    findings = [Finding(sample, problem, "", 1.0) for problem in ("outlier", "duplicate", "duplicate", "blurred")]
    assert summarise(findings, 60) == "audit: 2 duplicates, 1 blurred, 1 outlier in 60 images; see `train audit`"
    assert summarise([], 60) == "audit: nothing suspicious in 60 images"


def test_contact_sheet_shows_a_tile_a_finding_in_the_colour_of_its_problem(parts: list[Sample], tmp_path: Path) -> None:
    missing = Sample(tmp_path / "gone $x^2$ <b> _with_a_very_long_name_that_goes_on_and_on.png", "good")
    findings = [
        Finding(missing, "unreadable", "cannot be read " * 30, 1.0),
        Finding(parts[1], "duplicate", "same pixels", 1.0, parts[0]),
        Finding(parts[2], "outlier", "odd", 4.0),
    ]
    contact_sheet(findings, tmp_path / "sheet.png")
    sheet = read_image(tmp_path / "sheet.png")
    for colour in ("#555555", "#7b3fa0", "#c0292b"):
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (sheet == rgb).all(axis=2).sum() > 2000
    contact_sheet(findings[1:2], tmp_path / "one.png")
    contact_sheet([], tmp_path / "sheet.png")
    assert read_image(tmp_path / "sheet.png").shape[0] < read_image(tmp_path / "one.png").shape[0] < sheet.shape[0] + 1


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_tiles_are_shared_so_that_no_problem_is_crowded_out(counts: list[int]) -> None:
    shown = _share(counts, 60)
    assert sum(shown) == min(60, sum(counts))
    assert all(min(count, 60 // len(counts)) <= some <= count for some, count in zip(shown, counts, strict=True))


@pytest.mark.realdata
@pytest.mark.parametrize("product", ["hazelnut", "transistor", "figures"])
def test_real_good_folders_are_clean_and_dirt_is_found(real_data: Path, product: str, tmp_path: Path) -> None:
    samples = list(open_dataset(real_data / product).train)
    assert audit_images(samples) == []
    one, two, three = (cv2.imread(str(sample.path)) for sample in samples[:3])
    assert one is not None
    assert two is not None
    assert three is not None
    dirt = [
        save(tmp_path, "again.jpg", one.astype(np.uint8)),
        save(tmp_path, "soft.png", cv2.GaussianBlur(two, (0, 0), 2).astype(np.uint8)),
        save(tmp_path, "bright.png", np.clip(three * 1.8, 0, 255).astype(np.uint8)),
    ]
    assert flagged(audit_images([samples[0], *samples[3:], *dirt])) == [
        ("near-duplicate", "again.jpg"),
        ("blurred", "soft.png"),
        ("over-exposed", "bright.png"),
    ]
