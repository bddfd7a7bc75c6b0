"""`station.yaml`: every wrong key is found, with the line that it stands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.camera_sections import (
    AnyLive,
    CameraSource,
    CameraTrigger,
    CsiSource,
    FolderSource,
    GenicamSource,
    Region,
    WhiteBalance,
)
from edge.config import ConfigError, load_config, load_recipes, rejector_setup
from edge.lines import LineSpec
from edge.rejector_process import Setup
from edge.sections import EvidenceConfig
from edge.travel import Settings

GOOD = """\
station: line-1
camera: left
bundle: bundles/carpet
calibration: line-1.json
backend: onnxruntime
threads: 2
deadline_ms: 250
source:
  kind: replay
  path: parts
  fps: 4.5
rejector:
  kind: dry-run
journal: logs/journal.db
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good configuration."""
    (tmp_path / "station.yaml").write_text(GOOD)
    return tmp_path / "station.yaml"


def faults_of(path: Path) -> list[str]:
    """What is wrong, one line each, with the path up to the file's folder left out."""
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert str(refusal.value) == "\n".join(refusal.value.faults)
    return [fault.removeprefix(f"{path.parent}/") for fault in refusal.value.faults]


def test_faults_come_in_the_order_of_the_files_lines(path: Path) -> None:
    path.write_text(
        "staton: line-1\n"  # unknown, which the model says last; 'station' and 'journal' are missing
        "threads: no\n"
        "calibration: line-1.json\n"
        "deadline_ms: -1\n"
        "source: {kind: replay, path: parts, speed: 2}\n"
        "bundle: bundle\n"
        "threads: 0\n"
    )
    found = faults_of(path)
    assert [int(fault.split(":")[1]) for fault in found] == [1, 1, 1, 4, 5, 7]
    assert "key 'threads' appears twice" in found[-1]


def test_a_good_one_is_read_and_its_paths_count_from_its_folder(path: Path) -> None:
    config = load_config(path)
    assert (config.station, config.camera, config.threads, config.deadline_ms) == ("line-1", "left", 2, 250)
    assert config.bundle == path.parent / "bundles/carpet"
    assert config.calibration == path.parent / "line-1.json"
    assert config.journal == path.parent / "logs/journal.db"
    assert config.source == FolderSource(kind="replay", path=path.parent / "parts", fps=4.5)
    assert config.rejector.kind == "dry-run"


def test_absolute_paths_stay(path: Path) -> None:
    path.write_text(GOOD.replace("bundles/carpet", "/srv/carpet").replace("parts", "/srv/parts"))
    config = load_config(path)
    assert config.bundle == Path("/srv/carpet")
    assert isinstance(config.source, FolderSource)
    assert config.source.path == Path("/srv/parts")


def test_what_may_be_left_out(path: Path) -> None:
    path.write_text("station: s\nbundle: b\ncalibration: c\nsource: {kind: replay, path: p}\njournal: j\n")
    config = load_config(path)
    assert (config.camera, config.backend, config.threads, config.deadline_ms) == ("camera-1", "onnxruntime", 0, 1000)
    assert isinstance(config.source, FolderSource)
    assert config.source.fps is None
    assert config.rejector.kind == "dry-run"


