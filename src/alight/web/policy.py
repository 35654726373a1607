"""Content security policy of the page: resources from this server only, and only the page's own inline scripts.

Inline scripts carry a nonce, a random number that is new in each response. Injected code, such as an attribute
`onerror` in some text, has no nonce and does not run.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
SCRIPT = re.compile(rb"<script(?=[\s>])")
MANIFEST = (b'href="/manifest.json"', b'href="./manifest.json"')  # which is below the root path, too


def content_policy(nonce: str | None = None) -> str:
    """The content security policy of a response, with the nonce of its scripts if it is a page."""
    inline = f" 'nonce-{nonce}'" if nonce else ""
    return (
        f"default-src 'self'; script-src 'self'{inline} 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


def security_headers(nonce: str | None = None) -> list[tuple[bytes, bytes]]:
    """Headers of a response in ASGI's form."""
    own = HEADERS | {"content-security-policy": content_policy(nonce)}
    return [(name.encode(), value.encode()) for name, value in own.items()]


class PolicedSend:
    """Forwards the app's response with the policy; a page is buffered, and its scripts get a nonce.

    Attributes:
        started: True once the response has begun.
    """

    def __init__(self, send: Send) -> None:
        self.send, self.started = send, False
        self.page: Message | None = None  # the start message of a response that is a page
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Forward the next message of a response."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = {name.lower(): value for name, value in message.get("headers", [])}
            if headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers:
                self.page = message
                return
            message = {**message, "headers": [*message.get("headers", []), *security_headers()]}
        elif self.page is not None and message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if message.get("more_body"):
                return
            message = await self._begin_page()
        await self.send(message)

    async def _begin_page(self) -> Message:
        """Send the start message of the page, and return its body."""
        assert self.page is not None
        nonce = secrets.token_urlsafe(16)
        body = SCRIPT.sub(b'<script nonce="' + nonce.encode() + b'"', bytes(self.body)).replace(*MANIFEST)
        kept = [(name, value) for name, value in self.page.get("headers", []) if name.lower() != b"content-length"]
        length = [(b"content-length", str(len(body)).encode())] if self.body else []
        await self.send({**self.page, "headers": [*kept, *length, *security_headers(nonce)]})
        return {"type": "http.response.body", "body": body, "more_body": False}
