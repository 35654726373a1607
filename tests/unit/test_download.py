"""Public files: found where the user says or in the cache folder, else downloaded whole and right, or not at all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alight.runtime.cache_folder import cache_folder
from alight.runtime.download import PublicFile
from alight.runtime.errors import InputError

CONTENT = bytes(range(256)) * 9_000  # more than one block
DIGEST = sha256(CONTENT).hexdigest()


class Site(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.server.requests.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
            return
        body = CONTENT if self.path != "/other" else CONTENT[::-1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    """A web site on this machine; `requests` lists what was asked of it."""
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def file_at(site, path, digest=DIGEST[:8]):
    return PublicFile("weights of a test", "weights.bin", f"http://127.0.0.1:{site.server_port}/{path}", digest)


def leftovers():
    return [path for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("given", [None, "download"])
def test_downloads_once(site, given):
    file = file_at(site, "whole")
    path = file.locate(given)
    assert path == file.cached
    assert path.is_relative_to(cache_folder())
    assert path.read_bytes() == CONTENT
    assert file.locate(given) == path
    assert site.requests == ["/whole"]
    assert leftovers() == [path]


def test_processes_that_want_it_at_once_share_one_download(site):
    file = file_at(site, "whole")
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: file.locate(), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert site.requests == ["/whole"]


def test_the_users_own_file_is_taken_where_it_is(site, tmp_path):
    path = tmp_path / "mine.bin"
    path.write_bytes(CONTENT)
    assert file_at(site, "whole").locate(str(path)) == path
    assert not site.requests


def test_a_file_that_was_put_into_the_cache_folder_is_taken(site):
    file = file_at(site, "whole")
    file.cached.parent.mkdir(parents=True)
    file.cached.write_bytes(CONTENT)
    assert file.locate() == file.cached
    assert not site.requests


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent", "404"), ("cut", "ended after 1,152,000 of 2,304,000 bytes"), ("other", f"instead of {DIGEST[:8]}")],
)
def test_nothing_is_left_of_a_failed_download(site, path, reason):
    file = file_at(site, path)
    with pytest.raises(InputError, match=reason) as error:
        file.locate()
    for name in (file.url, str(file.cached), "weights of a test", "give its path"):
        assert name in str(error.value)
    assert leftovers() == []


def test_without_a_network(site):
    port = site.server_port
    site.shutdown()
    site.server_close()
    file = PublicFile("weights of a test", "weights.bin", f"http://127.0.0.1:{port}/whole", DIGEST)
    with pytest.raises(InputError, match="Connection refused") as error:
        file.locate()
    assert str(file.cached) in str(error.value)


def test_a_folder_that_cannot_be_written(site, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="ALIGHT_CACHE"):
        file_at(site, "whole").locate()


def test_a_wrong_path_and_a_wrong_file(site, tmp_path):
    file, path = file_at(site, "whole"), tmp_path / "weights.bin"
    with pytest.raises(InputError, match="'download'") as error:
        file.locate(path)
    assert str(path) in str(error.value)
    assert file.url in str(error.value)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="another file, or damaged") as error:
        file.locate(path)
    assert str(path) in str(error.value)
    assert file.url in str(error.value)
    file.cached.parent.mkdir(parents=True)
    file.cached.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="another file, or damaged"):
        file.locate()
    assert not site.requests
