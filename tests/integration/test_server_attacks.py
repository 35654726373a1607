"""A server among hostile visitors: a real process on loopback, and requests that no page would send."""

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from helpers.pictures import noise_file
from helpers.serving import serving, wait_until

pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")

MEGABYTE = 2**20
SECRET = "the content of a file that nobody uploaded"  # noqa: S105
JSON = {"content-type": "application/json"}
GENERATE, RECONSTRUCT, LATENTS, BETWEEN, COMPARE = 0, 5, 8, 12, 15
SETTINGS = [2, 1.0, 0.0, 1.0, 1.0, "euler", 0, 0.5, False, 1.0, 0.0, 1.0]


class Visitor:
    """Requests without any client library."""

    def __init__(self, url):
        self.host, self.session = urlsplit(url).netloc, uuid.uuid4().hex

    def ask(self, method, path, body=None, headers=(), seconds=30):
        """The status and the content of an answer; an event stream is read to its end."""
        connection = http.client.HTTPConnection(self.host, timeout=seconds)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def join(self, function, data, session=None):
        """Call a function as the page does; the refusal, or all that its events say."""
        call = {"data": data, "fn_index": function, "session_hash": session or self.session}
        status, answer = self.ask("POST", "/gradio_api/queue/join", json.dumps(call), JSON)
        if status != 200:
            return status, answer
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={session or self.session}")

    def call(self, name, data):
        """Call an endpoint as programs do; the refusal, or all that its events say."""
        status, answer = self.ask("POST", f"/gradio_api/call/{name}", json.dumps({"data": data}), JSON)
        if status != 200:
            return status, answer
        return self.ask("GET", f"/gradio_api/call/{name}/{json.loads(answer)['event_id']}")

    def upload(self, *files, path="/gradio_api/upload", headers=()):
        """Send files, (name, content) each, in one form."""
        parts = [
            f'--limit\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n"
            for name, content in files
        ]
        form = {"content-type": "multipart/form-data; boundary=limit"} | dict(headers)
        return self.ask("POST", path, b"".join([*parts, b"--limit--\r\n"]), form)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the server's temporary files, beside some that are none of its business."""
    place = tmp_path_factory.mktemp("attacked")
    (place / "temporary").mkdir()
    (place / "secret.png").write_text(SECRET)
    (place / "link.png").symlink_to(place / "secret.png")
    os.mkfifo(place / "fifo.png")
    return place


@pytest.fixture(scope="module")
def server(finished_quickstart, place):
    with serving(finished_quickstart[0], place / "log", TMPDIR=str(place / "temporary"), SECRET=SECRET) as running:
        yield running
    assert "Traceback" not in (place / "log").read_text()


@pytest.fixture
def visitor(server):
    return Visitor(server.url)


def stored(place):
    """The files that the server keeps of its visitors."""
    return [path for path in (place / "temporary").rglob("*") if path.is_file()]


def bytes_of(paths):
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def named(path, **fields):
    return [{"path": str(path), "meta": {"_type": "gradio.FileData"}, **fields}]


def foreign_paths(place):
    upwards = next((place / "temporary").glob("alight-*"), place / "temporary")
    return [
        place / "secret.png",
        place / "link.png",
        place / "fifo.png",
        os.path.relpath(place / "secret.png"),
        f"{upwards}/../../secret.png",
        f"{upwards}/nothing/../../../link.png",
        "/proc/self/environ",
        "/proc/self/cwd/pyproject.toml",
        "/proc/self/root/etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "file:///etc/passwd",
        upwards,
        "",
        ".",
        "a\x00b",
        "x" * 5000,
    ]


def test_no_endpoint_takes_a_path_that_nobody_uploaded(visitor, place):
    """By both ways to call, with the fields that gradio reads; /dev/zero and a FIFO must not hold the server up."""
    for path in foreign_paths(place):
        for fields in ({}, {"url": "/gradio_api/file=x", "is_stream": True}, {"meta": {}}):
            files = named(path, **fields)
            answers = [
                visitor.call("reconstruct", [files]),
                visitor.call("latents", [files]),
                visitor.call("between", ["Images", 0, 1, 0, files, 3]),
                visitor.join(RECONSTRUCT, [files]),
                visitor.join(LATENTS, [files]),
                visitor.join(BETWEEN, ["Images", 0, 1, 0, files * 2, 3]),
            ]
            assert {status for status, _ in answers} == {422}, path
    assert not [path for path in stored(place) if path.read_bytes() == SECRET.encode()]
    assert visitor.ask("GET", "/", seconds=5)[0] == 200


