"""The addresses that the page needs; everything else that the framework would answer stays shut."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from alight.runtime.console import log
from alight.web.gate import TooLargeError

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN = re.compile(
    r"/|/config/?|/manifest\.json|/theme\.css|/robots\.txt|/favicon\.ico|/(static|assets|svelte|pictures)/.+"
    r"|/gradio_api/(info|app_id|login_check|startup-events|theme\.css|upload|upload_progress|queue/join|queue/data"
    r"|cancel|reset)/?"
    r"|/gradio_api/(heartbeat|call|run|api)/.+|/gradio_api/file=.+"
)
_SHUT_QUERIES = ("deep_link",)  # it would restore inputs, files among them, that another request has stored


class Routes:
    """An ASGI application that passes on what the page asks for, and answers 404 to everything else.

    Args:
        app: the framework's application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "http" and not is_open(scope["path"], scope.get("query_string", b"")):
            start = {"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]}
            await send(start)
            await send({"type": "http.response.body", "body": b"There is nothing here."})
            return
        try:
            await self.app(scope, receive, send)
        except TooLargeError:  # the gate's own, and answered there
            raise
        except Exception as error:  # the framework has answered 500; a request of a wrong shape is no news for the log
            reason = " ".join(str(error).split())
            log.warning("A request to %s failed: %s: %.200s", scope.get("path"), type(error).__name__, reason)


def is_open(path: str, query: bytes) -> bool:
    """Tell if the page needs an address."""
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    return _OPEN.fullmatch(path) is not None and not any(name in asked for name in _SHUT_QUERIES)
