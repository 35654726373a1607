"""The server of the browser app, as programs and as ill-mannered visitors meet it."""

import io
import json
import re
import signal
import socket
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import write_noise
from helpers.serving import serving, wait_until

httpx = pytest.importorskip("httpx", reason="comes with gradio: pip install 'alight[web]'")
gradio_client = pytest.importorskip("gradio_client", reason="the browser app needs gradio: pip install 'alight[web]'")
pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def server(finished_quickstart, tmp_path_factory):
    folder, _ = finished_quickstart
    spy = tmp_path_factory.mktemp("spy")
    (spy / "sitecustomize.py").write_text(SPY)
    log = spy / "server.log"
    path = ":".join([str(spy), *filter(None, sys.path)])
    with serving(folder, log, "--max-images", 40, PYTHONPATH=path, SPY=str(spy)) as running:
        yield running


SPY = """
import os, socket
def noted(name, real):
    def call(*arguments, **options):
        with open(os.path.join(os.environ["SPY"], "asked"), "a") as file:
            print(name, arguments[:2], file=file)
        return real(*arguments, **options)
    return call
socket.getaddrinfo = noted("getaddrinfo", socket.getaddrinfo)
socket.socket.connect = noted("connect", socket.socket.connect)
"""


@pytest.fixture(scope="module")
def client(server):
    return gradio_client.Client(server.url, verbose=False)


@pytest.fixture
def refused(client):
    """Call an endpoint that must answer with a message, which is returned."""

    def call(endpoint, **values):
        with pytest.raises(Exception) as caught:  # noqa: PT011 (the client has exceptions of its own)
            client.predict(**values, api_name=endpoint)
        message = str(caught.value)
        assert "Traceback" not in message
        assert "verbose error reporting" not in message, "the visitor was told nothing"
        return message

    return call


def addresses(fragment):
    return re.findall(r'href="(pictures/[^"]+\.png)"', fragment)


def png(server, address):
    return Image.open(io.BytesIO(httpx.get(server.url + address).raise_for_status().content))


def digit(tmp_path, name="digit.png", size=(40, 30)):
    path = tmp_path / name
    write_noise(path, size=size)
    return gradio_client.handle_file(path)


def test_generated_images_carry_what_made_them(server, client):
    state, shown = client.predict(classes=[3, 7], per_class=2, seed=5, steps=4, api_name="/generate")
    assert "Done" in state
    *images, last = sorted(addresses(shown), key=lambda address: "grid" in address)
    assert [address.rpartition("/")[2] for address in images] == ["3-000.png", "3-001.png", "7-002.png", "7-003.png"]
    image = png(server, images[2])
    assert image.size == (32, 32)
    assert {"label": "7", "class": "7"}.items() <= image.info.items()
    assert {"seed", "nfe", "transformer", "tokenizer", "Software", "uint8_rule"} <= set(image.info)
    assert {"num_inference_steps": 4, "solver": "euler"}.items() <= json.loads(image.info["sampling"]).items()
    assert json.loads(png(server, last).info["labels"]) == [3, 3, 7, 7]


def test_images_are_those_of_the_sample_command(server, client, finished_quickstart):
    """The page starts with the settings of the run's own samples, so it makes the same ones."""
    stored = sorted((finished_quickstart[0] / "samples" / "images").glob("*.png"))
    _, shown = client.predict(per_class=2, seed=0, api_name="/generate")
    made = [png(server, address) for address in addresses(shown) if "grid" not in address]
    assert len(made) == len(stored) == 20
    for image, path in zip(made, stored, strict=True):
        with Image.open(path) as sample:
            assert image.info["seed"] == sample.info["seed"]
            # the batches differ in size, and with it the rounding of matrix products
            np.testing.assert_allclose(np.asarray(image, int), np.asarray(sample, int), atol=1)


