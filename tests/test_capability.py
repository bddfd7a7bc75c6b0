"""What a station can see: the probes, the record, the report, and the door."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.capability import ALL, LEVELS, NAMES, Capability, curve_of, in_words, region_of, summarise, to_trials
from calibration.capability_door import MAP, PAGE, RECORD
from calibration.capability_map import draw_map
from calibration.capability_page import render
from calibration.probes import (
    Plan,
    Probe,
    draw_probes,
    find_part,
    judged_region,
    score_good,
    usual_sizes,
)
from calibration.record import Calibration, load_calibration, save_calibration
from calibration.saliency import Saliency
from edge.verdict import Outcome, compare
from engines.bundle import load_bundle
from engines.images import Image, decode_image, encode_png, read_image
from engines.inspector import Inspector, Score
from tests.fakes import calibration_for, conformal_record, flat, textured, write_pictures, write_tiny_bundle

SIZE = (64, 96)
EVERYWHERE = Saliency(None, "everywhere", "a test")
MANY = Plan(per_kind=60, contrast=40.0, sizes_px=(2.0, 20.0))
FEW = dataclasses.replace(MANY, per_kind=10)


def grainy(seed: int, size: tuple[int, int] = SIZE) -> Image:
    """A good picture: grey 128 with a little grain."""
    noise = np.random.default_rng(seed).normal(128, 3, (*size, 1)).round()
    return np.repeat(noise, 3, axis=2).astype(np.uint8)


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Eight good pictures, of two sizes."""
    return write_pictures(tmp_path / "good", [grainy(seed, SIZE if seed % 2 else (80, 72)) for seed in range(8)])


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    """A bundle whose bank is grey 128."""
    write_tiny_bundle(tmp_path / "bundle", normals=(textured(5),))
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        yield opened


def calibrate(inspector: Inspector, threshold: float) -> Calibration:
    return calibration_for(inspector, threshold).model_copy(update={"station": "line <1>", "camera": "left"})


def measure(inspector: Inspector, paths: list[Path], threshold: float, plan: Plan = MANY) -> Capability:
    images = score_good(inspector, paths)
    probes = draw_probes(inspector.bundle, lambda _, frame: inspector.score(frame).value, images, EVERYWHERE, threshold, plan)
    return summarise(inspector, calibrate(inspector, threshold), images, EVERYWHERE, probes, plan)


@pytest.fixture(scope="module")
def capability(tmp_path_factory: pytest.TempPathFactory) -> Capability:
    """What a station with a threshold of 0.05 sees."""
    folder = tmp_path_factory.mktemp("station")
    write_tiny_bundle(folder / "bundle")
    paths = write_pictures(folder / "good", [grainy(seed, SIZE if seed % 2 else (80, 72)) for seed in range(8)])
    with Inspector(load_bundle(folder / "bundle"), threads=1) as inspector:
        return measure(inspector, paths, 0.05)


def test_the_same_seed_draws_the_same_defects_and_another_one_others(inspector: Inspector, good: list[Path]) -> None:
    images = score_good(inspector, good)
    one, again = (
        draw_probes(inspector.bundle, lambda _, frame: inspector.score(frame).value, images, EVERYWHERE, 1.0, FEW)
        for _ in range(2)
    )
    assert one == again
    assert one != draw_probes(
        inspector.bundle,
        lambda _, frame: inspector.score(frame).value,
        images,
        EVERYWHERE,
        1.0,
        dataclasses.replace(FEW, seed=1),
    )


def test_defects_have_the_sizes_and_contrasts_of_the_plan_and_every_image_has_its_share(
    inspector: Inspector, good: list[Path]
) -> None:
    probes = draw_probes(
        inspector.bundle, lambda _, frame: inspector.score(frame).value, score_good(inspector, good), EVERYWHERE, 1.0, MANY
    )
    assert {kind: sum(probe.kind == kind for probe in probes) for kind in NAMES} == dict.fromkeys(NAMES, 60)
    assert {number: sum(probe.image == number for probe in probes) for number in range(8)} == dict.fromkeys(range(8), 45)
    size, change = (np.array([getattr(probe, name) for probe in probes]) for name in ("size_px", "change"))
    assert 1 < size.min() < 3 and 15 < size.max() < 22
    assert 8 < change.min() < 12 and 70 < change.max() < 90
    assert abs(np.corrcoef(np.log(size), np.log(change))[0, 1]) < 0.15
    assert 0.9 < np.mean(size < np.sqrt(2 * 20)) / 0.5 < 1.2  # log-uniform: half below the geometric mean


