"""Small HTTP for the machine around the station: state, triggers, references, recipe, halt and resume, each as JSON.

Requests are served by threads of their own; what they call puts its work where the deciding loop takes it, and never runs
in that loop.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import os
import socket
import socketserver
import stat
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edge import StationError
from edge.agreement import Address
from edge.commands import ROUTES, Handlers, Json, RefusedError
from edge.trigger import BacklogError
from engines import InspectionError

_BODY_BYTES = 4096
_CONNECTIONS = 32
_REQUEST_S = 5.0  # for a whole request to arrive
_SETTLE_S = 1.0
_LEAST_TOKEN = 16


class ControlServer:
    """Serves until it is closed.

    Attributes:
        port: where it listens, 0 for a Unix socket.
    """

    def __init__(self, address: Address, handlers: Handlers, token: str | None = None) -> None:
        """Listen, and serve in threads.

        Args:
            address: with port 0 the system chooses one.
            handlers: what requests call.
            token: that every request must bring; needed where other machines can reach the address.

        Raises:
            StationError: the address cannot be had, or needs a token.
        """
        if token is None and not address.local:
            raise StationError(f"control at {address.host} without a token: other machines could halt this station; give one")
        where = str(address.path) if address.path is not None else f"{address.host}:{address.port}"
        try:
            self._server = _Server(address, handlers, token)
        except OSError as error:
            raise StationError(
                f"control cannot listen at {where} ({error.strerror or error}); choose another address"
            ) from None
        self._path = address.path
        self.port = 0 if address.path is not None else int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no further request, and let those that are being served end, for a second at most; may be called twice."""
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._thread.join(timeout=5)
        self._server.settle()
        self._server.server_close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def read_token(path: Path) -> str:
    """The token in a file. Raises StationError: unreadable, too short, or readable by others."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StationError(f"{path}: the token cannot be read ({getattr(error, 'strerror', None) or 'not ASCII'})") from None
    if mode & 0o077:
        raise StationError(f"{path}: the token's mode is {mode:o}, expected 600: others can read it; run chmod 600")
    if len(token) < _LEAST_TOKEN or not token.isprintable() or " " in token:
        raise StationError(f"{path}: a token of {len(token)} characters, expected {_LEAST_TOKEN} or more without blanks")
    return token


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _CONNECTIONS

    def __init__(self, address: Address, handlers: Handlers, token: str | None) -> None:
        self.address = address
        self.handlers = handlers
        self.token = token
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self.address_family = (
            socket.AF_UNIX if address.path is not None else socket.AF_INET6 if ":" in address.host else socket.AF_INET
        )
        bound: Any = str(address.path) if address.path is not None else (address.host, address.port)
        super().__init__(bound, _Request)

    def server_bind(self) -> None:
        if self.address.path is not None:
            _remove_stale(self.address.path)
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask a name server for our name
        if self.address.path is not None:
            os.chmod(self.address.path, 0o660)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0.1)
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n" + _BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def settle(self) -> None:
        """Wait until all that is being served was answered, for a second at most."""
        end = time.monotonic() + _SETTLE_S
        for _ in range(_CONNECTIONS):
            if not self._free.acquire(timeout=max(0.0, end - time.monotonic())):
                return

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


_BUSY = json.dumps({"error": f"{_CONNECTIONS} requests are being served; try again"}).encode() + b"\n"


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version = "reb-edge"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        # a client that sends byte by byte keeps every single read short of a time limit
        self._cut = threading.Timer(_REQUEST_S, self._cut_off)
        self._cut.daemon = True
        self._cut.start()

    def finish(self) -> None:
        self._cut.cancel()
        super().finish()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, such as a line that is no request, as JSON too."""
        self._send(HTTPStatus(code), {"error": message or HTTPStatus(code).phrase})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed; what matters is in the journal."""

    def _answer(self) -> None:
        try:
            status, body = HTTPStatus.OK, self._serve()
        except RefusedError as refusal:
            status, body = refusal.status, refusal.body
        except BacklogError as error:
            status, body = HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)}
        except InspectionError as error:
            status, body = HTTPStatus.CONFLICT, {"error": str(error)}
        except Exception as error:  # a request must not end without an answer
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"}
        self._send(status, body)

    def _serve(self) -> Json:
        self._check_caller()
        url = urlsplit(self.path)
        route = ROUTES.get(url.path)
        if route is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"path {url.path!r}, expected one of: {', '.join(ROUTES)}")
        method, serve = route
        if self.command != method:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"method {self.command} for {url.path}, expected {method}")
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        unknown = sorted(set(query) - ({"wait"} if url.path == "/trigger" else set()))
        if unknown or query.get("wait", "1") not in ("0", "1"):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"query {url.query!r}, expected none, or wait=1 for /trigger")
        body = self._body() if method == "POST" else {}
        self._cut.cancel()
        return serve(self.server.handlers, body, query)

    def _check_caller(self) -> None:
        """Only programs that mean this station: no page that a browser was lured to, nobody without the token."""
        if self.server.address.path is None:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            if host != "localhost" and not _is_ip(host):  # another name may have been made to point here
                raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, f"host {host!r}, expected localhost or an IP address")
        if self.server.token is not None:
            given = self.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
                raise RefusedError(HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Bearer and the station's token")

    def _body(self) -> dict[str, object]:
        kind = self.headers.get_content_type() if "Content-Type" in self.headers else "none"
        if kind != "application/json":  # a browser asks before it sends this to another site, and is told no
            message = f"content type {kind}, expected application/json"
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "a body in chunks, expected Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"Content-Length {length!r}, expected a number")
        if len(length) > 9 or int(length) > _BODY_BYTES:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body of {length} bytes, expected {_BODY_BYTES} at most")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"body of {len(data)} bytes, Content-Length says {length}")
        if data == b"":
            return {}
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"body is not JSON ({error})") from None
        if not isinstance(body, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"body is {type(body).__name__}, expected an object")
        return body

    def _send(self, status: HTTPStatus, body: Json) -> None:
        data = json.dumps(body, allow_nan=False, default=str).encode() + b"\n"
        self.request_version = "HTTP/1.0"  # what is no request counts as HTTP/0.9, which would get neither status nor header
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ROUTES[urlsplit(self.path).path][0])
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut_off(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Remove the socket of a station that was killed. Raises OSError: somebody listens there, or it is no socket."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(None, "a file that is no socket stands there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(None, "another station listens there")