def test_no_file_of_the_machine_is_read_through_a_deep_link(visitor, place):
    """The whole way: a path as a value, the session as a deep link, its state as a configuration, the file itself."""
    for path in (place / "secret.png", "/proc/self/environ", place / "link.png"):
        visitor.join(RECONSTRUCT, [named(path)])
        status, link = visitor.ask("GET", f"/gradio_api/deep_link?session_hash={visitor.session}")
        answers = [link, visitor.ask("GET", f"/config?deep_link={quote(link.decode().strip(chr(34)))}")[1]]
        for found in [str(path), *re.findall(rb'"path":"([^"]+)"', answers[-1])][:10]:
            name = found if isinstance(found, str) else found.decode()
            answers += [visitor.ask("GET", f"/gradio_api/{way}{quote(name)}")[1] for way in ("file=", "file/")]
        assert status == 404
        assert SECRET.encode() not in b"".join(answers)


def test_honest_uploads_work_and_are_not_handed_out(visitor, place):
    status, answer = visitor.upload(("mine.png", noise_file()))
    (path,) = json.loads(answer)
    assert status == 200
    for status, events in (visitor.join(RECONSTRUCT, [named(path)]), visitor.call("latents", [named(path)])):
        assert status == 200
        assert b"Done" in events
    assert visitor.ask("GET", f"/gradio_api/file={path}")[0] == 404
    planted = Path(path).with_name("planted.png")
    planted.symlink_to(place / "secret.png")
    assert visitor.join(RECONSTRUCT, [named(planted)])[0] == 422
    assert visitor.join(RECONSTRUCT, [named(Path(path).parent / "." / ".." / Path(path).parent.name)])[0] == 422


def test_equal_files_of_two_visitors_have_paths_of_their_own(visitor):
    """The path is the permission, so it must not follow from the content."""
    paths = [json.loads(visitor.upload(("mine.png", noise_file()))[1])[0] for _ in range(2)]
    assert paths[0] != paths[1]


def test_endpoints_that_the_page_does_not_need_are_shut(visitor):
    shut = [
        *(("GET", f"/gradio_api/{name}") for name in ("deep_link?session_hash=a", "app_id", "token", "user")),
        *(("GET", f"/gradio_api/{name}") for name in ("openapi.json", "runs", "queue/status", "vibe-code")),
        *(("GET", f"/gradio_api/{name}") for name in ("file=/etc/passwd", "file//etc/passwd", "dev/reload")),
        *(("GET", f"/gradio_api/{name}") for name in ("proxy=http://192.0.2.1/", "stream/a/1/1/playlist.m3u8")),
        *(("POST", f"/gradio_api/{name}") for name in ("component_server", "process_recording", "vibe-edit")),
        *(("POST", f"/gradio_api/{name}") for name in ("call/v2/generate", "api/generate", "run/generate")),
        *(("GET", f"/{name}") for name in ("monitoring", "monitoring/summary", "docs", "openapi.json", "logout")),
        ("POST", "/login"),
        ("PUT", "/config"),
        ("DELETE", "/"),
    ]
    for method, path in shut:
        assert visitor.ask(method, path, b"{}" if method == "POST" else None, JSON)[0] == 404, path
    assert visitor.ask("GET", "/config?deep_link=../../etc")[0] == 200
    assert visitor.ask("GET", "/gradio_api/queue/data?session_hash=nobody")[0] == 404
    assert visitor.ask("GET", "/gradio_api/call/generate/nothing")[0] == 404


WRONG = [None, True, "x", -1, 1.5, 10**400, -(10**400), [], [[]], {}, {"path": "/etc/passwd"}, ["x"], [None], [True]]