def test_no_defect_lies_on_an_image_that_is_rejected_without_one(inspector: Inspector, good: list[Path]) -> None:
    good[3].write_bytes(encode_png(flat(160, SIZE)))
    images = score_good(inspector, good)
    probes = draw_probes(inspector.bundle, lambda _, frame: inspector.score(frame).value, images, EVERYWHERE, 0.1, FEW)
    assert {probe.image for probe in probes} == {0, 1, 2, 4, 5, 6, 7}
    capability = measure(inspector, good, 0.1, FEW)
    assert capability.bundle_digest == inspector.bundle.digest
    assert capability.false_rejects == 1
    assert [image.rejected for image in capability.images] == [False] * 3 + [True] + [False] * 4
    with pytest.raises(CalibrationError, match="none of 8 good images passes"):
        draw_probes(inspector.bundle, lambda _, frame: inspector.score(frame).value, images, EVERYWHERE, -1.0, FEW)


def test_defects_change_the_judged_region_alone_and_are_centred_off_the_mask(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, bool)
    mask[:, :40] = True
    write_tiny_bundle(tmp_path / "bundle", roi=(8, 4, 80, 56), mask=mask)
    paths = write_pictures(tmp_path / "good", [grainy(seed) for seed in range(4)])
    frames: list[Image] = []
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as inspector:
        images = score_good(inspector, paths)
        judge = inspector.score
        inspector.score = lambda image: (frames.append(image), judge(image))[1]  # type: ignore[method-assign]
        probes = draw_probes(inspector.bundle, lambda _, frame: inspector.score(frame).value, images, EVERYWHERE, 1.0, FEW)
    assert len(frames) == len(probes) == 60
    for frame, probe in zip(frames, probes, strict=True):
        before = read_image(paths[probe.image])
        outside = np.ones(SIZE, bool)
        outside[4:60, 8:88] = False
        changed = (frame != before).any(axis=2)
        assert changed.any() and not (changed & outside).any()
    assert min(probe.x for probe in probes) > (32 - 12) / 80  # column 40 is the region's 32; half a defect reaches over


def test_defects_are_centred_on_the_part(inspector: Inspector, good: list[Path]) -> None:
    part = np.zeros((64, 64), bool)
    part[:20, :20] = True
    images = score_good(inspector, good)
    probes = draw_probes(
        inspector.bundle,
        lambda _, frame: inspector.score(frame).value,
        images,
        Saliency((part,) * 8, "files", "a test"),
        1.0,
        FEW,
    )
    assert max(max(probe.x, probe.y) for probe in probes) < 0.55


def test_masks_are_read_or_estimated_where_the_network_looks(inspector: Inspector, good: list[Path], tmp_path: Path) -> None:
    images = score_good(inspector, good)
    assert find_part(inspector.bundle, images, None).source == "everywhere"
    write_pictures(tmp_path / "masks", [np.where(grainy(0, image.size) > 0, 255, 0).astype(np.uint8) for image in images])
    found = find_part(inspector.bundle, images, tmp_path / "masks")
    assert found.source == "files" and found.masks is not None
    assert found.masks[0].shape == (64, 64)


def test_a_lower_threshold_sees_smaller_defects_and_rejects_more(inspector: Inspector, good: list[Path]) -> None:
    strict, lax = (measure(inspector, good, threshold, MANY).kinds[ALL] for threshold in (0.02, 0.1))
    assert strict.a50 is not None and lax.a50 is not None
    assert strict.a50 < 0.7 * lax.a50
    assert strict.found > lax.found


