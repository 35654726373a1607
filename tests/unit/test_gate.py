"""The gate before the browser app, as an ASGI application without a server."""

import asyncio
import base64
import logging
import re
import time

import pytest

from alight.runtime.console import log
from alight.web import guesses
from alight.web.gate import FORM_BYTES, Gate
from alight.web.guesses import Guesses, network


def through_the_gate(gate, headers, chunks=(), method="GET", path="/", address="192.0.2.1"):
    """The status of the gate's answer to one request whose body comes in chunks."""
    sent = []
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    scope |= {"method": method, "path": path, "client": (address, 40000)}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"]


async def reads_everything(scope, receive, send):
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_body_of_unknown_length_is_cut_off_at_the_limit():
    gate = Gate(reads_everything, None, max_bytes=1000, loopback=False)
    assert through_the_gate(gate, {}, [bytes(900)]) == 200
    assert through_the_gate(gate, {}, [bytes(900), bytes(FORM_BYTES), bytes(900)]) == 413
    assert through_the_gate(gate, {"content-length": "1000000"}) == 413


@pytest.mark.parametrize(
    ("host", "code"),
    [("127.0.0.1:7860", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403)],
)
def test_a_server_of_one_machine_answers_to_its_names_only(host, code):
    assert through_the_gate(Gate(reads_everything, None, 1000, loopback=True), {"host": host}) == code


@pytest.mark.parametrize("given", ["", "Basic", "Basic !!!", "Basic YWRhOndyb25n", "Bearer YWRhOmxhY2U="])
def test_only_the_right_credentials_open_the_gate(given):
    gate = Gate(reads_everything, ("ada", "lace"), 1000, loopback=False)
    assert through_the_gate(gate, {"authorization": given} if given else {}) == 401
    assert through_the_gate(gate, {"authorization": "Basic YWRhOmxhY2U="}) == 200


def basic(user, password):
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


PAGE = b'<html><script>1</script><script type="module" src="a.js"></script><p>&lt;script></p></html>'


def answer_of(gate, path="/", chunks=(PAGE,)):
    """Status, headers and body of the gate's answer to a request for a page that the app sends in chunks."""
    sent, seen = [], []

    async def page(scope, receive, send):
        seen.append((scope["path"], scope.get("root_path")))
        length = str(sum(map(len, chunks))).encode()
        headers = [(b"Content-Type", b"text/html; charset=utf-8"), (b"Content-Length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    gate.app = page
    scope = {"type": "http", "method": "GET", "headers": [], "path": path, "client": ("192.0.2.1", 1)}
    asyncio.run(gate(scope, None, send))
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]), seen


@pytest.mark.parametrize("chunks", [(PAGE,), (PAGE[:9], PAGE[9:30], PAGE[30:])])
def test_only_scripts_with_the_nonce_of_the_answer_may_run(chunks):
    gate = Gate(reads_everything, None, 1000, loopback=False)
    nonces = set()
    for _ in range(2):
        _, headers, body, _ = answer_of(gate, chunks=chunks)
        policy = headers["content-security-policy"]
        scripts = re.search("script-src ([^;]*)", policy)[1]
        assert "unsafe-inline" not in scripts
        nonce = re.search("'nonce-([^']+)'", scripts)[1]
        assert body.count(b'<script nonce="' + nonce.encode() + b'"') == 2
        assert int(headers["content-length"]) == len(body)
        nonces.add(nonce)
    assert len(nonces) == 2


@pytest.mark.parametrize("root_path", ["/app", "/app/", "https://x.example/app"])
@pytest.mark.parametrize("path", ["/app/config", "/config"])
def test_below_a_root_path_a_proxy_may_cut_it_off_or_not(root_path, path):
    gate = Gate(reads_everything, None, 1000, loopback=False, root_path=root_path)
    assert answer_of(gate, path)[3] == [("/app/config", "/app")]


def test_a_root_path_without_a_slash_leads_to_the_one_with_it():
    gate = Gate(reads_everything, None, 1000, loopback=False, root_path="/app")
    status, headers, _, seen = answer_of(gate, "/app")
    assert (status, headers["location"], seen) == (308, "/app/", [])