@pytest.mark.parametrize(
    ("written", "device"), [("0", 0), ("/dev/video0", "/dev/video0"), ("rtsp://camera/1", "rtsp://camera/1")]
)
def test_a_camera_by_number_path_or_url(path: Path, written: str, device: int | str) -> None:
    path.write_text(GOOD.replace("kind: replay\n  path: parts\n  fps: 4.5", f"kind: camera\n  device: {written}"))
    assert load_config(path).source == CameraSource(kind="camera", device=device, timeout_ms=2000)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "camera: left",
            "kamera: left",
            "station.yaml:2: unknown key 'kamera'; expected one of: backend, bundle, calibration, camera, challenge, code",
        ),
        ("  fps: 4.5", "  speed: 4.5", "station.yaml:11: unknown key 'source.speed'; expected one of: fps, kind, path"),
        ("  fps: 4.5", "  camera: x", "station.yaml:11: unknown key 'source.camera'; expected one of"),
        ("  fps: 4.5", "  replay: x", "station.yaml:11: unknown key 'source.replay'; expected one of"),
        (
            "dry-run\n",
            "dry-run\n  line: 7\n",
            "station.yaml:14: unknown key 'rejector.line'; expected one of: heartbeat_ms",
        ),
        ("  fps: 4.5", "  device: 0", "station.yaml:11: unknown key 'source.device'"),
        ("threads: 2", "threads: 2\n7: x", "station.yaml:7: "),
    ],
)
def test_unknown_keys(path: Path, old: str, new: str, fault: str) -> None:
    path.write_text(GOOD.replace(old, new))
    (found,) = faults_of(path)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("station: line-1\n", "", "station.yaml:1: key 'station' is missing; add it"),
        ("bundle: bundles/carpet\n", "", "station.yaml:1: key 'bundle' is missing; add it"),
        ("calibration: line-1.json\n", "", "station.yaml:1: key 'calibration' is missing; add it"),
        ("journal: logs/journal.db\n", "", "station.yaml:1: key 'journal' is missing; add it"),
        ("  path: parts\n", "", "station.yaml:8: key 'source.path' is missing; add it"),
        ("rejector:\n  kind: dry-run\n", "rejector: {}\n", "station.yaml:12: 'rejector' is "),
        ("  kind: replay\n", "", "station.yaml:8: 'source' is "),
        ("  kind: replay\n  path: parts\n", "  kind: camera\n", "station.yaml:8: key 'source.device' is missing; add it"),
    ],
)
def test_missing_keys(path: Path, old: str, new: str, fault: str) -> None:
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    assert any(found.startswith(fault) for found in faults_of(path))


@pytest.mark.parametrize(
    ("old", "new", "line", "name"),
    [
        *[
            ("deadline_ms: 250", f"deadline_ms: {bad}", 7, "deadline_ms")
            for bad in ("0", "-1", ".nan", ".inf", "-.inf", "fast", "yes", "'250'", "[250]", "null")
        ],
        *[("fps: 4.5", f"fps: {bad}", 11, "source.fps") for bad in ("0", "-2", ".nan", ".inf", "fast", "true")],
        *[("threads: 2", f"threads: {bad}", 6, "threads") for bad in ("-1", "1.5", "many", "true", ".nan")],
        *[("station: line-1", f"station: {bad}", 1, "station") for bad in ("''", "3", "[a]", "null", "2024-01-01", "on")],
        ("camera: left", "camera: ''", 2, "camera"),
        ("bundle: bundles/carpet", "bundle: 3", 3, "bundle"),
        ("calibration: line-1.json", "calibration: [x]", 4, "calibration"),
        ("backend: onnxruntime", "backend: 1", 5, "backend"),
        ("  kind: replay", "  kind: telepathy", 8, "source"),
        ("kind: dry-run", "kind: telepathy", 12, "rejector"),
        ("  path: parts", "  path: {a: b}", 10, "source.path"),
    ],
)
def test_wrong_values_are_shown_with_their_line(path: Path, old: str, new: str, line: int, name: str) -> None:
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    (found,) = faults_of(path)
    assert found.startswith(f"station.yaml:{line}: '{name}' is ")
    assert "pathlib" not in found  # whoever wires a station need not know Python


GPIO = """\
rejector:
  kind: gpio
  chip: /dev/gpiochip1
  lines:
    reject: {line: 7, active: low}
    ready: PH.00
    trigger: {line: 9, chip: /dev/gpiochip0, bias: pull-up, debounce_ms: 0.5}
  travel_ms: 400
  pulse_ms: 20
"""


