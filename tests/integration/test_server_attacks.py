"""A real server on loopback under attack: nothing of the machine leaves it, nothing hangs, nothing piles up."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image
from serving import serving, wait_until

httpx = pytest.importorskip("httpx", reason="comes with gradio: pip install 'alight[web]'")
pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")

SECRET = "a secret that must not leave the machine"
FILE_ENDPOINTS = ("reconstruct", "latents")


@pytest.fixture(scope="module")
def server(finished_quickstart, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "server.log"
    with serving(finished_quickstart[0], log) as running:
        yield running
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Files that nobody uploaded: an image and a text in every disguise, and things that never end."""
    folder = tmp_path_factory.mktemp("private")
    (folder / "secret.txt").write_text(SECRET)
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(folder / "secret.png")
    (folder / "link.png").symlink_to(folder / "secret.png")
    os.mkfifo(folder / "pipe.png")
    relative = os.path.relpath(folder / "secret.png")
    return [
        *(str(folder / name) for name in ("secret.txt", "secret.png", "link.png", "pipe.png", "absent.png")),
        *(relative, "/proc/self/environ", "/proc/self/cmdline", "/dev/zero", "/dev/stdin", "/etc/passwd", "a\0b", ""),
        f"file://{folder / 'secret.png'}",
        f"http://127.0.0.1:1/{folder / 'secret.png'}",
    ]


def disguises(path):
    """A path as a file object in the forms in which requests can name one."""
    meta = {"_type": "gradio.FileData"}
    return [
        {"path": path, "meta": meta},
        {"path": path},
        {"path": path, "url": path, "orig_name": "x.png", "meta": meta},
        {"name": path, "path": path, "is_file": True, "data": None, "meta": meta},
    ]


def ask(server, endpoint, data, session="s"):
    """Call an endpoint by both of its ways and give everything that comes back."""
    answers = []
    begun = httpx.post(f"{server.url}gradio_api/call/{endpoint}", json={"data": data, "session_hash": session})
    answers.append(begun.text)
    if begun.status_code == 200:
        event = begun.json()["event_id"]
        answers.append(httpx.get(f"{server.url}gradio_api/call/{endpoint}/{event}", timeout=20).text)
    return "\n".join(answers)


@pytest.mark.parametrize("endpoint", FILE_ENDPOINTS)
def test_a_path_is_no_upload(server, paths, endpoint):
    started = time.monotonic()
    for path in paths:
        for file in disguises(path):
            for data in ([[file]], [file], [path], [[path]]):
                text = ask(server, endpoint, data)
                assert SECRET not in text, (path, file)
                assert "pictures/" not in text, (path, file)
                assert "root:" not in text, (path, file)
    assert time.monotonic() - started < 240
    assert httpx.get(server.url).status_code == 200  # it still answers


def test_stored_inputs_cannot_be_called_up(server, paths):
    assert httpx.get(f"{server.url}gradio_api/deep_link?session_hash=s").status_code == 404
    for address in ("?deep_link=abc", "config?deep_link=abc", "config?x=1&deep_link=../.."):
        assert httpx.get(f"{server.url}{address}").status_code == 404
    for path in paths:
        for address in (f"gradio_api/file={path}", f"gradio_api/proxy={path}", f"gradio_api/file/{path}"):
            if "\0" not in path:
                answer = httpx.get(f"{server.url}{address}")
                assert answer.status_code in (307, 403, 404, 405), (address, answer.status_code)
                assert SECRET not in answer.text


@pytest.mark.parametrize(
    "address",
    ["monitoring", "monitoring/summary", "gradio_api/vibe-code", "gradio_api/openapi.json", "gradio_api/dev/reload"]
    + ["gradio_api/process_recording", "gradio_api/component_server", "docs", "openapi.json", "gradio_api/runs"],
)
def test_what_the_page_does_not_need_is_shut(server, address):
    assert httpx.get(f"{server.url}{address}").status_code == 404
    assert httpx.post(f"{server.url}{address}", json={}).status_code == 404


def test_an_honest_upload_still_works(server, tmp_path):
    path = tmp_path / "mine.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(path)
    with path.open("rb") as file:
        sent = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("mine.png", file)}).json()
    file = {"path": sent[0], "orig_name": "mine.png", "meta": {"_type": "gradio.FileData"}}
    for endpoint in FILE_ENDPOINTS:
        assert "pictures/" in ask(server, endpoint, [[file]])


@pytest.mark.parametrize(
    "body",
    [
        {"data": [], "fn_index": 99999, "session_hash": "s"},
        {"data": None, "fn_index": 0, "session_hash": "s"},
        {"data": [[0], 1, int("9" * 400)], "fn_index": 0, "session_hash": "s"},
        {"fn_index": "x" * 1000},
        [],
        "x",
    ],
)
def test_requests_of_wrong_shape_are_refused(server, body):
    for address in ("gradio_api/queue/join", "gradio_api/run/generate", "gradio_api/call/generate"):
        content = json.dumps(body)
        answer = httpx.post(
            f"{server.url}{address}", content=content, headers={"content-type": "application/json"}, timeout=30
        )
        assert "Traceback" not in answer.text
    assert httpx.get(server.url).status_code == 200


def test_a_busy_server_ends_at_a_second_interrupt(finished_quickstart, tmp_path):
    with serving(finished_quickstart[0], tmp_path / "log") as busy:
        for _ in range(3):
            httpx.post(f"{busy.url}gradio_api/call/generate", json={"data": [["3"], 4, 0, 1000]})
        time.sleep(1)
        busy.interrupt_once()
        time.sleep(0.3)
        busy.interrupt_once()
        wait_until(lambda: busy.process.poll() is not None, 15)
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text, text