FOREIGN = {"host": "127.0.0.1:7860", "origin": "http://evil.example"}
OWN = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "GET"])
@pytest.mark.parametrize(
    "headers",
    [
        FOREIGN,
        FOREIGN | {"sec-fetch-site": "cross-site"},
        FOREIGN | {"origin": "null"},
        FOREIGN | {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"},
        FOREIGN | {"origin": "http://127.0.0.1.evil.example:7860"},
        FOREIGN | {"origin": "http://[broken"},
        {"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_requests_of_foreign_pages_are_refused(method, headers):
    gate = Gate(reads_everything, ("ada", "lace"), 1000, loopback=True)
    assert through_the_gate(gate, headers | basic("ada", "lace"), method=method) == 403


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860"},
        OWN,
        OWN | {"sec-fetch-site": "same-origin"},
        {"host": "127.0.0.1:7860", "sec-fetch-site": "none"},
        {"host": "127.0.0.1:7860", "origin": "https://public.example", "sec-fetch-site": "same-origin"},
        {"host": "127.0.0.1:7860", "origin": "https://Public.example", "x-forwarded-host": "public.example:443"},
        {"host": "127.0.0.1:7860", "origin": "https://address.example"},
    ],
)
def test_requests_of_the_own_page_and_of_programs_pass(method, headers):
    gate = Gate(reads_everything, None, 1000, loopback=True, root_path="https://address.example/app")
    assert through_the_gate(gate, headers, method=method) == 200


def test_a_link_from_elsewhere_opens_the_page_and_does_nothing_more():
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    gate = Gate(reads_everything, None, 1000, loopback=False)
    assert through_the_gate(gate, link) == 200
    assert through_the_gate(gate, link, method="POST") == 403
    assert through_the_gate(gate, link | {"sec-fetch-dest": "iframe"}) == 403


@pytest.mark.parametrize("length", ["-1", "1e3", "\u00b2", "9" * 5000])
def test_an_absurd_content_length_is_refused(length):
    headers = {"content-length": length}
    assert through_the_gate(Gate(reads_everything, None, 1000, loopback=False), headers) in (400, 413)


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def test_wrong_passwords_are_answered_late_and_logged_without_them(monkeypatch, lines):
    monkeypatch.setattr(guesses, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(guesses, "LONGEST_WAIT", 0.08)
    gate = Gate(reads_everything, ("ada", "lace"), 1000, loopback=False)
    began = time.monotonic()
    for number in range(5):
        assert through_the_gate(gate, basic("ada", f"secret-{number}"), address="192.0.2.7") == 401
    assert time.monotonic() - began > 0.02 + 0.04 + 3 * 0.08
    assert lines() == [f"Wrong user or password from 192.0.2.7 ({count} so far)." for count in (1, 2, 4)]
    monkeypatch.setattr(guesses, "LONGEST_WAIT", 60.0)
    monkeypatch.setattr(guesses, "FIRST_WAIT", 60.0)
    began = time.monotonic()
    assert through_the_gate(gate, basic("ada", "lace"), address="192.0.2.7") == 200
    assert through_the_gate(gate, {}, address="192.0.2.7") == 401  # nobody guessed: the browser asks first
    assert time.monotonic() - began < 5


def test_many_guesses_at_once_from_one_address_are_not_even_compared(monkeypatch):
    monkeypatch.setattr(guesses, "FIRST_WAIT", 0.5)
    monkeypatch.setattr(guesses, "LONGEST_WAIT", 0.5)
    gate = Gate(reads_everything, ("ada", "lace"), 1000, loopback=False)

    async def attempt(password, address):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        given = basic("ada", password)["authorization"].encode()
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"authorization", given)]}
        scope["client"] = (address, 1)
        await gate(scope, receive, send)
        return sent[0]["status"]

    async def attack():
        many = [attempt(f"guess {number}", "192.0.2.7") for number in range(guesses.MOST_WAITING + 20)]
        return await asyncio.gather(*many, attempt("lace", "192.0.2.7"), attempt("lace", "192.0.2.8"))

    *wrong, same, other = asyncio.run(attack())
    assert (wrong.count(401), wrong.count(429)) == (guesses.MOST_WAITING, 20)
    assert same == 429  # else the answer would tell that it is the right one
    assert other == 200


def test_the_table_of_addresses_and_the_log_stay_small(monkeypatch, lines):
    monkeypatch.setattr(guesses, "FIRST_WAIT", 0.0)
    table = Guesses()

    async def attack():
        for number in range(3 * guesses.MOST_ADDRESSES):
            await table.wrong(f"10.0.{number // 256}.{number % 256}")

    asyncio.run(attack())
    assert len(table.records) == guesses.MOST_ADDRESSES
    assert len(lines()) <= guesses.LINES_PER_MINUTE


def test_wrong_passwords_are_forgotten_after_a_while(monkeypatch):
    monkeypatch.setattr(guesses, "FIRST_WAIT", 0.0)
    now = [0.0]
    table = Guesses(lambda: now[0])
    asyncio.run(table.wrong("192.0.2.7"))
    asyncio.run(table.wrong("192.0.2.7"))
    assert table.records["192.0.2.7"].wrong == 2
    now[0] += guesses.FORGOTTEN_AFTER + 1
    asyncio.run(table.wrong("192.0.2.7"))
    assert table.records["192.0.2.7"].wrong == 1


def test_addresses_of_one_ipv6_network_are_one_visitor():
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("::ffff:192.0.2.7") == network("192.0.2.7") == "192.0.2.7"
