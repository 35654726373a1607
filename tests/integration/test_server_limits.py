"""The server of the browser app under attack: a real process on loopback, and visitors without manners or patience."""

import contextlib
import re
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from helpers.serving import serving, wait_until

httpx = pytest.importorskip("httpx", reason="comes with gradio: pip install 'alight[web]'")
pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")

FILES, CONNECTIONS = 256, 300
LOG_BYTES = 20_000  # more than a few lines, far less than a traceback per connection


@contextlib.contextmanager
def few_files():
    """A low limit of open files, for the processes that are started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def server(finished_quickstart, tmp_path_factory):
    log = tmp_path_factory.mktemp("limits") / "log"
    with contextlib.ExitStack() as stack:
        with few_files():
            running = stack.enter_context(
                serving(finished_quickstart[0], log, "--user", "ada", ALIGHT_PASSWORD="lovelace")
            )
        yield running


RIGHT, WRONG = ("ada", "lovelace"), ("ada", "babbage")


@contextlib.contextmanager
def half_open(server, head, count=CONNECTIONS):
    """Many connections that begin a request and do not finish it; those that cannot be made are left out."""
    where = urlsplit(server.url)
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                one = stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=1))
                one.sendall(head)
                opened.append(one)
        yield opened


def is_closed(connection):
    """Tell if the server has closed it, perhaps after an answer."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


HALVES = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    "no body": b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("head", HALVES.values(), ids=HALVES)
def test_half_open_connections_lock_nobody_out_and_are_closed(server, head):
    with half_open(server, head) as opened:
        assert len(opened) > FILES / 4
        for _ in range(3):
            began = time.monotonic()
            assert httpx.get(server.url, auth=RIGHT, timeout=10).status_code == 200
            assert time.monotonic() - began < 5
        wait_until(lambda: all(map(is_closed, opened)), 40)
    text = server.log.read_text()
    assert "Traceback" not in text
    assert len(text) < LOG_BYTES


def test_a_head_that_trickles_in_is_cut_off(server):
    with half_open(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", count=1) as (one,):
        end = time.monotonic() + 20
        with contextlib.suppress(OSError):
            while time.monotonic() < end and not is_closed(one):
                one.setblocking(True)
                one.sendall(b"X-More: x\r\n")
                time.sleep(0.5)
        assert time.monotonic() < end


def test_an_ended_request_does_not_make_a_connection_immortal(server):
    with half_open(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", count=1) as (one,):
        assert b"401" in one.recv(65536)
        one.sendall(b"G")  # the first letter of the next
        wait_until(lambda: is_closed(one), 30)


def test_wrong_passwords_are_slow_and_logged_and_the_right_one_is_not_slow(server):
    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(lambda _: httpx.get(server.url, auth=WRONG, timeout=60).status_code, range(60)))
        lasted = time.monotonic() - began
    assert set(codes) == {401}
    assert lasted > 8
    began = time.monotonic()
    assert httpx.get(server.url, auth=RIGHT).status_code == 200
    assert time.monotonic() - began < 2
    text = server.log.read_text()
    assert re.search(r"Wrong user or password from 127\.0\.0\.1 \(\d+ so far\)", text)
    assert not re.search("babbage|lovelace", text)
    assert text.count("Wrong user or password") < 20


@pytest.mark.parametrize("path", ["gradio_api/upload", "gradio_api/queue/join", "gradio_api/call/generate"])
def test_posts_of_foreign_pages_are_refused_although_the_browser_knows_the_password(server, path):
    own = server.url.rstrip("/")
    for headers in ({"origin": "http://evil.example"}, {"origin": own, "sec-fetch-site": "cross-site"}):
        assert httpx.post(server.url + path, auth=RIGHT, headers=headers, json={}).status_code == 403
    assert httpx.post(server.url + path, auth=RIGHT, headers={"origin": own}, json={}).status_code != 403
    stream = server.url + "gradio_api/queue/data?session_hash=x"
    assert httpx.get(stream, auth=RIGHT, headers={"origin": "http://evil.example"}).status_code == 403


def test_ill_formed_requests_do_not_fill_the_log(server):
    before = len(server.log.read_text())
    for _ in range(200):
        with half_open(server, b"\x00\xff nonsense\r\n\r\n", count=1):
            pass
    assert httpx.get(server.url, auth=RIGHT).status_code == 200
    assert len(server.log.read_text()) - before < 500