@pytest.mark.parametrize("solver", ["heun", "dopri5", "sde_euler"])
def test_every_kind_of_solver_generates(client, solver):
    state, shown = client.predict(classes=[0], per_class=1, steps=3, solver=solver, api_name="/generate")
    assert solver in state
    assert len(addresses(shown)) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 10**9}, "greater than maximum value"),
        ({"per_class": 10**6}, "at most 40 at once"),
        ({"seed": -5}, "the seed as a whole number"),
        ({"seed": 2**64}, "below 2^63"),
        ({"classes": []}, "at least one class"),
        ({"classes": [99]}, "not in the list of choices"),
        ({"low": 0.9, "high": 0.2}, "guidance_interval"),
        ({"channels": 99}, "latents have only 8 channels"),
        ({"solver": "sde_euler", "steps": 1}, "needs num_inference_steps of at least 2"),
    ],
)
def test_absurd_parameters_get_a_message(refused, values, said):
    assert said in refused("/generate", **{"per_class": 1, **values})


def test_reconstruction_shows_pictures_and_scores(server, client, tmp_path):
    job = client.submit(files=[digit(tmp_path), digit(tmp_path, "other.png", (33, 64))], api_name="/reconstruct")
    job.result()
    shown = next(output[1] for output in reversed(job.outputs()) if isinstance(output[1], str))
    assert len(addresses(shown)) == 6
    assert re.search(r"PSNR [\d.]+ dB, SSIM", shown)
    assert all(png(server, address).size == (32, 32) for address in addresses(shown))


def test_latents_show_channels_and_features(server, client, tmp_path):
    _, shown = client.predict(files=[digit(tmp_path)], api_name="/latents")
    names = [address.rpartition("/")[2] for address in addresses(shown)]
    assert names == ["images-0.png", "latents-0.png", "features-0.png", *(f"channel-{i}.png" for i in range(8))]
    assert png(server, addresses(shown)[1]).size == (4, 4)


def test_interpolation_begins_and_ends_with_what_was_chosen(server, client, tmp_path):
    _, classes = client.predict(first=2, last=5, pictures=4, files=None, api_name="/between")
    assert len(addresses(classes)) == 5
    files = [digit(tmp_path), digit(tmp_path, "other.png", (33, 64))]
    _, images = client.predict(ends="Images", files=files, pictures=3, api_name="/between")
    first, *_, last = (png(server, address) for address in addresses(images) if "between.png" not in address)
    assert first.size == last.size == (32, 32)
    assert first.tobytes() != last.tobytes()


def test_two_settings_of_the_same_seeds_are_compared(server, client):
    _, left, right = client.predict(classes=[1], steps_a=2, steps_b=2, api_name="/compare")
    same = [png(server, addresses(side)[-1]) for side in (left, right)]
    assert same[0].tobytes() == same[1].tobytes()
    _, left, right = client.predict(classes=[1], steps_a=2, steps_b=3, solver_b="heun", api_name="/compare")
    other = [png(server, addresses(side)[-1]).info for side in (left, right)]
    assert other[0]["seed"] == other[1]["seed"] == same[0].info["seed"]
    sampling = [json.loads(info["sampling"]) for info in other]
    assert [(each["solver"], each["num_inference_steps"]) for each in sampling] == [("euler", 2), ("heun", 3)]


