"""Calibrating on good images, and its door."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.fit import find_images, make_calibration, score_images, set_by_hand
from calibration.propose import Wishes, propose
from calibration.record import Calibration, load_calibration
from calibration.scores import Scored, split
from engines.bundle import Variant, load_bundle
from engines.images import encode_png, pixel_digest
from engines.inspector import Inspector, Score
from tests.fakes import feature_graph, flat, textured, tiny_calibration, write_pictures, write_tiny_bundle

GOOD = [flat(grey) for grey in (129, 126, 132, 123, 135, 137, 138, 117, 140)]  # farther and farther from grey 128
IN_BANK = textured(5)


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    """A bundle whose bank is grey 128 and which says that a textured picture is in it."""
    write_tiny_bundle(tmp_path / "bundle", normals=(IN_BANK,))
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        yield opened


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Nine good pictures."""
    return write_pictures(tmp_path / "good", GOOD)


def calibrate(inspector: Inspector, paths: list[Path], rate: float) -> Calibration:
    """Score, propose, make the conformal record."""
    wishes = Wishes(rate=rate)
    proposal = propose(split(score_images(inspector, paths, paths[0].parent))[0], wishes).of("conformal")
    return make_calibration(inspector, proposal, wishes, station="line-1", camera="left", who="Ada")


def test_the_threshold_is_the_score_of_the_picture_at_that_rank(inspector: Inspector, good: list[Path]) -> None:
    # ceil(10 * 0.8) = 8: the eighth nearest to grey 128 is 117
    assert calibrate(inspector, good, 0.2).threshold == inspector.score(flat(117)).value
    # ceil(10 * 0.9) = 9: the farthest
    assert calibrate(inspector, good, 0.1).threshold == inspector.score(flat(140)).value


def test_the_order_of_the_files_does_not_matter(inspector: Inspector, good: list[Path]) -> None:
    assert calibrate(inspector, good, 0.2).threshold == calibrate(inspector, good[::-1], 0.2).threshold


def test_the_record_says_what_it_is_valid_for(inspector: Inspector, good: list[Path]) -> None:
    calibration = calibrate(inspector, good, 0.2)
    assert (calibration.station, calibration.camera, calibration.who) == ("line-1", "left", "Ada")
    assert (calibration.n, calibration.rate, calibration.method, calibration.recipe) == (9, 0.2, "conformal", "tiny")
    assert calibration.bundle_digest == inspector.bundle.digest
    assert calibration.engine_digest == inspector.extractor.engine_digest
    assert (calibration.backend, calibration.precision) == ("onnxruntime", "fp32")
    assert calibration.false_reject is not None
    assert calibration.false_reject.expected == pytest.approx(0.2)  # rank 8 of 9: 2 / 10


def test_progress_counts_every_image(inspector: Inspector, good: list[Path]) -> None:
    calls: list[tuple[int, int]] = []
    score_images(inspector, good, good[0].parent, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 9) for number in range(1, 10)]