def test_lines_by_offset_or_name(path: Path) -> None:
    path.write_text(GOOD.replace("rejector:\n  kind: dry-run\n", GPIO))
    setup = rejector_setup(load_config(path))
    assert setup.lines == (
        LineSpec("reject", True, "/dev/gpiochip1", 7, True),
        LineSpec("ready", True, "/dev/gpiochip1", "PH.00"),
        LineSpec("trigger", False, "/dev/gpiochip0", 9, bias="pull-up", debounce_us=500),
    )
    ms = 10**6
    assert setup.settings == Settings(400 * ms, 20 * ms, 0, 250 * ms, 100 * ms, announced=False, tolerance=5 * ms)
    assert Setup.from_json(setup.to_json()) == setup


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("  travel_ms: 400\n", "", "station.yaml:12: key 'rejector.travel_ms' is missing: there is no line encoder; add it"),
        (
            "travel_ms: 400",
            "travel_ms: 200",
            "station.yaml:12: the deadline of 250 ms is after the part's arrival at",
        ),
        ("  pulse_ms: 20", "  pulse_ms: 20\n  travel_pulses: 4", "station.yaml:12: key 'rejector.travel_pulses' does not go"),
        ("  pulse_ms: 20", "  pulse_ms: 20\n  confirm_ms: 4", "station.yaml:12: 'rejector.lines.confirm' and"),
        ("ready: PH.00", "ready: 7", "station.yaml:12: lines 'reject' and 'ready' are both 7; give each its own"),
        ("ready: PH.00", "raedy: 3", "station.yaml:17: unknown key 'rejector.lines.raedy'; expected one of: confirm, encoder"),
        ("active: low", "activ: low", "station.yaml:16: unknown key 'rejector.lines.reject.activ'; expected one of: active"),
        ("line: 7,", "line: -7,", "station.yaml:16: 'rejector.lines.reject.line' is -7; expected an offset, 0 or more, or a"),
        ("active: low", "active: 0", "station.yaml:16: 'rejector.lines.reject.active' is 0; input should be 'high' or 'low'"),
        ("    reject: {line: 7, active: low}\n", "", "station.yaml:15: key 'rejector.lines.reject' is missing; add it"),
        (
            "pulse_ms: 20",
            "pulse_ms: 20\n  heartbeat_ms: 20",
            "station.yaml:21: 'rejector.heartbeat_ms' is 20; input should be gr",
        ),
        ("pulse_ms: 20", "pulse_ms: yes", "station.yaml:20: 'rejector.pulse_ms' is True"),
        ("  pulse_ms: 20", "  pulse_ms: 20\n  driver: jetson", "station.yaml:12: Jetson.GPIO sets neither bias nor debounce"),
    ],
)
def test_lines_that_do_not_go_together(path: Path, old: str, new: str, fault: str) -> None:
    assert old in GPIO
    path.write_text(GOOD.replace("rejector:\n  kind: dry-run\n", GPIO.replace(old, new)))
    (found,) = faults_of(path)
    assert found.startswith(fault)


@pytest.mark.parametrize("bad", ["true", "-1", "1.5", "[0]", "null"])
def test_a_device_that_is_none(path: Path, bad: str) -> None:
    path.write_text(GOOD.replace("kind: replay\n  path: parts\n  fps: 4.5", f"kind: camera\n  device: {bad}"))
    assert all(fault.startswith("station.yaml:10: 'source.device' is ") for fault in faults_of(path))


@pytest.mark.parametrize("bad", ["0", "-5", ".nan", ".inf", "yes"])
def test_a_camera_timeout_that_is_none(path: Path, bad: str) -> None:
    new = f"kind: camera\n  device: 0\n  timeout_ms: {bad}"
    path.write_text(GOOD.replace("kind: replay\n  path: parts\n  fps: 4.5", new))
    (found,) = faults_of(path)
    assert found.startswith("station.yaml:11: 'source.timeout_ms' is ")