def test_bad_files_get_a_message(refused, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of the kind")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "bomb.png").write_bytes(decompression_bomb())
    broken, notes, bomb = (
        gradio_client.handle_file(tmp_path / name) for name in ("broken.png", "notes.txt", "bomb.png")
    )
    assert "broken.png is damaged" in refused("/reconstruct", files=[broken])
    assert "Invalid file type" in refused("/reconstruct", files=[notes])
    assert re.search("bomb.png (is far too large|has 40000 x 40000)", refused("/latents", files=[bomb]))
    assert "Choose an image first" in refused("/reconstruct", files=None)
    assert "Give two images" in refused("/between", ends="Images", files=[digit(tmp_path)])
    assert "too many" in refused("/latents", files=[digit(tmp_path)] * 9)


def test_the_server_fetches_and_shows_no_files_of_others(refused):
    def named(path):
        return [{"path": path, "meta": {"_type": "gradio.FileData"}}]

    assert "does not fetch files from URLs" in refused("/reconstruct", files=named("http://192.0.2.1/image.png"))
    refused("/reconstruct", files=named("/etc/passwd"))


def decompression_bomb():
    """A PNG of a few kilobytes that claims 1.6 thousand million pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (40_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def test_twenty_visitors_at_once_and_a_large_upload(server, tmp_path):
    before = server.memory

    def visit(seed):
        visitor = gradio_client.Client(server.url, verbose=False)
        try:
            return visitor.predict(classes=[seed % 10], per_class=4, seed=seed, steps=5, api_name="/generate")[0]
        except Exception as error:  # noqa: BLE001 (being turned away is an answer, too)
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(visit, range(20))
        started = time.monotonic()
        assert httpx.get(server.url, timeout=30).status_code == 200
        assert time.monotonic() - started < 20
        try:
            large = {"files": ("large.png", bytes(50 * MEGABYTE))}
            code = httpx.post(f"{server.url}gradio_api/upload", files=large, timeout=60).status_code
        except httpx.TransportError:  # the server hung up before it had everything
            code = 413
        assert code == 413
        answers = list(answers)
    assert all("Done" in answer or "queue is full" in answer.lower() for answer in answers), answers
    assert sum("Done" in answer for answer in answers) >= 15
    assert httpx.get(server.url).status_code == 200
    assert server.memory - before < 300 * MEGABYTE


def test_nothing_is_asked_for_elsewhere(server, client):
    client.predict(classes=[0], per_class=1, steps=1, api_name="/generate")
    asked = server.log.with_name("asked")
    lines = asked.read_text().splitlines() if asked.is_file() else []
    foreign = [line for line in lines if not re.search(r"127\.0\.0\.1|localhost|::1|AF_UNIX|'/", line)]
    assert not foreign
    page = httpx.get(server.url)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r'(src|href)="(https?:)?//(?!127\.0\.0\.1)', page.text)


def test_another_name_for_this_machine_is_refused(server):
    assert httpx.get(server.url, headers={"host": "elsewhere.example"}).status_code == 403


def test_credentials_guard_everything_and_a_signal_ends_it(finished_quickstart, tmp_path):
    folder, _ = finished_quickstart
    known = httpx.BasicAuth("ada", "löve:lace")
    with serving(folder / "pipeline", tmp_path / "log", "--user", "ada", "--password", "löve:lace") as server:
        for path in ("", "config", "assets/index.js", "gradio_api/info", "pictures/key/name.png", "theme.css"):
            assert httpx.get(server.url + path).status_code == 401, path
            assert httpx.get(server.url + path, auth=("ada", "wrong")).status_code == 401, path
        assert httpx.post(server.url + "gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert httpx.get(server.url, auth=known).status_code == 200
        header = next(known.auth_flow(httpx.Request("GET", server.url))).headers["authorization"]
        client = gradio_client.Client(server.url, verbose=False, headers={"authorization": header})
        job = client.submit(classes=[0, 1], per_class=30, steps=250, solver="rk4", api_name="/generate")
        wait_until(lambda: len(job.outputs()) > 1)
        assert server.interrupt(signal.SIGTERM) == 143  # in the middle of the work
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give the folder of a pipeline"),
        (["nowhere"], "There is no folder nowhere"),
        ([str(Path(__file__).parent)], "holds no pipeline"),
        (["nowhere", "--user", "ada"], "both user and password"),
        (["nowhere", "--password", "x"], "both user and password"),
        (["nowhere", "--user", "ada", "--password-file", "nowhere"], "There is no file nowhere"),
        (["nowhere", "--user", "ada", "--password", "-"], "needs a terminal"),
        (["nowhere", "--compare", "nowhere"], "the pipeline itself"),
        (["nowhere", "--port", "70000"], "port"),
    ],
)
def test_mistakes_end_in_a_paragraph(alight, options, said, tmp_path):
    result = alight("serve", *options, *(() if "--port" in options else ("--port", 0)), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_named(alight, finished_quickstart):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = alight("serve", finished_quickstart[0], "--port", port)
    assert result.returncode == 2
    assert f"port {port}" in result.stderr
    assert "--port" in result.stderr


def test_without_gradio_the_extra_is_named(alight, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['gradio'] = None")
    result = alight("serve", "anything", PYTHONPATH=":".join([str(tmp_path), *filter(None, sys.path)]))
    assert result.returncode == 2
    assert "pip install 'alight[web]'" in result.stderr
    assert "Traceback" not in result.stderr
