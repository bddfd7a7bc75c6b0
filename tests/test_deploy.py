"""The container's recipe: what can be checked without building it."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

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