def source_of(path: Path, written: str) -> None:
    path.write_text(GOOD.replace("kind: replay\n  path: parts\n  fps: 4.5", written.replace("; ", "\n  ")))


def test_settings_of_each_kind_of_camera(path: Path) -> None:
    shared = (
        "exposure_us: 800; gain: 2; white_balance: {red: 1.5, blue: 2}; region: {x: 4, width: 640, height: 480}; rotation: 270;"
        " frame_rate: 30; timeout_ms: 500; stale_ms: 250; black_level: null; saturated_level: 255"
    )
    expected = {
        "exposure_us": 800,
        "gain": 2,
        "white_balance": WhiteBalance(red=1.5, blue=2),
        "region": Region(x=4, width=640, height=480),
        "rotation": 270,
        "frame_rate": 30,
        "timeout_ms": 500,
        "stale_ms": 250,
        "black_level": None,
        "saturated_level": 255,
    }
    kinds: list[tuple[str, AnyLive]] = [
        (
            "kind: camera; device: 0; width: 1280; height: 720",
            CameraSource(kind="camera", device=0, width=1280, height=720, **expected),
        ),
        ("kind: csi; sensor: 1; width: 1280; height: 720", CsiSource(kind="csi", sensor=1, width=1280, height=720, **expected)),
        (
            "kind: genicam; device: cam; pixel_format: BayerRG8; trigger: {source: Line2, edge: falling}",
            GenicamSource(
                kind="genicam",
                device="cam",
                pixel_format="BayerRG8",
                trigger=CameraTrigger(source="Line2", edge="falling"),
                **expected,
            ),
        ),
    ]
    for written, source in kinds:
        source_of(path, f"{written}; {shared}")
        assert load_config(path).source == source


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        (
            "kind: camera; device: 0; rotation: 45",
            "station.yaml:11: 'source.rotation' is 45; input should be 0, 90, 180 or 270",
        ),
        ("kind: camera; device: 0; exposure_us: 0", "station.yaml:11: 'source.exposure_us' is 0; input should be gr"),
        (
            "kind: camera; device: 0; trigger: {}",
            "station.yaml:11: unknown key 'source.trigger'; expected one of: black_level, device",
        ),
        ("kind: camera; device: 0; region: {x: 4}", "station.yaml:11: key 'source.region.width' is missing; add it"),
        ("kind: camera; device: 0; black_level: 256", "station.yaml:11: 'source.black_level' is 256; input should be less"),
        ("kind: csi; width: 64; height: 64", "station.yaml:8: key 'source.frame_rate' is missing; add it"),
        ("kind: genicam; trigger: {edge: up}", "station.yaml:10: 'source.trigger.edge' is 'up'; input should be 'rising' or"),
        (
            "kind: genicam; trigger: {line: 0}",
            "station.yaml:10: unknown key 'source.trigger.line'; expected one of: edge, source",
        ),
        (
            "kind: gige; device: 0",
            "station.yaml:8: 'source' is of kind 'gige', expected one of: 'replay', 'camera', 'csi'",
        ),
    ],
)
def test_settings_that_are_none(path: Path, written: str, fault: str) -> None:
    source_of(path, written)
    found = faults_of(path)
    assert any(line.startswith(fault) for line in found), found


def test_doubled_keys_at_any_depth(path: Path) -> None:
    path.write_text(GOOD.replace("threads: 2", "threads: 2\nthreads: 3").replace("  fps: 4.5", "  fps: 4.5\n  fps: 9"))
    assert faults_of(path) == [
        "station.yaml:7: key 'threads' appears twice; remove one",
        "station.yaml:13: key 'fps' appears twice; remove one",
    ]


