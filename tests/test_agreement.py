"""Triggers, references and control that do not go together are refused, with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge import StationError
from edge.agreement import Address, parse_address
from edge.config import ConfigError, load_config
from edge.sections import (
    ControlSection,
    FilePartRef,
    FrameTrigger,
    LineTrigger,
    PresenceTrigger,
    SerialPartRef,
    SoftwareTrigger,
    TimerTrigger,
)

BASE = "station: s\nbundle: b\ncalibration: c\njournal: j\nsource: {kind: camera, device: 0}\n"
LINED = "rejector: {kind: gpio, lines: {reject: 7, trigger: 8}, travel_ms: 2000, pulse_ms: 20}\n"  # line 6
CONTROL = "control: {}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the configuration goes."""
    return tmp_path / "station.yaml"


@pytest.mark.parametrize(
    ("text", "trigger"),
    [
        ("", FrameTrigger(kind="frame")),
        (LINED, LineTrigger(kind="line")),
        (f"{LINED}trigger: {{kind: line, waiting: 3}}\n", LineTrigger(kind="line", waiting=3)),
        ("trigger: {kind: frame}\n", FrameTrigger(kind="frame")),
        ("trigger: {kind: software}\n", SoftwareTrigger(kind="software", by=("stdin",))),
        (f"trigger: {{kind: software}}\n{CONTROL}", SoftwareTrigger(kind="software", by=("http",))),
        (
            f"trigger: {{kind: software, by: [stdin, http]}}\n{CONTROL}",
            SoftwareTrigger(kind="software", by=("stdin", "http")),
        ),
        ("trigger: {kind: timer, period_ms: 500}\n", TimerTrigger(kind="timer", period_ms=500)),
    ],
)
def test_what_makes_a_part_and_what_does_where_nothing_is_said(path: Path, text: str, trigger: object) -> None:
    path.write_text(BASE + text)
    assert load_config(path).triggered == trigger


def test_paths_count_from_the_files_folder(path: Path) -> None:
    path.write_text(
        BASE
        + "trigger: {kind: presence, empty: empty.npz, region: [0, 8, 64, 32], enters: left}\n"
        + "part_ref: {kind: file, path: order.txt}\ncontrol: {address: 'unix:run/line.sock', token: secret}\n"
    )
    config = load_config(path)
    folder = path.parent
    assert config.trigger == PresenceTrigger(kind="presence", empty=folder / "empty.npz", region=(0, 8, 64, 32), enters="left")
    assert config.part_ref == FilePartRef(kind="file", path=folder / "order.txt")
    assert config.control == ControlSection(address=f"unix:{folder}/run/line.sock", token=folder / "secret")


def test_a_scanner_has_a_speed_and_ages(path: Path) -> None:
    path.write_text(BASE + "part_ref: {kind: serial, device: /dev/ttyACM0, max_age_ms: 900}\n")
    assert load_config(path).part_ref == SerialPartRef(
        kind="serial", device=Path("/dev/ttyACM0"), baud=9600, min_age_ms=0, max_age_ms=900
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("trigger: {kind: line}\n", "6: a trigger of kind line needs 'rejector.lines.trigger'; add that line"),
        (
            f"{LINED}trigger: {{kind: timer, period_ms: 5}}\n",
            "7: a trigger of kind timer beside 'rejector.lines.trigger': parts would come from two places; remove one",
        ),
        (f"{LINED}trigger: {{kind: frame}}\n", "7: a trigger of kind frame beside"),
        ("trigger:\n  kind: software\n  by: [http]\n", "8: a trigger by http needs the section 'control'; add it"),
        ("trigger:\n  kind: software\n  by: [stdin, stdin]\n", "8: 'trigger.by' is ['stdin', 'stdin']; name each once"),
        ("trigger: {kind: software, by: []}\n", "6: 'trigger.by' is "),
        ("trigger: {kind: software, by: [stdin, mqtt]}\n", "6: 'trigger.by' is 'mqtt'; input should be"),
        ("trigger: {kind: timer}\n", "6: key 'trigger.period_ms' is missing; add it"),
        ("trigger: {kind: timer, period_ms: 0}\n", "6: 'trigger.period_ms' is 0"),
        ("trigger: {kind: magic}\n", "6: 'trigger' is of kind 'magic', expected one of: 'line', 'frame', 'software'"),
        ("trigger: {kind: presence}\n", "6: key 'trigger.empty' is missing; add it"),
        ("trigger: {kind: presence, empty: e, region: [0, 0, 0, 5]}\n", "6: 'trigger.region' is 0"),
        ("trigger: {kind: presence, empty: e, enters: up}\n", "6: 'trigger.enters' is 'up'"),
        ("trigger: {kind: frame, period_ms: 5}\n", "6: unknown key 'trigger.period_ms'"),
        ("part_ref: {kind: http}\n", "6: a reference by http needs the section 'control'; add it"),
        ("part_ref: {kind: serial, device: d}\n", "6: key 'part_ref.max_age_ms' is missing; add it"),
        (
            "part_ref: {kind: serial, device: d, min_age_ms: 9, max_age_ms: 9}\n",
            "6: 'part_ref' is {'kind': 'serial', 'device': 'd', 'min_age_ms': 9, 'max_age_ms': 9}; min_age_ms 9 must be below",
        ),
        (
            "control:\n  address: 0.0.0.0:8090\n",
            "7: 0.0.0.0:8090 can be reached from other machines, and whoever reaches it can trigger and halt;"
            " add 'control.token', or use 127.0.0.1",
        ),
        ("control:\n  address: '8090'\n", "7: address '8090', expected HOST:PORT such as 127.0.0.1:8090, or unix:"),
        ("control:\n  address: my-host:80\n", "7: address 'my-host:80' has the host 'my-host', expected an IP address"),
        ("control:\n  address: 127.0.0.1:80000\n", "7: address '127.0.0.1:80000', expected HOST:PORT"),
        (f"control:\n  address: unix:/{'x' * 120}\n", "7: address 'unix:/"),
        ("control: {port: 5}\n", "6: unknown key 'control.port'; expected one of: address, token"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_line(path: Path, text: str, fault: str) -> None:
    path.write_text(BASE + text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    (found,) = refusal.value.faults
    assert found.startswith(f"{path}:{fault}")


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("127.0.0.1:8090", Address("127.0.0.1", 8090), True),
        ("127.9.9.9:1", Address("127.9.9.9", 1), True),
        ("localhost:0", Address("localhost", 0), True),
        ("[::1]:8090", Address("::1", 8090), True),
        ("unix:/run/a.sock", Address(path=Path("/run/a.sock")), True),
        ("0.0.0.0:80", Address("0.0.0.0", 80), False),
        ("[::]:80", Address("::", 80), False),
        ("192.0.2.7:80", Address("192.0.2.7", 80), False),
    ],
)
def test_addresses_and_who_can_reach_them(text: str, address: Address, local: bool) -> None:
    assert parse_address(text) == address
    assert address.local == local


@pytest.mark.parametrize("text", ["", "unix:", ":80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:-1", "127.0.0.1:²", "a:b:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(StationError, match="address"):
        parse_address(text)