def test_a_station_that_is_blind_on_the_left_says_so(inspector: Inspector, good: list[Path]) -> None:
    judge = inspector.score

    def half_blind(image: Image) -> Score:
        seen = image.copy()
        seen[:, : image.shape[1] // 2] = 128
        return judge(seen)

    inspector.score = half_blind  # type: ignore[method-assign]
    capability = measure(inspector, good, 0.05, dataclasses.replace(MANY, per_kind=150, contrast=60.0))
    found = {side: sum(one.found for name, one in capability.regions.items() if side in name) for side in ("left", "right")}
    assert found["left"] < 0.1 * found["right"]
    assert capability.regions["middle left"].a90 is None
    assert capability.regions["middle right"].a90 is not None
    left, right = (
        [value for row in capability.map for value in columns(row)] for columns in (lambda r: r[:6], lambda r: r[18:])
    )
    assert all(value is None for value in left)
    assert all(value is not None for value in right)


@pytest.mark.parametrize(
    ("at", "name"),
    [((0, 0), "top left"), ((0.5, 0.5), "middle centre"), ((0.34, 0.99), "bottom centre"), ((1.0, 0.32), "top right")],
)
def test_regions_are_the_ninths_of_the_image(at: tuple[float, float], name: str) -> None:
    assert region_of(*at) == name


def test_an_image_of_the_bank_or_a_copy_is_refused(inspector: Inspector, good: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bank.png").write_bytes(encode_png(textured(5)))
    with pytest.raises(CalibrationError, match=r"bank\.png: the bundle was made with this picture"):
        score_good(inspector, [*good, tmp_path / "bank.png"])
    (tmp_path / "copy.bmp").write_bytes(cv2.imencode(".bmp", cv2.cvtColor(read_image(good[2]), cv2.COLOR_RGB2BGR))[1].tobytes())
    with pytest.raises(CalibrationError, match=r"copy\.bmp: the same picture as .*3\.png"):
        score_good(inspector, [*good, tmp_path / "copy.bmp"])
    with pytest.raises(CalibrationError, match="no good images"):
        score_good(inspector, [])


def test_a_score_that_is_not_finite_is_refused(inspector: Inspector, good: list[Path]) -> None:
    images = score_good(inspector, good)
    inspector.score = lambda image: Score(float("nan"), np.zeros((8, 8), np.float32))  # type: ignore[method-assign]
    with pytest.raises(CalibrationError, match="score is nan, expected a finite number"):
        score_good(inspector, good)
    with pytest.raises(CalibrationError, match="score is nan, expected a finite number"):
        draw_probes(inspector.bundle, lambda _, frame: inspector.score(frame).value, images, EVERYWHERE, 1.0, FEW)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"contrast": 10.0}, "contrast 10 grey levels, expected 20 to 127.5"),
        ({"contrast": 200.0}, "contrast 200 grey levels"),
        ({"per_kind": 0}, "0 defects of a kind"),
        ({"sizes_px": (1.0, 20.0)}, "sizes 1 to 20 px, expected 2 or more"),
        ({"sizes_px": (20.0, 10.0)}, "sizes 20 to 10 px, .* the larger one second"),
    ],
)
def test_a_plan_that_no_defect_can_follow_is_refused(plan: dict[str, float], said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        Plan(**plan)  # type: ignore[arg-type]


def test_the_usual_sizes_go_with_the_image() -> None:
    assert usual_sizes([(300, 300)]) == pytest.approx((300 / 64, 100))
    assert usual_sizes([(64, 64)]) == pytest.approx((2.0, 64 / 3))


def test_a_score_at_the_threshold_is_a_miss_as_at_the_station() -> None:
    probe = Probe("scar-noise", 0, 0.5, 0.5, 4.0, 30.0, 20.0, 1.5)
    scores = (1.5, float(np.nextafter(1.5, 2)))
    trials = to_trials([dataclasses.replace(probe, score=score) for score in scores], 1.5)
    assert trials.found.tolist() == [compare(score, 1.5)[0] is Outcome.REJECT for score in scores] == [False, True]


def test_the_words_say_pixels_millimetres_and_what_is_not_known(capability: Capability) -> None:
    sizes = capability.kinds[ALL].model_copy(update={"a90": 14.2, "a90_95": 17.0, "misfit": 0.5})
    assert in_words("scars", sizes, None) == "finds scars of 14.2 px or more with 90 % probability, with 95 % confidence 17 px"
    assert "14.2 px (1.4 mm) or more" in in_words("scars", sizes, 0.1)
    assert "fits badly" in in_words("scars", sizes.model_copy(update={"misfit": 0.001}), None)
    unbounded = sizes.model_copy(update={"a90_95": None, "reason": "the bound is far"})
    assert in_words("scars", unbounded, None).endswith("not with 95 % confidence: the bound is far")
    assert in_words("scars", unbounded.model_copy(update={"misfit": 0.001}), None).endswith("the curve fits badly, look at it")
    unknown = sizes.model_copy(update={"a90": None, "reason": "none was found"})
    assert in_words("scars", unknown, None) == "scars: no size can be stated: none was found"


def test_the_record_holds_what_it_takes_to_check_it(capability: Capability) -> None:
    assert len({image.pixels for image in capability.images}) == 8
    assert len(capability.drawn) == 360
    assert all(drawn.found == (drawn.score > 0.05) for drawn in capability.drawn)
    whole = capability.kinds[ALL]
    assert (whole.found, whole.tried) == (sum(drawn.found for drawn in capability.drawn), 360)
    assert sum(one.tried for one in capability.regions.values()) == 360
    curve = curve_of(whole, np.array([whole.a50, whole.a90]), capability.contrast)
    assert curve == pytest.approx([0.5, 0.9])
    assert len(whole.bounds) == len(LEVELS)
    assert Capability.model_validate_json(capability.model_dump_json()) == capability


def test_a_threshold_that_was_set_by_hand_is_marked_on_the_page_in_the_record_and_the_table(
    calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = calibrated / "line-1.json"
    manual = load_calibration(record).model_copy(update={"method": "manual", "who": "Ada", "why": "lamp <changed>"})
    save_calibration(record, manual)
    assert run(calibrated) == 0
    assert "threshold 0.05 SET BY HAND" in " ".join(capsys.readouterr().out.split())
    page = (calibrated / "report" / PAGE).read_text()
    assert f"threshold 0.05, SET BY HAND by Ada, {manual.when}: lamp &lt;changed&gt;" in page
    assert json.loads((calibrated / "report" / RECORD).read_text())["threshold_from"] == manual.origin


def test_a_record_of_before_origins_were_kept_is_read(capability: Capability) -> None:
    document = capability.model_dump(mode="json")
    del document["threshold_from"]
    assert Capability.model_validate(document).threshold_from == ""


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_scored(
    calibrated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.capability_door.score_good", lambda *_: pytest.fail("an image was scored"))
    assert run(calibrated, "--out", str(calibrated / "line-1.json" / "report")) == 2
    assert "could not be written (Not a directory)" in capsys.readouterr().err


def test_the_page_needs_nothing_beside_it_and_escapes_names(capability: Capability) -> None:
    page = render(capability, encode_png(flat(9)), 0.1).decode()
    assert "What station line &lt;1&gt; can see" in page and "<1>" not in page
    assert not re.search(r"(src|href)=['\"]?(?!data:)\w", page)
    assert page.count("<svg") == 7 + len(capability.regions)
    for name in NAMES.values():
        assert f"<td>{name}<td>" in page
    assert capability.bundle_digest in page and capability.calibration_digest in page


def test_the_map_colours_what_is_stated_alone() -> None:
    image = grainy(1, (60, 90))
    sizes = [[10.0] * 12 + [None] * 12] * 12 + [[40.0] * 12 + [None] * 12] * 12
    drawn = draw_map(image, sizes, "a title")
    assert drawn.shape[1] == 720
    plain = draw_map(image, [[None] * 24] * 24, "a title")
    assert np.array_equal(drawn[:480, 400:], plain[:480, 400:])
    small, large = drawn[20:40, 200:220].reshape(-1, 3).mean(axis=0), drawn[440:460, 200:220].reshape(-1, 3).mean(axis=0)
    assert small[2] > small[0] and large[0] > large[2]  # bluish for small defects, yellow for large ones
    assert np.array_equal(plain[:480], draw_map(image, [[None] * 24] * 24, "another")[:480])


def run(tmp_path: Path, *more: str) -> int:
    where = ["--bundle", str(tmp_path / "bundle"), "--calibration", str(tmp_path / "line-1.json")]
    which = ["--images", str(tmp_path / "good"), "--out", str(tmp_path / "report"), "--threads", "1"]
    return main(["capability", *where, *which, "--defects", "60", "--contrast", "40", *more])


@pytest.fixture
def calibrated(tmp_path: Path, inspector: Inspector, good: list[Path]) -> Path:
    calibration = conformal_record(inspector, good, station="line-1", rate=0.2)
    save_calibration(tmp_path / "line-1.json", calibration.model_copy(update={"threshold": 0.05}))
    return tmp_path


def test_the_door_writes_page_map_and_record_and_says_it_in_words(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(calibrated) == 0
    said = capsys.readouterr().out
    assert re.search(r"finds defects of [\d.]+ px or more with 90 % probability", said)
    assert "rejects 0 of 8 good images (0.0%) at the same threshold" in said
    record = Capability.model_validate_json((calibrated / "report" / RECORD).read_bytes())
    assert record.station == "line-1" and record.threshold == 0.05
    assert decode_image((calibrated / "report" / MAP).read_bytes()).shape[1] == 720
    assert (calibrated / "report" / PAGE).read_text().startswith("<!doctype html>")
    assert run(calibrated) == 0
    again = json.loads((calibrated / "report" / RECORD).read_text())
    assert {**again, "when": ""} == {**record.model_dump(mode="json"), "when": ""}


def test_the_door_says_when_nothing_can_be_stated(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(calibrated, "--sizes", "2", "3") == 0
    read = capsys.readouterr()
    assert "all kinds: no size can be stated" in read.out
    assert "no size can be stated for all kinds together" in read.err


def test_the_door_refuses_what_does_not_belong_together(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(calibrated / "bundle", threshold=2.0)
    assert run(calibrated) == 2
    assert "calibration is for bundle" in capsys.readouterr().err
    (calibrated / "report").write_text("")
    assert run(calibrated) == 2
    assert "a file, expected a folder for the report" in capsys.readouterr().err


def test_an_image_in_one_region_of_the_frame_is_a_view(inspector: Inspector) -> None:
    frame = grainy(1)
    assert np.shares_memory(judged_region(inspector.bundle, frame), frame)