def test_all_faults_come_at_once(path: Path) -> None:
    text = GOOD.replace("camera: left", "kamera: left").replace("deadline_ms: 250", "deadline_ms: -1")
    path.write_text(text.replace("journal: logs/journal.db", "station: line-2"))
    found = faults_of(path)
    assert sorted(fault.split(": ")[0] for fault in found) == [f"station.yaml:{line}" for line in (1, 14, 2, 7)]
    for part in ("unknown key 'kamera'", "'deadline_ms' is -1", "'journal' is missing", "'station' appears twice"):
        assert sum(part in fault for fault in found) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "station.yaml:1: expected keys"),
        ("# nothing\n", "station.yaml:1: expected keys"),
        ("null", "station.yaml:1: expected keys"),
        ("- a\n- b\n", "station.yaml:1: expected keys such as 'station:' and 'bundle:', got list"),
        ("just words", "station.yaml:1: expected keys such as 'station:' and 'bundle:', got str"),
        ("station: [1, 2\nbundle: x\n", "station.yaml:2: not YAML"),
        ("station: a\n\tbundle: x\n", "station.yaml:2: not YAML"),
        ("station: a: b\n", "station.yaml:1: not YAML"),
        ("station: a\n---\nstation: b\n", "station.yaml:2: not YAML"),
        ("? [a, b]\n: c\n", "station.yaml:1: not YAML"),
        ("station: !!python/object/apply:os.system ['true']\n", "station.yaml:1: not YAML"),
        ("station: a\x07b\n", "station.yaml: not YAML"),
        ("station: 2024-13-45\n", "station.yaml: not YAML"),
        ("source: &a\n  path: *a\n", "station.yaml: not YAML"),
        ("[" * 5000, "station.yaml: not YAML"),
    ],
)
def test_what_is_no_configuration(path: Path, text: str, fault: str) -> None:
    path.write_text(text)
    (found,) = faults_of(path)
    assert found.startswith(fault)


def test_files_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    path.write_bytes(GOOD.encode("utf-16"))
    assert faults_of(path)[0].startswith("station.yaml: cannot be read")
    path.write_bytes(b"station: l\xefne\n")
    assert faults_of(path)[0].startswith("station.yaml: cannot be read")
    for missing in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read .*; give a YAML file"):
            load_config(missing)


def test_a_byte_order_mark_is_no_fault(path: Path) -> None:
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_config(path).station == "line-1"


def test_the_precision_is_fp32_unless_given(path: Path) -> None:
    assert load_config(path).precision == "fp32"
    path.write_text(GOOD + "precision: fp16\n")
    assert load_config(path).precision == "fp16"
    path.write_text(GOOD + "precision: int4\n")
    (fault,) = faults_of(path)
    assert "'precision' is 'int4'; input should be 'fp32', 'fp16', 'int8' or 'int8-cpu'" in fault


def test_the_examples_are_valid() -> None:
    deploy = Path(__file__).parent.parent / "deploy"
    examples = list(deploy.glob("*.yaml"))
    for example in examples:
        for config in load_recipes(example).values():
            rejector_setup(config)
    kinds = {load_config(example).source.kind for example in examples}
    assert kinds == {"replay", "camera", "csi", "genicam"}


EVIDENCE = """\
journal_heads: far/heads.txt
journal_timeout_ms: 50
evidence:
  folder: pictures
  quota_mb: 500
  every: 0
  near_spreads: 0
  waiting: 4
"""


def test_evidence_and_heads_count_from_the_files_folder(path: Path) -> None:
    path.write_text(GOOD + EVIDENCE)
    config = load_config(path)
    assert config.journal_heads == path.parent / "far/heads.txt"
    assert config.journal_timeout_ms == 50
    folder = path.parent / "pictures"
    assert config.evidence == EvidenceConfig(folder=folder, quota_mb=500, every=0, near_spreads=0, waiting=4)