def test_unknown_functions_and_malformed_calls_are_refused(visitor):
    way = "/gradio_api/queue/join"
    whole = {"data": [None], "session_hash": visitor.session}
    bodies = [
        *(json.dumps(whole | {"fn_index": index}) for index in (-1, 18, 1, 99, 10**30, None, "0", True, 1.5, [], {})),
        *(json.dumps(whole | {"fn_index": RECONSTRUCT, "session_hash": name}) for name in (7, [], "../x", "a" * 99)),
        *(json.dumps(whole | {"fn_index": RECONSTRUCT, "data": data}) for data in (None, 7, {}, [], [None] * 2, "x")),
        *(b"", b"{", b"\xff\xfe", b"null", b"7", b"[]", b'{"data": NaN}', b'{"data": [' + b"9" * 5000 + b"]}"),
        *(b"[" * 50_000, b'{"a":' * 50_000, b'{"data": ["\\ud800"]}', b" " * MEGABYTE),
    ]
    for body in bodies:
        for path in (way, "/gradio_api/call/reconstruct", "/gradio_api/run/predict"):
            status, answer = visitor.ask("POST", path, body, JSON)
            if path != way and status == 200:  # a field that this way does not read
                assert json.loads(answer)
                continue
            assert 400 <= status < 500, (path, body[:100])
            assert b"Traceback" not in answer
    assert visitor.ask("POST", "/gradio_api/call/nothing", b'{"data": []}', JSON)[0] == 404
    assert visitor.ask("POST", "/gradio_api/call/leave", b'{"data": []}', JSON)[0] == 404
    for body in (b"", b"{", b'{"event_id": 7, "session_hash": [], "fn_index": "x"}'):
        assert visitor.ask("POST", "/gradio_api/cancel", body, JSON)[0] == 422
        assert visitor.ask("POST", "/gradio_api/reset", body, JSON)[0] == 422


@pytest.mark.parametrize(
    ("function", "data"),
    [
        (GENERATE, [[0], 1, 0, *SETTINGS]),
        (RECONSTRUCT, [None]),
        (LATENTS, [None]),
        (BETWEEN, ["Classes", 0, 1, 0, None, 3]),
        (COMPARE, [[0], 1, 0, *SETTINGS, *SETTINGS]),
    ],
)
def test_every_input_refuses_values_of_other_types(visitor, function, data):
    """Each value in turn; what is no refusal must be an honest answer to a value that happens to fit."""
    for position in range(len(data)):
        for wrong in WRONG:
            status, answer = visitor.join(function, [*data[:position], wrong, *data[position + 1 :]])
            assert status in (200, 400, 422), (position, wrong)
            assert b"went wrong on the server" not in answer, (position, str(wrong)[:50])
            assert b"Traceback" not in answer
            if isinstance(wrong, bool) and isinstance(data[position], bool):
                continue  # a checkbox
            if isinstance(wrong, (bool, dict)) or wrong in ([[]], [None], [True]):
                assert status == 422, (position, wrong)


@pytest.mark.parametrize("seed", [10**400, 10**30, 1e308, -5, 2**63])
def test_absurd_seeds_are_refused(visitor, seed):
    status, answer = visitor.join(GENERATE, [[0], 1, seed, *SETTINGS])
    assert status == 422 or b"seed" in answer


def test_malformed_uploads_are_refused(visitor, place):
    before = len(stored(place))
    form = {"content-type": "multipart/form-data; boundary=limit"}
    for body, headers in [
        (b"", {}),
        (b"", form),
        (b"nothing of the kind", form),
        (b"x", {"content-type": "multipart/form-data"}),
        (b"x", {"content-type": "text/plain"}),
        (b"--limit\r\n" + b"x: " * 9000 + b"\r\n\r\n", form),
        (b"--limit\r\nContent-Disposition: form-data\r\n\r\nx\r\n--limit--\r\n", form),
    ]:
        assert visitor.ask("POST", "/gradio_api/upload", body, headers)[0] in (200, 400), body[:50]
    assert visitor.upload(*[("a.png", b"")] * 201)[0] == 400
    assert visitor.ask("POST", "/gradio_api/upload", iter([b"x"] * 3), form)[0] == 411  # in chunks
    for name in ("../../../x.png", "/etc/x.png", "..", "", "a\\..\\b.png", "\x1b[31m.png", "ä" * 400 + ".png", ".png"):
        status, answer = visitor.upload((name.encode().decode("latin-1"), noise_file()))
        assert status == 200, name
        for path in json.loads(answer):
            assert (place / "temporary").resolve() in Path(path).resolve().parents
            assert path.isprintable()
    assert len(stored(place)) <= before + 8


