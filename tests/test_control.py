"""The control over real sockets: one answer in JSON to whatever is sent, and nobody gets in who should not."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import StationError, control
from edge.agreement import Address
from edge.commands import Handlers, Verdicts
from edge.control import ControlServer, read_token
from edge.trigger import BacklogError
from edge.verdict import Outcome, Verdict

JSON = {"Content-Type": "application/json"}
TOKEN = "correct-horse-battery"


class Stand:
    """A station as its requests see it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.verdicts = Verdicts()
        self.failure: Exception | None = None

    def call(self, name: str, value: object = None) -> None:
        if self.failure is not None:
            raise self.failure
        self.calls.append((name, value))

    def trigger(self, part_ref: str | None) -> int:
        self.call("trigger", part_ref)
        self.verdicts.tell(Verdict(1, Outcome.REJECT, 3.5, 2.5, 12.0, "score 3.5 is above", "cam", "manual"))
        return len(self.calls)

    def tell(self, name: str, value: str) -> str:
        self.call(name, value)
        return f"done: {value}"

    def handlers(self) -> Handlers:
        return Handlers(
            status=lambda: {"parts": 7},
            trigger=self.trigger,
            verdict=self.verdicts.wait,
            part_ref=lambda part_ref: self.call("part_ref", part_ref),
            refused=lambda reason: self.calls.append(("refused", reason)),
            change_recipe=lambda name, who, why: self.tell("recipe", f"{name}, {who}, {why}"),
            roll_back=lambda who, why: self.tell("rollback", f"{who}, {why}"),
            halt=lambda who, why: self.call("halt", f"{who}, {why}"),
            resume=lambda who, why: self.call("resume", f"{who}, {why}"),
        )


@pytest.fixture
def stand() -> Stand:
    """What is behind the control."""
    return Stand()


@pytest.fixture
def server(stand: Stand) -> Iterator[ControlServer]:
    """A control on a port of its own."""
    opened = ControlServer(Address("127.0.0.1", 0), stand.handlers())
    yield opened
    opened.close()


def ask(
    server: ControlServer, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and JSON of one request; `body` is bytes, or JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, JSON if headers is None else headers)
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "application/json"
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text else None