def test_no_evidence_is_kept_unless_asked_for(path: Path) -> None:
    config = load_config(path)
    assert (config.evidence, config.journal_heads, config.journal_timeout_ms) == (None, None, 200)
    path.write_text(GOOD + "evidence: {}\n")
    assert load_config(path).evidence == EvidenceConfig(folder=path.parent / "evidence")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "  every: 0",
            "  each: 0",
            "station.yaml:20: unknown key 'evidence.each'; expected one of: every, folder, near_spreads",
        ),
        ("  quota_mb: 500", "  quota_mb: 0", "station.yaml:19: 'evidence.quota_mb' is 0; input should be greater than 0"),
        ("  quota_mb: 500", "  quota_mb: .inf", "station.yaml:19: 'evidence.quota_mb' is inf"),
        ("  every: 0", "  every: -1", "station.yaml:20: 'evidence.every' is -1"),
        ("  every: 0", "  every: 1.5", "station.yaml:20: 'evidence.every' is 1.5"),
        ("  near_spreads: 0", "  near_spreads: -1", "station.yaml:21: 'evidence.near_spreads' is -1"),
        ("  near_spreads: 0", "  near_spreads: .nan", "station.yaml:21: 'evidence.near_spreads' is nan"),
        ("  waiting: 4", "  waiting: 0", "station.yaml:22: 'evidence.waiting' is 0"),
        ("  folder: pictures", "  folder: 3", "station.yaml:18: 'evidence.folder' is 3"),
        ("journal_timeout_ms: 50", "journal_timeout_ms: 0", "station.yaml:16: 'journal_timeout_ms' is 0"),
        ("journal_heads: far/heads.txt", "journal_heads: [a]", "station.yaml:15: 'journal_heads' is ['a']"),
    ],
)
def test_faults_of_evidence_and_journal(path: Path, old: str, new: str, fault: str) -> None:
    assert old in EVIDENCE
    path.write_text(GOOD + EVIDENCE.replace(old, new))
    (found,) = faults_of(path)
    assert found.startswith(fault)


USB = "source:\n  kind: camera\n  device: 0\n"
GIGE = "source:\n  kind: genicam\n"
PRESENCE = "trigger: {kind: presence, empty: empty.npz}\n"


@pytest.mark.parametrize(
    ("source", "trigger", "lined", "refused"),
    [
        (USB, "", False, True),  # 2000 ms, unless given
        (f"{USB}  timeout_ms: 351\n", "", False, True),
        (f"{USB}  timeout_ms: 350\n", "", False, False),
        (USB, PRESENCE, False, True),
        (f"{USB}  timeout_ms: 350\n", PRESENCE, False, False),
        (GIGE, "", False, True),
        (f"{GIGE}  trigger: {{source: Line0}}\n", "", False, False),  # may be silent
        (USB, "", True, False),  # the line tells of every part
        (USB, "trigger: {kind: timer, period_ms: 500}\n", False, False),  # and so does the clock
        ("source:\n  kind: replay\n  path: parts\n  fps: 4.5\n", "", False, False),
    ],
)
def test_a_camera_that_stalls_is_noticed_before_a_part_is_at_the_ejector(
    path: Path, source: str, trigger: str, lined: bool, refused: bool
) -> None:
    lines = "    reject: 7\n    ready: 8\n" + ("    trigger: 9\n" if lined else "")
    rejector = (
        f"rejector:\n  kind: gpio\n  driver: gpiod\n  chip: /dev/gpiochip0\n  lines:\n{lines}  travel_ms: 400\n  pulse_ms: 20\n"
    )
    text = GOOD.replace("rejector:\n  kind: dry-run\n", rejector + trigger)
    path.write_text(text.replace("source:\n  kind: replay\n  path: parts\n  fps: 4.5\n", source))
    if not refused:
        load_config(path)
        return
    (found,) = faults_of(path)
    got = "351" if "351" in source else "2000"
    assert f"'source.timeout_ms' is {got}, expected at most 350, travel_ms less 50" in found
