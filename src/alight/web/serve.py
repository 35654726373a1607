"""`alight serve`: models in memory, a page in the browser, and a graceful shutdown."""

import asyncio
import gc
import importlib.util
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from alight.config import ServeConfig
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.interrupt import Interrupted, deferred_interrupt
from alight.web.connections import BACKLOG, Room, Sparing, limited_protocol, most_connections, sparing_accept_errors
from alight.web.ending import ENDING_SIGNALS, end_at_once
from alight.web.folders import pipeline_folders
from alight.web.gate import LOOPBACK, Gate
from alight.web.jobs import Jobs
from alight.web.passwords import credentials
from alight.web.pictures import PICTURES, PictureStore
from alight.web.routes import Routes

LAST_STEP = 30  # seconds that a computation gets to notice that it must stop
SHUTDOWN_TIMEOUT = 1  # seconds that open connections get to end


def run(config: ServeConfig) -> NoReturn:
    """Serve until a signal comes.

    Raises:
        InputError: gradio is missing, a model cannot be opened, or the address is taken.
        Interrupted: the signal that ended it.
    """
    require_gradio()
    known = credentials(config)
    pipeline_folders(config)  # before anything heavy is imported
    most_connections()
    with (
        listening_socket(config.host, config.port) as listener,
        tempfile.TemporaryDirectory(prefix="alight-") as files,
    ):
        disable_telemetry(Path(files))
        from alight.runtime.device import fast_float32
        from alight.web.served import open_served

        jobs = Jobs()
        served = open_served(config)
        app = build_app(served, jobs, known)
        gc.freeze()  # the models live until the end, so the collector need not visit them
        announce(config, listener.getsockname()[1])
        at_once = end_at_once(Path(files))
        with fast_float32(served.device), deferred_interrupt() as signal_number:
            serve(app, listener, jobs, Room(most_connections(), config.trusted_proxy), at_once)
        for number in ENDING_SIGNALS:
            signal.signal(number, at_once)
        if not served.lock.acquire(timeout=LAST_STEP):  # the interpreter must not exit while a thread computes
            at_once(signal_number() or signal.SIGINT, None)
        raise Interrupted(signal_number() or signal.SIGINT)


def require_gradio() -> None:
    """Require gradio.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("The browser app needs gradio, which is not installed: pip install 'alight[web]'.")


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind the address before the models are loaded, so that a taken one is reported at once.

    Raises:
        InputError: it is taken, or not on this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}, port {port}: {error.strerror or error}. Choose another --port "
            "(0 = a free one), or another --host."
        ) from error
    listener.listen(BACKLOG)
    return listener


def disable_telemetry(files: Path) -> None:
    """Turn off gradio's telemetry and keep its uploads in a temporary folder; call before gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(files)
    os.environ["GRADIO_RUN_HISTORY"] = "False"


def build_app(served: Any, jobs: Jobs, known: tuple[str, str] | None = None) -> Gate:
    """Build the ASGI application: the page and its pictures behind the gate."""
    import gradio as gr
    from fastapi import FastAPI, Response
    from gradio import processing_utils

    from alight.web.calls import Calls
    from alight.web.page import build_page
    from alight.web.theme import page_style
    from alight.web.upload_route import add_upload_routes, swept
    from alight.web.upload_store import UploadStore

    async def fetch_nothing(url: str) -> NoReturn:
        raise gr.Error("This server does not fetch files from URLs. Upload the file itself.", print_exception=False)

    processing_utils.async_ssrf_protected_get = fetch_nothing  # otherwise a request could give a URL for a file
    log_refusals_in_a_line()
    config, pictures = served.config, PictureStore()
    max_bytes = int(config.max_upload_mb * 1e6)
    uploads = UploadStore(Path(os.environ["GRADIO_TEMP_DIR"]), max_bytes)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=swept(uploads))
    add_upload_routes(app, uploads)

    @app.get(f"/{PICTURES}/{{key}}/{{filename}}")
    def picture(key: str, filename: str) -> Response:
        stored = pictures.get(key)
        if stored is None or stored.filename != filename:
            return Response("This picture has expired. Generate it again.", status_code=404)
        return Response(stored.content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    page = build_page(served, jobs, pictures)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        root_path=(config.root_path or "").rstrip("/") or None,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **page_style(),
    )
    page.has_launched = True  # mounting does not set it, and without it gradio checks no path
    return Gate(
        Routes(app, Calls(page, uploads)),
        known,
        max_bytes,
        loopback=config.host in LOOPBACK,
        root_path=config.root_path or "",
    )


def log_refusals_in_a_line() -> None:
    """Log one line instead of gradio's traceback for every request that it refuses.

    Errors of this package do not get here: `events.connect` logs them in full.
    """
    from gradio import queueing, routes

    class OneLine:
        @staticmethod
        def print_exc() -> None:
            error = sys.exc_info()[1]
            log.warning("A request was refused: %s: %.200s", type(error).__name__, " ".join(str(error).split()))

    queueing.traceback = routes.traceback = OneLine


def announce(config: ServeConfig, port: int) -> None:
    """Print the address of the page; programs that start the server read this line."""
    name = f"[{config.host}]" if ":" in config.host else config.host
    print(f"Serving at http://{name}:{port}/ (Ctrl-C ends it)", flush=True)
    if config.host not in LOOPBACK and config.user is None:
        log.warning("Anyone who can reach this machine can use the page; --user NAME makes it ask for a password.")


def serve(
    app: Gate,
    listener: socket.socket,
    jobs: Jobs,
    room: Room,
    at_once: Callable[[int, FrameType | None], NoReturn],
) -> None:
    """Answer requests until SIGINT or SIGTERM arrives; a second signal calls `at_once`."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(sparing_accept_errors())
            await super().startup(sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                at_once(sig, frame)
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            jobs.stop_all()  # otherwise it would wait for images in progress
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open pages are disconnected; no warnings
            await super().shutdown(sockets)

    settings = uvicorn.Config(
        app,
        http=limited_protocol(room),
        ws="none",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        server_header=False,
        proxy_headers=room.proxy is not None,
        forwarded_allow_ips=room.proxy,
    )
    logging.getLogger("uvicorn.error").addFilter(Sparing())
    Server(settings).run(sockets=[listener])