def send(server: ControlServer, raw: bytes) -> bytes:
    """All that is answered to raw bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(4096):
            answer += data
    return answer


def test_each_command_does_what_it_says(stand: Stand, server: ControlServer) -> None:
    assert ask(server, "GET", "/status") == (200, {"parts": 7})
    assert ask(server, "POST", "/trigger", {"part_ref": " SN-1 "}) == (200, {"part": 1, "part_ref": "SN-1"})
    assert ask(server, "POST", "/trigger") == (200, {"part": 2})
    assert ask(server, "POST", "/part_ref", {"part_ref": "LOT"}) == (200, {"part_ref": "LOT"})
    assert ask(server, "POST", "/part_ref", {"part_ref": None}) == (200, {"part_ref": None})
    done = "done: gasket, control, asked for by http"
    assert ask(server, "POST", "/recipe", {"recipe": "gasket"}) == (200, {"recipe": "gasket", "done": done})
    by = {"who": "Ada", "why": "order 7"}
    assert ask(server, "POST", "/recipe", {"recipe": "bolt", **by})[1]["done"] == "done: bolt, Ada, order 7"
    assert ask(server, "POST", "/rollback", by) == (200, {"done": "done: Ada, order 7"})
    assert ask(server, "POST", "/halt", {"who": "Bo", "why": "jam"}) == (200, {"halted": True})
    assert ask(server, "POST", "/resume") == (200, {"halted": False})
    assert stand.calls == [
        ("trigger", "SN-1"),
        ("trigger", None),
        ("part_ref", "LOT"),
        ("part_ref", None),
        ("recipe", "gasket, control, asked for by http"),
        ("recipe", "bolt, Ada, order 7"),
        ("rollback", "Ada, order 7"),
        ("halt", "Bo, jam"),
        ("resume", "control, asked for by http"),
    ]


def test_who_waits_gets_the_verdict(server: ControlServer) -> None:
    status, answer = ask(server, "POST", "/trigger?wait=1", {"part_ref": "SN-1"})
    assert status == 200
    assert answer == {
        "part": 1,
        "part_ref": "SN-1",
        "outcome": "REJECT",
        "score": 3.5,
        "threshold": 2.5,
        "threshold_method": "manual",
        "latency_ms": 12.0,
        "reason": "score 3.5 is above",
    }


def test_a_verdict_that_does_not_come_is_said_with_the_parts_number(stand: Stand, server: ControlServer) -> None:
    stand.call("before")  # so that the part is number 2, which is never judged
    stand.verdicts.close()
    status, answer = ask(server, "POST", "/trigger?wait=1")
    assert (status, answer["part"]) == (504, 2)
    assert "before the run ended" in answer["error"]  # it did not take 10 s


def test_a_score_that_is_no_number_is_null(stand: Stand, server: ControlServer) -> None:
    for score in (float("nan"), float("inf"), None):
        stand.verdicts.tell(Verdict(5, Outcome.FAULT, score, 2.5, 1.0, "x", "cam", "conformal"))
        handlers = Handlers(status=dict, trigger=lambda part_ref: 5, verdict=stand.verdicts.wait)
        other = ControlServer(Address("127.0.0.1", 0), handlers)
        status, answer = ask(other, "POST", "/trigger?wait=1")
        other.close()
        assert (status, answer["score"], answer["outcome"]) == (200, None, "FAULT")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "error"),
    [
        ("GET", "/", None, None, 404, "path '/', expected one of: /status, /trigger"),
        ("POST", "/status", {}, None, 405, "method POST for /status, expected GET"),
        ("GET", "/trigger", None, None, 405, "method GET for /trigger, expected POST"),
        ("DELETE", "/halt", None, None, 405, "method DELETE"),
        ("OPTIONS", "/halt", None, None, 405, "method OPTIONS"),
        ("BREW", "/halt", None, None, 501, "Unsupported method"),
        ("GET", "/status?x=1", None, None, 400, "query 'x=1', expected none"),
        ("POST", "/trigger?wait=yes", {}, None, 400, "query 'wait=yes'"),
        ("POST", "/halt?wait=1", {}, None, 400, "query"),
        ("POST", "/halt", None, {}, 415, "content type none, expected application/json"),
        ("POST", "/halt", b"{}", {"Content-Type": "text/plain"}, 415, "content type text/plain"),
        ("POST", "/halt", b"x=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "content type"),
        ("POST", "/halt", {"now": 1}, None, 400, "unknown key 'now', expected 'who', 'why'"),
        ("POST", "/trigger", {"ref": "x"}, None, 400, "unknown key 'ref', expected 'part_ref'"),
        ("POST", "/trigger", b"{", None, 400, "body is not JSON"),
        ("POST", "/trigger", b"\xff", None, 400, "body is not JSON"),
        ("POST", "/trigger", b"[" * 4000, None, 400, "body is not JSON"),
        ("POST", "/trigger", [], None, 400, "body is list, expected an object"),
        ("POST", "/trigger", {"part_ref": 7}, None, 422, "part_ref is int, expected text or null"),
        ("POST", "/trigger", {"part_ref": "x" * 129}, None, 422, "129 characters"),
        ("POST", "/part_ref", {"part_ref": "a\u0000"}, None, 422, "U+0000"),
        ("POST", "/part_ref", {}, None, 400, "key 'part_ref' is missing"),
        ("POST", "/recipe", {}, None, 400, "key 'recipe' is missing"),
        ("POST", "/recipe", {"recipe": ["x"]}, None, 400, "recipe is ['x'], expected a name"),
        ("POST", "/trigger", b" " * 4097, None, 413, "body of 4097 bytes, expected 4096 at most"),
        ("GET", "/status", None, {"Host": "evil.example"}, 421, "host 'evil.example', expected localhost"),
        ("GET", "/status", None, {"Host": "127.0.0.1.evil.example:80"}, 421, "host"),
        ("GET", "/status", None, {"Host": ""}, 421, "host ''"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong_and_does_nothing(
    stand: Stand,
    server: ControlServer,
    method: str,
    path: str,
    body: object,
    headers: dict[str, str] | None,
    status: int,
    error: str,
) -> None:
    got, answer = ask(server, method, path, body, headers)
    assert got == status
    assert answer["error"].startswith(error) or error in answer["error"]
    assert [name for name, _ in stand.calls if name != "refused"] == []
    assert [name for name, _ in stand.calls] == (["refused"] if status == 422 else [])


@pytest.mark.parametrize("host", ["localhost", "localhost:8090", "127.0.0.1:1", "[::1]:8090", "192.0.2.7"])
def test_a_host_by_its_number_or_localhost_is_let_in(server: ControlServer, host: str) -> None:
    assert ask(server, "GET", "/status", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /status HTTP/9.9\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /status HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"POST /halt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /halt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{}", 400),
        (
            b"POST /halt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            411,
        ),
        (
            b"POST /halt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
            + b"9" * 5000
            + b"\r\n\r\n",
            413,
        ),
    ],
)
def test_what_is_hardly_a_request_is_answered_too(stand: Stand, server: ControlServer, raw: bytes, status: int) -> None:
    head, _, body = send(server, raw).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert "error" in json.loads(body)
    assert stand.calls == []


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_leave_it_serving(raw: bytes) -> None:
    stand = Stand()
    server = SHARED.setdefault("server", ControlServer(Address("127.0.0.1", 0), stand.handlers()))
    send(server, raw)
    assert ask(server, "GET", "/status") == (200, {"parts": 7})


SHARED: dict[str, ControlServer] = {}


@pytest.fixture(scope="module", autouse=True)
def _close_shared() -> Iterator[None]:
    yield
    for server in SHARED.values():
        server.close()


@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        (StationError("no such recipe: x"), 409, "no such recipe: x"),
        (BacklogError("1000 triggers wait"), 503, "1000 triggers wait"),
        (ValueError("boom"), 500, "ValueError: boom"),
    ],
)
def test_what_the_station_refuses_is_an_answer(
    stand: Stand, server: ControlServer, failure: Exception, status: int, error: str
) -> None:
    stand.failure = failure
    for path, body in (("/trigger", {}), ("/recipe", {"recipe": "x"}), ("/halt", {}), ("/part_ref", {"part_ref": "x"})):
        assert ask(server, "POST", path, body) == (status, {"error": error})


def test_what_the_station_does_not_have_is_said() -> None:
    server = ControlServer(Address("127.0.0.1", 0), Handlers(status=dict))
    bodies = {
        "/trigger": {},
        "/part_ref": {"part_ref": "x"},
        "/recipe": {"recipe": "x"},
        "/rollback": {},
        "/halt": {},
        "/resume": {},
    }
    answers = {path: ask(server, "POST", path, body) for path, body in bodies.items()}
    server.close()
    assert {status for status, _ in answers.values()} == {409}
    assert "trigger: {kind: software, by: [http]}" in answers["/trigger"][1]["error"]
    assert "part_ref: {kind: http}" in answers["/part_ref"][1]["error"]
    assert answers["/halt"][1]["error"] == "this station cannot be halted"


def test_with_a_token_nobody_gets_in_without_it() -> None:
    stand = Stand()
    server = ControlServer(Address("127.0.0.1", 0), stand.handlers(), TOKEN)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer \xe9"}):
        for method, path in (("GET", "/status"), ("POST", "/halt"), ("GET", "/nothing")):
            assert ask(server, method, path, headers={**JSON, **headers})[0] == 401
    assert stand.calls == []
    assert ask(server, "POST", "/halt", headers={**JSON, "Authorization": f"Bearer {TOKEN}"})[0] == 200
    server.close()


def test_an_address_that_others_can_reach_needs_a_token() -> None:
    with pytest.raises(StationError, match=r"control at 0\.0\.0\.0 without a token"):
        ControlServer(Address("0.0.0.0", 0), Handlers(status=dict))


def test_an_address_in_use_is_refused(server: ControlServer) -> None:
    with pytest.raises(StationError, match=rf"cannot listen at 127\.0\.0\.1:{server.port} \(Address already in use\)"):
        ControlServer(Address("127.0.0.1", server.port), Handlers(status=dict))


def test_closing_twice_is_one_and_then_nobody_answers(stand: Stand) -> None:
    server = ControlServer(Address("127.0.0.1", 0), stand.handlers())
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "GET", "/status")


def test_a_request_that_is_being_served_is_answered_before_it_closes() -> None:
    began, ended = threading.Event(), threading.Event()

    def halt(who: str, why: str) -> None:
        began.set()
        server._thread.join(timeout=20)  # nothing further is taken from here on
        threading.Event().wait(0.05)
        ended.set()

    server = ControlServer(Address("127.0.0.1", 0), Handlers(status=dict, halt=halt))
    got: list[tuple[int, Any]] = []
    client = threading.Thread(target=lambda: got.append(ask(server, "POST", "/halt")))
    client.start()
    assert began.wait(20)
    server.close()
    assert ended.is_set()
    client.join(timeout=20)
    assert got == [(200, {"halted": True})]


def over_unix(path: Path, raw: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(raw)
        answer = b""
        while data := connection.recv(4096):
            answer += data
    return answer


def test_a_unix_socket_serves_its_owner_and_group_and_goes_with_the_station(tmp_path: Path, stand: Stand) -> None:
    path = tmp_path / "line.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:  # as by a station that was killed
        left_behind.bind(str(path))
    server = ControlServer(Address(path=path), stand.handlers())
    assert path.stat().st_mode & 0o777 == 0o660
    assert over_unix(path, b"GET /status HTTP/1.1\r\nHost: any\r\n\r\n").endswith(b'{"parts": 7}\n')
    with pytest.raises(StationError, match="another station listens there"):
        ControlServer(Address(path=path), stand.handlers())
    server.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(StationError, match="a file that is no socket stands there"):
        ControlServer(Address(path=path), stand.handlers())
    assert path.read_text() == "precious"


def test_a_request_that_drips_is_cut_off(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_REQUEST_S", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /halt HTTP/1.1\r\nHost: lo")
        while connection.recv(4096):  # until it hangs up, though this side never ended
            pass


def test_more_connections_than_it_serves_are_told_so_and_it_goes_on(
    stand: Stand, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(32)]
    refused = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    assert refused.recv(4096).startswith(b"HTTP/1.0 503 ")
    refused.close()
    for connection in held:
        connection.close()
    while ask(server, "GET", "/status")[0] == 503:
        pass
    assert ask(server, "GET", "/status") == (200, {"parts": 7})


def test_waiting_for_a_verdict_holds_up_nobody_who_tells_one() -> None:
    verdicts = Verdicts()
    got: list[Verdict | None] = []
    waiter = threading.Thread(target=lambda: got.append(verdicts.wait(2, 20)))
    waiter.start()
    verdict = Verdict(2, Outcome.PASS, 1.0, 2.0, 3.0, "", "", "conformal")
    for number in (1, 2, 3):
        verdicts.tell(Verdict(number, Outcome.PASS, 1.0, 2.0, 3.0, "", "", "conformal"))
    waiter.join(timeout=20)
    assert got == [verdict]
    for number in range(4, 2000):
        verdicts.tell(Verdict(number, Outcome.PASS, 1.0, 2.0, 3.0, "", "", "conformal"))
    assert verdicts.wait(2, 0) is None  # long gone, and memory stays flat
    assert verdicts.wait(1999, 0) is not None


def test_a_token_is_read_from_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for content, mode, reason in (
        (None, 0, "the token cannot be read"),
        (TOKEN, 0o644, "mode is 644, expected 600"),
        ("short", 0o600, "of 5 characters, expected 16 or more"),
        ("two words and more", 0o600, "without blanks"),
    ):
        if content is not None:
            path.write_text(content)
            os.chmod(path, mode)
        with pytest.raises(StationError, match=reason):
            read_token(path)
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN


def test_drift_is_reset_by_somebody_and_the_challenge_is_asked_for() -> None:
    calls: list[tuple[str, ...]] = []
    handlers = Handlers(
        status=dict,
        reset_drift=lambda who, why: calls.append(("reset", who, why)),
        challenge=lambda who: calls.append(("challenge", who)),
    )
    server = ControlServer(Address("127.0.0.1", 0), handlers)
    try:
        assert ask(server, "POST", "/drift/reset", {"who": "Ada", "why": "lamp replaced"}) == (200, {"reset": True})
        assert ask(server, "POST", "/challenge", {"who": "Bo"}) == (200, {"challenge": "begun"})
        status, refused = ask(server, "POST", "/drift/reset", {"why": "nobody says so"})
        assert (status, refused["error"]) == (400, "key 'who' is missing")
    finally:
        server.close()
    assert calls == [("reset", "Ada", "lamp replaced"), ("challenge", "Bo")]


def test_a_station_that_watches_nothing_says_so() -> None:
    server = ControlServer(Address("127.0.0.1", 0), Handlers(status=dict))
    try:
        status, refused = ask(server, "POST", "/drift/reset", {"who": "Ada"})
        assert (status, refused["error"]) == (409, "this station does not watch drift; give it the section 'drift'")
        assert ask(server, "POST", "/challenge", {})[0] == 409
    finally:
        server.close()
