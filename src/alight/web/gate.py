"""What stands before the app: who may come in, how much they may bring, and what the page may load.

Everything passes here, the app's own files too, so with credentials nothing is served to those who have none.
"""

import base64
import binascii
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FORM_BYTES = 64 * 1024  # what a request may need besides files
HEADERS = {
    # The page is all on this server: nothing is loaded from elsewhere, sent elsewhere, or shown inside another page.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class TooLargeError(Exception):
    """A request goes on beyond the limit."""


class Gate:
    """An ASGI application around another one.

    Args:
        app: what it guards.
        credentials: user and password (HTTP basic authentication); None = everybody may come in.
        max_bytes: of the files in one request.
        loopback: whether only this machine is served. Then the request must also call it by such a name, or a page
            elsewhere could reach the server through a name of its own that leads here.
    """

    def __init__(self, app: App, credentials: tuple[str, str] | None, max_bytes: int, loopback: bool) -> None:
        self.app, self.credentials, self.loopback = app, credentials, loopback
        self.max_bytes = max_bytes + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return  # the app has no use for anything else
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.loopback and _host_name(headers.get("host", "")) not in LOOPBACK:
            return await _answer(send, 403, "This server answers on its own machine only.")
        if self.credentials and not self._knows(headers.get("authorization", "")):
            challenge = {"www-authenticate": 'Basic realm="alight", charset="UTF-8"'}
            return await _answer(send, 401, "This server wants a user and a password.", challenge)
        if int(headers.get("content-length", "0") or 0) > self.max_bytes:
            return await _answer(send, 413, self._limit())
        await self._pass_on(scope, receive, send)

    def _knows(self, authorization: str) -> bool:
        assert self.credentials is not None
        kind, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            return False
        return secrets.compare_digest(given, ":".join(self.credentials).encode())

    def _limit(self) -> str:
        return f"That is too large: at most {(self.max_bytes - FORM_BYTES) / 1e6:g} MB can be sent at once."

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, answered = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:  # a body of unknown length
                raise TooLargeError
            return message

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self.app(scope, counted, with_headers)
        except TooLargeError:
            if not answered:
                await _answer(send, 413, self._limit())


def _host_name(host: str) -> str:
    """`localhost:7860` and `[::1]:7860` without the port."""
    return host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]


async def _answer(send: Send, code: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = text.encode()
    own = HEADERS | {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body))} | (headers or {})
    start = {"status": code, "headers": [(name.encode(), value.encode()) for name, value in own.items()]}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})
