"""The gate before the app: authentication, origin checks, a limit on the size of requests, and security headers.

All requests pass here, also those for the app's static files, so with credentials nothing is served without them.
"""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from alight.web.guesses import MOST_WAITING, Guesses
from alight.web.origins import is_foreign
from alight.web.policy import PolicedSend, security_headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FORM_BYTES = 64 * 1024  # of a request besides its files


class TooLargeError(Exception):
    """A request exceeds the size limit."""


class Gate:
    """An ASGI application around another one.

    Args:
        app: the application to protect.
        credentials: user and password (HTTP basic authentication); None = no authentication.
        max_bytes: of the files in one request.
        loopback: only this machine is served. Then the Host header must be a loopback name too, or a foreign page
            could reach the server through its own domain name (DNS rebinding).
        root_path: the public path, or the whole public URL, below which a proxy serves the app.
    """

    def __init__(
        self, app: App, credentials: tuple[str, str] | None, max_bytes: int, loopback: bool, root_path: str = ""
    ) -> None:
        self.app, self.loopback, self.root_path = app, loopback, root_path
        self.expected = None if credentials is None else _digest(":".join(credentials).encode())
        self.max_bytes = max_bytes + FORM_BYTES
        self.prefix = urlsplit(root_path).path.rstrip("/")
        self.guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return  # the app needs nothing else
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.loopback and _host_name(headers.get("host", "")) not in LOOPBACK:
            return await _answer(send, 403, "This server answers on its own machine only.")
        if is_foreign(scope.get("method", "GET"), headers, self.root_path):
            return await _answer(send, 403, "This server answers its own page only, not pages of other servers.")
        if not await self._is_known(scope, headers.get("authorization", ""), send):
            return None
        length = headers.get("content-length", "") or "0"
        if not (length.isascii() and length.isdigit()):
            return await _answer(send, 400, "The content-length is not a number.")
        if int(length[:20]) > self.max_bytes:
            return await _answer(send, 413, self._limit())
        if self.prefix and scope["path"] == self.prefix:  # addresses in the page are relative to what ends in a slash
            return await _answer(send, 308, "The page is one slash further.", {"location": f"{self.prefix}/"})
        return await self._pass_on(self._below_prefix(scope), receive, send)

    def _below_prefix(self, scope: Scope) -> Scope:
        """The request without the root path, which some proxies cut off and some do not; the app adds it to links."""
        path = scope["path"]
        if not self.prefix or not path.startswith(f"{self.prefix}/"):
            return scope
        path = path.removeprefix(self.prefix)
        return {**scope, "path": path, "raw_path": quote(path).encode()}

    async def _is_known(self, scope: Scope, authorization: str, send: Send) -> bool:
        """Tell if the visitor is authenticated; others are answered here, after a delay if the password was wrong."""
        if self.expected is None:
            return True
        address = str((scope.get("client") or ("",))[0])
        if authorization and self.guesses.too_many(address):
            text = f"There were {MOST_WAITING} wrong passwords from your address just now. Try again in a few seconds."
            await _answer(send, 429, text, {"retry-after": "5"})
            return False
        given = _given(authorization)
        if given is not None and secrets.compare_digest(_digest(given), self.expected):
            return True
        if authorization:
            await self.guesses.wrong(address)
        challenge = {"www-authenticate": 'Basic realm="alight", charset="UTF-8"'}
        await _answer(send, 401, "This server requires a user and a password.", challenge)
        return False

    def _limit(self) -> str:
        return f"The request is too large: at most {(self.max_bytes - FORM_BYTES) / 1e6:g} MB can be sent at once."

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        answer = PolicedSend(send)

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:  # a body of unknown length
                raise TooLargeError
            return message

        try:
            await self.app(scope, counted, answer)
        except TooLargeError:
            if not answer.started:
                await _answer(send, 413, self._limit())


def _given(authorization: str) -> bytes | None:
    """User and password from the header of a request; None if it has none."""
    kind, _, encoded = authorization.partition(" ")
    try:
        return base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else None
    except (binascii.Error, ValueError):
        return None


def _digest(secret: bytes) -> bytes:
    """A digest of fixed length, so that a comparison reveals nothing about the secret."""
    return hashlib.sha256(secret).digest()


def _host_name(host: str) -> str:
    """`localhost:7860` and `[::1]:7860` without the port."""
    return host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


async def _answer(send: Send, code: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = text.encode()
    own = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body))} | (headers or {})
    start = {"status": code, "headers": [*_encoded(own), *security_headers()]}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})