@pytest.mark.parametrize("name", ["renamed.png", "again.bmp", "again.tiff", "again.webp"])
def test_an_image_of_the_bank_is_known_whatever_its_name_and_format(
    inspector: Inspector, good: list[Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if name.endswith("webp") else []
    assert cv2.imwrite(str(path), cv2.cvtColor(IN_BANK, cv2.COLOR_RGB2BGR), lossless)
    with pytest.raises(CalibrationError, match=f"{name}: the bundle was made with this picture.*; calibrate on other"):
        score_images(inspector, [*good, path], tmp_path)


def test_the_same_picture_twice_is_refused_and_both_are_named(inspector: Inspector, good: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin.bmp"
    cv2.imwrite(str(twin), cv2.cvtColor(GOOD[3], cv2.COLOR_RGB2BGR))
    with pytest.raises(CalibrationError, match=r"twin\.bmp: the same picture as .*4\.png; .*remove one"):
        score_images(inspector, [*good, twin], tmp_path)


@pytest.mark.usefixtures("inspector", "good")
def test_too_few_images_are_refused_before_one_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.fit.read_image", lambda path: pytest.fail(f"{path} was read"))
    assert fit(tmp_path, rate="0.01") == 2
    assert "9 good images, expected at least 99" in capsys.readouterr().err


def test_a_score_that_is_not_finite_is_refused_with_its_file(
    inspector: Inspector, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "score", lambda image: Score(float("nan"), np.zeros((8, 8), np.float32)))
    with pytest.raises(CalibrationError, match=r"1\.png: score is nan, expected a finite number"):
        score_images(inspector, good, good[0].parent)


def test_damaged_images_are_all_named(inspector: Inspector, good: list[Path]) -> None:
    for index in (1, 4):
        good[index].write_bytes(good[index].read_bytes()[:-20])
    with pytest.raises(CalibrationError, match=rf"cannot be used:\n  {good[1]}: .*\n  {good[4]}: "):
        score_images(inspector, good, good[0].parent)


def test_every_picture_comes_with_its_score_and_digest(inspector: Inspector, good: list[Path], tmp_path: Path) -> None:
    scored = score_images(inspector, good, tmp_path, good=False)
    assert [one.name for one in scored] == [f"good/{path.name}" for path in good]
    assert [one.score for one in scored] == [inspector.score(image).value for image in GOOD]
    assert [one.pixels for one in scored] == [pixel_digest(image) for image in GOOD]
    assert not any(one.good for one in scored)
    with pytest.raises(CalibrationError, match=r"1\.png: the same picture as good/"):
        score_images(inspector, good[:1], tmp_path, known=scored)


def test_pictures_of_one_folder_are_one_part(inspector: Inspector, tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", GOOD[:2])
    write_pictures(tmp_path / "set" / "part-a", GOOD[2:5])
    paths = find_images(tmp_path / "set", "folders")
    assert len(paths) == 5
    assert len(find_images(tmp_path / "set", "detect")) == 2
    scored = score_images(inspector, paths, tmp_path / "set", grouping="folders")
    assert sorted(str(one.group) for one in scored) == ["None", "None", "part-a", "part-a", "part-a"]
    assert split(scored)[0].count == 3


def test_a_second_frame_of_a_part_is_the_same_part(inspector: Inspector, tmp_path: Path) -> None:
    parts = [textured(seed) for seed in range(20, 30)]
    again = np.clip(parts[3].astype(np.int16) + 2, 0, 255).astype(np.uint8)
    paths = write_pictures(tmp_path / "set", [*parts, again])
    groups = [one.group for one in score_images(inspector, paths, tmp_path / "set")]
    assert [place for place, group in enumerate(groups) if group is not None] == [3, 10]
    assert groups[3] == groups[10] == paths[3].name
    assert {one.group for one in score_images(inspector, paths, tmp_path / "set", grouping="none")} == {None}


def fit(tmp_path: Path, *more: str, out: str = "line-1.json", rate: str = "0.2") -> int:
    """Run the door on the pictures below `tmp_path`."""
    where = ["--bundle", str(tmp_path / "bundle"), "--images", str(tmp_path / "good"), "--out", str(tmp_path / out)]
    return main(["fit", *where, "--station", "line-1", "--false-reject", rate, *more])


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_writes_a_record_and_says_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "Ada")
    assert fit(tmp_path, "--camera", "left") == 0
    calibration = load_calibration(tmp_path / "line-1.json")
    assert (calibration.station, calibration.camera, calibration.n, calibration.who) == ("line-1", "left", 9, "Ada")
    said = capsys.readouterr().out
    assert f"threshold {calibration.threshold:.6g} from 9 good images" in said
    assert "probability 0.2 or less" in said


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_names_the_account_by_number_where_it_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert fit(tmp_path) == 0
    assert load_calibration(tmp_path / "line-1.json").who.startswith("uid ")


@pytest.mark.usefixtures("inspector", "good")
@pytest.mark.parametrize("rate", ["0", "1", "nan", "0.01", "-1"])
def test_the_door_refuses_a_rate_that_it_cannot_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str) -> None:
    assert fit(tmp_path, rate=rate) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "line-1.json").exists()


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_refuses_a_folder_as_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert fit(tmp_path, out="folder") == 2
    assert "a folder, expected the path of the record" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_refuses_a_record_that_cannot_be_written_before_an_image_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.fit.read_image", lambda path: pytest.fail(f"{path} was read"))
    (tmp_path / "file").touch()
    assert fit(tmp_path, out="file/line-1.json") == 2
    assert "could not be written (Not a directory)" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector", "good")
@pytest.mark.parametrize("more", [("--station", " "), ("--camera", "")])
def test_the_door_refuses_a_name_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, str]
) -> None:
    assert fit(tmp_path, *more) == 2
    assert capsys.readouterr().err == f"error: {more[0]} is empty, expected its name as in the station's configuration\n"


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_refuses_a_history_that_is_not_whole_before_it_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(tmp_path) == 0
    (tmp_path / "line-1.history.jsonl").write_text("")
    monkeypatch.setattr("calibration.__main__.load_bundle", lambda path: pytest.fail("nothing may be loaded"))
    assert fit(tmp_path) == 2
    assert "keep both files for whoever looks into it" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector")
