"""What a request can ask of the station, each as a function from a JSON object to another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from edge import StationError
from edge.part_ref import check_ref
from edge.verdict import Verdict

_VERDICT_S = 10.0
_KEPT = 1024

Json = Mapping[str, object]


class Verdicts:
    """The latest verdicts, for whoever waits for one: written by the deciding loop, which waits for nobody."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: OrderedDict[int, Verdict] = OrderedDict()
        self._closed = False

    def tell(self, verdict: Verdict) -> None:
        """Keep one verdict."""
        with self._changed:
            self._kept[verdict.part] = verdict
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            self._changed.notify_all()

    def wait(self, part: int, timeout_s: float) -> Verdict | None:
        """A part's verdict; None where there is none in time, or the run ended."""
        with self._changed:
            self._changed.wait_for(lambda: part in self._kept or self._closed, timeout_s)
            return self._kept.get(part)

    def close(self) -> None:
        """There will be no more; nobody waits any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Handlers:
    """What requests call, in a request's thread. One that is None is not there at this station.

    They raise InspectionError with the reason why not, and return once it is done or queued.

    Attributes:
        status: the station's state, as JSON.
        trigger: a part triggers, with its reference if it has one; returns its number.
        verdict: waits for a part's verdict for so many seconds; None where there is none in time.
        part_ref: sets the reference of the parts that follow; None for none.
        refused: told why a reference was refused.
        change_recipe: changes to a recipe by its name, for somebody and for a reason; returns what was done, in words.
        roll_back: changes to the choice before, in the same way.
        halt, resume: stop judging, and go on, for somebody and for a reason.
        reset_drift: begins to watch anew, for somebody who looked and for a reason.
        challenge: has the labelled parts judged, for somebody.
    """

    status: Callable[[], Json]
    trigger: Callable[[str | None], int] | None = None
    verdict: Callable[[int, float], Verdict | None] | None = None
    part_ref: Callable[[str | None], None] | None = None
    refused: Callable[[str], None] = lambda reason: None
    change_recipe: Callable[[str, str, str], str] | None = None
    roll_back: Callable[[str, str], str] | None = None
    halt: Callable[[str, str], None] | None = None
    resume: Callable[[str, str], None] | None = None
    reset_drift: Callable[[str, str], None] | None = None
    challenge: Callable[[str], None] | None = None


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **more}


def _status(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    return handlers.status()


def _trigger(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "part_ref")
    part_ref = _part_ref(handlers, body)
    part = _there(handlers.trigger, "has no triggers by http; give it trigger: {kind: software, by: [http]}")(part_ref)
    answer: dict[str, object] = {"part": part} if part_ref is None else {"part": part, "part_ref": part_ref}
    if query.get("wait", "0") == "0" or handlers.verdict is None:
        return answer
    verdict = handlers.verdict(part, _VERDICT_S)
    if verdict is None:
        said = f"part {part} triggered, no verdict came within {_VERDICT_S:g} s or before the run ended; look in the journal"
        raise RefusedError(HTTPStatus.GATEWAY_TIMEOUT, said, **answer)
    score = verdict.score if verdict.score is not None and abs(verdict.score) < float("inf") else None
    return {
        **answer,
        "outcome": verdict.outcome.value,
        "score": score,
        "threshold": verdict.threshold,
        "threshold_method": verdict.threshold_method,
        "latency_ms": verdict.latency_ms,
        "reason": verdict.reason,
    }


def _set_part_ref(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "part_ref", needed="part_ref")
    part_ref = _part_ref(handlers, body)
    _there(handlers.part_ref, "takes no references by http; give it part_ref: {kind: http}")(part_ref)
    return {"part_ref": part_ref}


def _change_recipe(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "recipe", "who", "why", needed="recipe")
    name = _text(body, "recipe", "")
    done = _there(handlers.change_recipe, "has no recipes")(name, *_who_and_why(body))
    return {"recipe": name, "done": done}


def _roll_back(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "who", "why")
    return {"done": _there(handlers.roll_back, "has no recipes")(*_who_and_why(body))}


def _halt(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "who", "why")
    _there(handlers.halt, "cannot be halted")(*_who_and_why(body))
    return {"halted": True}


def _resume(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "who", "why")
    _there(handlers.resume, "cannot be halted")(*_who_and_why(body))
    return {"halted": False}


def _reset_drift(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "who", "why", needed="who")
    _there(handlers.reset_drift, "does not watch drift; give it the section 'drift'")(*_who_and_why(body))
    return {"reset": True}


def _challenge(handlers: Handlers, body: Json, query: Mapping[str, str]) -> Json:
    _only(body, "who")
    who = _text(body, "who", "control")
    _there(handlers.challenge, "has no labelled parts; give it the section 'challenge'")(who)
    return {"challenge": "begun"}


ROUTES: dict[str, tuple[str, Callable[[Handlers, Json, Mapping[str, str]], Json]]] = {
    "/status": ("GET", _status),
    "/trigger": ("POST", _trigger),
    "/part_ref": ("POST", _set_part_ref),
    "/recipe": ("POST", _change_recipe),
    "/rollback": ("POST", _roll_back),
    "/halt": ("POST", _halt),
    "/resume": ("POST", _resume),
    "/drift/reset": ("POST", _reset_drift),
    "/challenge": ("POST", _challenge),
}


def _there(handler: Any, lacks: str) -> Any:
    if handler is None:
        raise RefusedError(HTTPStatus.CONFLICT, f"this station {lacks}")
    return handler


def _only(body: Json, *keys: str, needed: str | None = None) -> None:
    unknown = sorted(set(body) - set(keys))
    if unknown:
        expected = ", ".join(map(repr, keys))
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"unknown key {unknown[0]!r}, expected {expected}")
    if needed is not None and needed not in body:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"key {needed!r} is missing")


def _who_and_why(body: Json) -> tuple[str, str]:
    return _text(body, "who", "control"), _text(body, "why", "asked for by http")


def _text(body: Json, key: str, default: str) -> str:
    value = body.get(key, default)
    if not isinstance(value, str) or not value:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{key} is {value!r}, expected {'a name' if key == 'recipe' else 'text'}")
    return value


def _part_ref(handlers: Handlers, body: Json) -> str | None:
    text = body.get("part_ref")
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise StationError(f"part_ref is {type(text).__name__}, expected text or null")
        return check_ref(text)
    except StationError as error:
        handlers.refused(str(error))
        raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
