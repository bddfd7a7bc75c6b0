"""The container's recipe and the service: what can be checked without building or installing them."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.rejector_process import _PRIORITY

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "deploy" / "Dockerfile.jetson"


def _instructions() -> list[tuple[str, str]]:
    """Instructions with their arguments, comments left out and continued lines joined."""
    lines = [line for line in RECIPE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word, rest) for word, rest in found]


def _of(kind: str) -> list[str]:
    return [rest for word, rest in _instructions() if word == kind]


def test_every_line_is_an_instruction() -> None:
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in _instructions()} == known


def test_the_base_is_nvidias_and_pinned() -> None:
    (base,) = _of("ARG")
    assert re.fullmatch(r"BASE=nvcr\.io/nvidia/l4t-jetpack:r36\.\d+\.\d+", base)
    assert _of("FROM") == ["${BASE}"]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = [source for rest in _of("COPY") for source in rest.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    let_through = set(re.findall(r"^!(.+)$", RECIPE.with_name("Dockerfile.jetson.dockerignore").read_text(), re.MULTILINE))
    assert let_through == set(copied)


def test_it_holds_every_package_and_no_torch() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    packages = settings["options"]["packages"].split()
    assert set(packages) <= {source for rest in _of("COPY") for source in rest.split()[:-1]}
    commands = " ".join(_of("RUN"))
    assert re.findall(r"pip install (\S+)", commands) == ["'.[cuda]'"]  # and so neither the extra `train` nor torch
    assert "torch" not in settings["options"]["install_requires"] + settings["options.extras_require"]["cuda"]


def test_it_does_not_run_as_root() -> None:
    instructions = _instructions()
    last_user = max(number for number, (word, _) in enumerate(instructions) if word == "USER")
    assert int(instructions[last_user][1]) > 0
    assert all(word != "RUN" for word, _ in instructions[last_user:])


def test_it_starts_the_station_by_a_command_that_is_installed() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    (entry,) = _of("ENTRYPOINT")
    assert entry == '["reb-edge"]'
    assert "reb-edge = edge.__main__:main" in settings["options.entry_points"]["console_scripts"]


def _service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((ROOT / "deploy" / "reb-edge.service").read_text())
    return dict(parser["Service"])


def test_the_service_lets_the_rejector_do_what_it_asks_for_and_outlive_vision() -> None:
    service = _service()
    assert service["Type"] == "notify"
    assert service["KillMode"] == "process"
    assert (service["Restart"], service["NotifyAccess"]) == ("always", "main")
    assert int(service["LimitRTPRIO"]) >= _PRIORITY
    assert (service["LimitMEMLOCK"], service["RestrictRealtime"]) == ("infinity", "false")
    assert service["SupplementaryGroups"].split() == ["gpio", "video"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    # a loop that waits for a lock, or drains, is no loop that hangs
    assert int(service["WatchdogSec"]) > 5


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_service(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "reb-edge.service").read_text()
    unit = tmp_path / "reb-edge.service"
    unit.write_text(text.replace("/opt/reb-edge/bin/reb-edge", sys.executable))  # it looks whether the program is there
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "reb-edge" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_udev_rule_gives_gpio_chips_to_the_services_group() -> None:
    rules = (ROOT / "deploy" / "99-reb-gpio.rules").read_text().splitlines()
    (rule,) = [line for line in rules if line and not line.startswith("#")]
    assert rule == 'SUBSYSTEM=="gpio", KERNEL=="gpiochip[0-9]*", GROUP="gpio", MODE="0660"'