def test_the_door_refuses_an_empty_folder_and_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "good").mkdir()
    assert fit(tmp_path) == 2
    assert "0 good images, expected at least 4" in capsys.readouterr().err


@pytest.mark.usefixtures("good")
def test_the_door_refuses_a_bundle_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path) == 2
    assert "no manifest.json there" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector", "good")
def test_a_refusal_leaves_the_old_record(tmp_path: Path) -> None:
    assert fit(tmp_path) == 0
    before = json.loads((tmp_path / "line-1.json").read_text())
    assert fit(tmp_path, rate="0.001") == 2
    assert json.loads((tmp_path / "line-1.json").read_text()) == before


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["fit"], ["guess"], ["fit", "--false-reject", "high"], ["set", "--record", "r.json", "--threshold", "1"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    capsys.readouterr()


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("spread", "warned"), [(0.001, True), (10.0, False)])
def test_a_threshold_far_above_the_provisional_one_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spread: float, warned: bool
) -> None:
    write_tiny_bundle(tmp_path / "bundle", threshold=0.001, spread=spread)
    assert fit(tmp_path) == 0
    read = capsys.readouterr()
    assert "highest scores: " in read.out
    assert "is each of these really a good part?" in read.out
    assert ("far above the bundle's provisional 0.001" in read.err) == warned


def test_a_picture_of_another_size_is_named(tmp_path: Path, good: list[Path]) -> None:
    write_tiny_bundle(tmp_path / "sized", frame_size=(64, 64))
    good[2].write_bytes(encode_png(flat(120, (64, 80))))
    with (
        Inspector(load_bundle(tmp_path / "sized")) as sized,
        pytest.raises(CalibrationError, match=rf"{good[2]}: frame is 80 x 64"),
    ):
        score_images(sized, good, tmp_path)


@pytest.mark.usefixtures("good")
def test_the_door_calibrates_the_precision_that_the_station_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = Variant(precision="fp16", images=2, max_difference=0.0, flips=0, offered=True)
    write_tiny_bundle(tmp_path / "bundle", variants=(variant,), graphs={"fp16": feature_graph(convolution=True)})
    assert fit(tmp_path, "--precision", "fp16") == 0
    assert load_calibration(tmp_path / "line-1.json").precision == "fp16"
    assert fit(tmp_path, "--precision", "int8") == 2
    assert "no int8, it has fp32, fp16" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector", "good")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "zero-escape"], "no bad parts; give pictures of some with --bad"),
        (["--method", "pareto"], "9 good parts, expected at least 100 for a tail"),
        (["--defects", "1.5"], "share of bad parts is 1.5, expected above 0 and below 1"),
        (["--margin", "nan"], "margin is nan, expected a number of 0 or more"),
        (["--margin", "-1"], "margin is -1, expected a number of 0 or more"),
        (["--bad", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_the_door_refuses_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert fit(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("line-1*"))


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_takes_bad_parts_and_says_what_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "bad", [flat(grey) for grey in range(150, 156)])
    where = ["--bad", str(tmp_path / "bad"), "--cost-escape", "100", "--cost-overkill", "1", "--defects", "0.02"]
    assert fit(tmp_path, *where, "--method", "cost", "--why", "first run") == 0
    read = capsys.readouterr()
    calibration = load_calibration(tmp_path / "line-1.json")
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        worst, least = opened.score(flat(140)).value, opened.score(flat(150)).value
    assert calibration.threshold == (worst + least) / 2  # the middle of the gap
    assert (calibration.method, calibration.rate, calibration.why) == ("cost", None, "first run")
    assert calibration.escape is not None
    assert "of 1,000 bad parts like the 6 shown about 143" in read.out  # none of 6 passed: 1 / 7
    assert "6 bad parts say little" in read.err
    for method in ("conformal", "sigma", "f-beta", "zero-escape"):
        assert method in read.out
    assert "no pareto: 9 good parts, expected at least 100" in read.out


@pytest.mark.usefixtures("inspector")
def test_the_door_names_what_it_takes_for_one_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "good", GOOD)
    for number in (1, 2, 3):
        (tmp_path / "good" / "tray").mkdir(exist_ok=True)
        (tmp_path / "good" / "tray" / f"{number}.png").write_bytes(encode_png(flat(128 + number * 5)))
    assert fit(tmp_path, "--groups", "folders") == 2  # 133 and 138 are there twice
    assert "the same picture as" in capsys.readouterr().err
    for number in (1, 2, 3):
        (tmp_path / "good" / "tray" / f"{number}.png").write_bytes(encode_png(flat(100 + number)))
    assert fit(tmp_path, "--groups", "folders") == 0
    read = capsys.readouterr()
    assert "taken for the same part, 1 in all: tray/1.png, tray/2.png, tray/3.png" in read.out
    assert "from 10 good parts on 12 images" in read.out
    assert "12 pictures are of 10 parts" in read.err
    assert load_calibration(tmp_path / "line-1.json").n == 10