def test_uploads_are_limited_and_do_not_pile_up(finished_quickstart, tmp_path):
    """30 uploads of 19 MB, and then many small ones."""
    (tmp_path / "temporary").mkdir()
    large = bytes(19_000_000)
    with serving(finished_quickstart[0], tmp_path / "log", TMPDIR=str(tmp_path / "temporary")) as server:
        visitor, before = Visitor(server.url), server.memory
        codes = []
        for _ in range(30):
            codes.append(visitor.upload(("large.png", large))[0])
            assert bytes_of(stored(tmp_path)) <= 100_000_000
        assert codes[0] == 200
        assert codes[-1] == 429
        codes = [visitor.upload(("small.png", b"x"))[0] for _ in range(300)]
        assert codes[0] == 200
        assert codes[-1] == 429
        assert len(stored(tmp_path)) <= 220
        assert server.memory - before < 300 * MEGABYTE
        assert visitor.ask("GET", "/")[0] == 200
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_uploads_that_break_off_leave_nothing(visitor, place):
    before = bytes_of(stored(place))
    for _ in range(10):
        connection = http.client.HTTPConnection(visitor.host, timeout=10)
        connection.putrequest("POST", "/gradio_api/upload")
        connection.putheader("content-type", "multipart/form-data; boundary=limit")
        connection.putheader("content-length", "15000000")
        connection.endheaders()
        connection.send(b'--limit\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n')
        connection.send(bytes(MEGABYTE))
        connection.close()
    wait_until(lambda: visitor.upload(("b.png", b"x"))[0] == 200)  # their room is free again
    assert bytes_of(stored(place)) - before < MEGABYTE


@pytest.mark.parametrize(
    ("number", "times"), [pytest.param(signal.SIGINT, 2, marks=pytest.mark.exhaustive), (signal.SIGTERM, 1)]
)
def test_signals_end_a_busy_server_in_good_order(finished_quickstart, tmp_path, number, times):
    """While images are made and visitors listen: no traceback, no temporary file; the second acts at once."""
    (tmp_path / "temporary").mkdir()
    log = tmp_path / "log"
    with serving(finished_quickstart[0], log, TMPDIR=str(tmp_path / "temporary")) as server:
        visitor = Visitor(server.url)
        settings = [250, *SETTINGS[1:5], "rk4", 0]
        for session in ("a", "b", "c"):
            data = [list(range(10)), 6, 0, *settings]
            threading.Thread(target=silent, args=(visitor, data, session), daemon=True).start()
        time.sleep(2)
        for _ in range(times):
            server.process.send_signal(number)
            time.sleep(0.2)
        started = time.monotonic()
        late = -number  # the second came when the interpreter had nothing left to do but to unload itself
        assert server.process.wait(timeout=20) in ((128 + number,) if times == 1 else (128 + number, late))
        assert times == 1 or time.monotonic() - started < 3
    assert "Traceback" not in log.read_text()
    assert not stored(tmp_path)


def silent(visitor, data, session):
    with contextlib.suppress(OSError, http.client.HTTPException):
        visitor.join(GENERATE, data, session)


def test_memory_and_temporary_files_stay_bounded(server, visitor, place):
    """After all that went before, and 200 further refusals."""
    for _ in range(200):
        visitor.join(RECONSTRUCT, [named("/dev/zero")])
    before = server.memory
    for _ in range(200):
        visitor.join(RECONSTRUCT, [named("/dev/zero")])
    assert server.memory - before < 20 * MEGABYTE
    assert bytes_of(stored(place)) < 50 * MEGABYTE
    assert "Traceback" not in server.log.read_text()
