"""`edge recipe`: ask a running station for another recipe, or choose for the next start of one that does not run."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge import StationError
from edge.active import Active, Chosen, check_chosen, config_of, load_active
from edge.agreement import Address, parse_address
from edge.changeover import choose_for_next_start
from edge.clock import SystemClock
from edge.control import read_token
from edge.journal import JournalInUseError, SqliteJournal
from edge.recipes import Loaded, open_recipe
from edge.sections import ControlSection, StationConfig
from engines import InspectionError

_ANSWER_S = 120.0  # a recipe that is not kept loaded is loaded and verified first


class RecipeRefusedError(StationError):
    """The answer is no; what was chosen before stays."""


@dataclass(frozen=True)
class Wish:
    """What a person asks for.

    Attributes:
        recipe: its name; None for the choice before the one in force.
        who, why: for the journal.
    """

    recipe: str | None
    who: str
    why: str


def wish_for(recipes: Mapping[str, StationConfig], wish: Wish) -> str:
    """Have it done: by the station where it runs, and otherwise for its next start. Returns what was done, in words.

    Raises:
        RecipeRefusedError: it was refused.
        StationError: the station runs and cannot be asked.
    """
    config = next(iter(recipes.values()))
    if config.control is not None:
        answer = ask_station(config.control, wish)
        if answer is not None:
            return answer
    try:
        return choose_offline(recipes, wish)
    except JournalInUseError:
        how = "its section 'control' does not answer" if config.control is not None else "it has no section 'control'; add one"
        raise StationError(f"the station runs, and cannot be asked: {how}, or stop the station and choose then") from None


def ask_station(control: ControlSection, wish: Wish) -> str | None:
    """What the station answered; None where nobody listens. Raises RecipeRefusedError, StationError."""
    headers = {"Content-Type": "application/json"}
    if control.token is not None:
        headers["Authorization"] = f"Bearer {read_token(control.token)}"
    path = "/rollback" if wish.recipe is None else "/recipe"
    body = {"who": wish.who, "why": wish.why} | ({} if wish.recipe is None else {"recipe": wish.recipe})
    connection = _Connection(parse_address(control.address))
    try:
        connection.connect()
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except OSError as error:
        raise StationError(f"{control.address}: cannot be reached ({error.strerror or error}); check the address") from None
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StationError(
            f"{control.address}: the answer broke off ({type(error).__name__}); ask again what is in force with /status"
        ) from None
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise RecipeRefusedError(str(answer.get("error", answer)))
    return str(answer["done"])


def choose_offline(recipes: Mapping[str, StationConfig], wish: Wish) -> str:
    """Verify a recipe and make it the one of the next start. Returns what was done, in words.

    Raises:
        RecipeRefusedError: what was chosen before stays.
        JournalInUseError: the station runs.
    """
    first = next(iter(recipes.values()))
    journal = SqliteJournal(first.journal, "recipe", SystemClock(), timeout_ms=first.journal_timeout_ms, station=first.station)
    try:
        try:
            config, check = _wanted(recipes, wish, first.active)
            loaded = open_recipe(config)
            loaded.judge.scorer.close()
            check(loaded)
        except InspectionError as error:
            raise RecipeRefusedError(f"recipe {wish.recipe or 'before this one'} is refused: {error}") from None
        why = wish.why if wish.recipe is not None else f"rolled back: {wish.why}"
        details = {"recipe": config.recipe, "bundle": loaded.bundle_digest, "calibration": loaded.calibration.digest}
        journal.event("recipe-chosen", {**details, "who": wish.who, "why": why})
        active = choose_for_next_start(recipes, loaded, first.active, who=wish.who, why=why)
    finally:
        journal.close()
    return f"{active.chosen} is judged by from the next start on; no station runs"


class _Connection(http.client.HTTPConnection):
    """To a port or to a Unix socket."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.host or "localhost", address.port or None, timeout=_ANSWER_S)
        self._path: Path | None = address.path

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(str(self._path))


def _wanted(recipes: Mapping[str, StationConfig], wish: Wish, path: Path) -> tuple[StationConfig, Callable[[Loaded], None]]:
    """The configuration of what is wished for, and what must hold of it once it is loaded."""
    if wish.recipe is None:
        active = load_active(path)
        before = _before(active)
        return config_of(before, recipes), lambda loaded: check_chosen(before, loaded.bundle_digest, loaded.calibration)
    config = recipes.get(wish.recipe)
    if config is None:
        raise StationError(f"expected one of: {', '.join(recipes)}")
    return config, lambda loaded: None


def _before(active: Active | None) -> Chosen:
    if active is None or active.before is None:
        raise StationError("there is nothing to roll back to: no choice was made before this one; name a recipe")
    return active.before