@pytest.mark.usefixtures("inspector")
def test_the_door_takes_scores_that_were_handed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{number},{number}.0,good" for number in range(1, 10)] + ["10,50,", "11,60,bad"]
    (tmp_path / "scores.csv").write_text("part,score,label\n" + "\n".join(rows))
    where = ["--bundle", str(tmp_path / "bundle"), "--scores", str(tmp_path / "scores.csv"), "--out", str(tmp_path / "r.json")]
    assert main(["fit", *where, "--station", "line-1", "--false-reject", "0.2"]) == 0
    calibration = load_calibration(tmp_path / "r.json")
    assert (calibration.threshold, calibration.n) == (8.0, 9)
    read = capsys.readouterr()
    assert "left out because nobody confirmed these parts: 1" in read.err
    assert "9 good and 1 bad parts, expected 2 of each" in read.out
    assert main(["fit", *where, "--station", "line-1", "--false-reject", "0.2", "--bad", str(tmp_path)]) == 2
    assert "expected bad parts in the same file" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector", "good")
def test_a_threshold_set_by_hand_is_marked_everywhere_and_says_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = str(tmp_path / "line-1.json")
    assert fit(tmp_path) == 0
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        threshold = opened.score(flat(117)).value + 1e-6  # 140 alone lies above: 1 of 9, so 2 of 10 to expect
    capsys.readouterr()
    assert main(["set", "--record", record, "--threshold", str(threshold), "--why", "lamp changed"]) == 0
    said = capsys.readouterr()
    assert "SET BY HAND by" in said.out
    assert "lamp changed" in said.out
    assert "good parts rejected  20 %" in said.out
    assert "no statistics stand behind" in said.err
    calibration = load_calibration(record)
    assert (calibration.manual, calibration.threshold, calibration.rate) == (True, threshold, None)
    assert main(["show", "--record", record]) == 0
    assert "SET BY HAND by" in capsys.readouterr().out
    assert main(["history", "--record", record]) == 0
    assert "MANUAL" in capsys.readouterr().out
    for why in ("", "  "):
        assert main(["set", "--record", record, "--threshold", "2", "--why", why]) == 2
        assert "needs a reason" in capsys.readouterr().err
    assert load_calibration(record) == calibration


def test_by_hand_without_scores_nothing_is_expected() -> None:
    old = tiny_calibration()
    new = set_by_hand(old, 3.5, [], who="Ada", why="night shift")
    assert (new.n, new.rate, new.false_reject, new.escape) == (None, None, None, None)
    assert new.bundle_digest == old.bundle_digest
    with pytest.raises(CalibrationError, match="threshold is nan"):
        set_by_hand(old, float("nan"), [], who="Ada", why="night shift")
    parts = [Scored(name=str(score), score=score) for score in range(1, 10)] + [Scored(name="bad", score=3, good=False)]
    new = set_by_hand(old, 7.5, parts, who="Ada", why="night shift")
    assert new.n == 9
    assert new.false_reject is not None
    assert new.false_reject.expected == pytest.approx(0.3)  # two of nine above it: (2 + 1) / (9 + 1)
    assert new.escape is not None
    assert new.escape.expected == 1.0
