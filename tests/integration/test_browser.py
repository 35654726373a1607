"""The browser app in a real browser, as people use it: by mouse and keyboard, on a desk and on a telephone."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from helpers.browsing import needs_browser, open_browser
from helpers.serving import serving, wait_until

pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")
pytestmark = needs_browser


@pytest.fixture(scope="module")
def server(finished_quickstart, tmp_path_factory):
    """A server of two pipelines and two tokenizers; the second of each is a copy under another name."""
    folder, _ = finished_quickstart
    place = tmp_path_factory.mktemp("browser")
    shutil.copytree(folder / "pipeline", place / "second")
    shutil.copytree(folder / "tokenizer", place / "other-tokenizer", ignore=shutil.ignore_patterns("training"))
    options = ("--compare", place / "second", "--compare-tokenizer", place / "other-tokenizer")
    with serving(folder, place / "log", *options) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture
def page(browser, server):
    """The page, which must not complain and must not ask for anything beyond this machine."""
    page, complaints, requests = browser.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#generate-start")
    yield page
    page.close()
    assert not complaints
    assert not [url for url in requests if not url.startswith((server.url, "data:", "blob:"))]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "mine.png"
    Image.linear_gradient("L").save(path)
    return path


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def done(page, tab):
    page.wait_for_selector(f"#{tab}-status :text-matches('^Done')")


def choose(page, element, path):
    page.set_input_files(f"#{element} input[type=file]", path)
    page.wait_for_selector(f"#{element} :text('{Path(path).stem}')")


def set_steps(page, tab, steps):
    page.fill(f"#{tab}-steps input[type=number]", str(steps))
    page.press(f"#{tab}-steps input[type=number]", "Tab")


def test_generate_and_keep_an_image(page):
    page.click("#generate-start")
    done(page, "generate")
    assert page.locator("#generate-images figure").count() == 20
    with page.expect_download() as download:
        page.locator("#generate-images figure a").nth(3).click()
    assert download.value.suggested_filename == "1-003.png"
    image = Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert (image.size, image.info["label"]) == ((32, 32), "1")
    assert json.loads(image.info["sampling"])["solver"] == "euler"
    with page.expect_download() as download:
        page.get_by_text("Download all in one picture").first.click()
    image = Image.open(download.value.path())
    assert json.loads(image.info["labels"]) == [label for label in range(10) for _ in range(2)]


def test_nothing_scrolls_sideways(page):
    scrolls = """each => each.scrollWidth > each.clientWidth && each.clientWidth > 0
        && ["auto", "scroll"].includes(getComputedStyle(each).overflowX)"""
    for _ in ("closed", "open", "closed again"):
        sideways = page.evaluate(f"[...document.querySelectorAll('*')].filter({scrolls}).map(each => each.outerHTML)")
        assert sideways == []
        page.get_by_role("button", name="More settings").first.click()
        page.wait_for_timeout(300)  # milliseconds, until the fold has moved


def test_watch_and_stop(page):
    page.fill("#generate-count input", "6")
    set_steps(page, "generate", 250)
    page.click("#generate-start")
    page.wait_for_selector("#generate-images img[src^='data:image/webp']")
    page.wait_for_selector("#generate-status progress")
    page.click("#generate-stop")
    page.wait_for_selector("#generate-status:has-text('Stopped')")
    assert page.locator("#generate-images a").count() == 0
    set_steps(page, "generate", 2)  # and the next request is served
    page.fill("#generate-count input", "1")
    stopped = page.locator("#generate-status:has-text('Stopped')")
    while stopped.count():  # Gradio ignores the button until its cancellation has been answered
        page.click("#generate-start")
        page.wait_for_timeout(200)
    done(page, "generate")
    assert page.locator("#generate-images figure").count() == 10


def test_keyboard_alone_generates(page):
    page.focus("#generate-count input")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate-start":
            break
    page.keyboard.press("Enter")
    done(page, "generate")


def test_another_seed_gives_other_images(page):
    set_steps(page, "generate", 2)
    page.click("#generate-another")
    done(page, "generate")
    assert page.input_value("#generate-seed input") != "0"


def test_a_mistake_is_explained(page):
    page.fill("#generate-count input", "1000")
    page.click("#generate-start")
    page.wait_for_selector("#generate-status:has-text('at most 64 at once')")
    assert "Traceback" not in page.content()


def test_reconstruct_an_image_by_two_tokenizers(page, picture):
    open_tab(page, "Reconstruct")
    choose(page, "reconstruct-files", picture)
    page.click("#reconstruct-start")
    done(page, "reconstruct")
    assert page.locator("#reconstruct-images img").count() == 5
    scores = re.findall(r"([\d.]+) dB, SSIM", page.inner_text("#reconstruct-images"))
    assert len(scores) == 4
    assert scores[0] == scores[1]  # the second tokenizer is a copy


def test_a_broken_image_is_explained(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of the kind")
    open_tab(page, "Reconstruct")
    choose(page, "reconstruct-files", tmp_path / "broken.png")
    page.click("#reconstruct-start")
    page.wait_for_selector("#reconstruct-status:has-text('is damaged')")


def test_latents_and_what_lies_between(page, picture):
    open_tab(page, "Latents")
    choose(page, "latents-files", picture)
    page.click("#latents-start")
    done(page, "latents")
    assert page.locator("#latents-images .strip img").count() == 3
    assert page.locator("#latents-images .tiles img").count() == 8
    page.click("#between-start")
    done(page, "between")
    assert page.locator("#between-images img").count() == 8


def test_compare_two_pipelines(page):
    open_tab(page, "Compare")
    page.click("#compare-start")
    done(page, "compare")
    sides = [page.locator(f"#compare-{letter}-images") for letter in "ab"]
    assert [side.locator("img").count() for side in sides] == [10, 10]
    assert "second" in sides[1].inner_text()
    pixels = [page.request.get(page.url + side.locator("img").first.get_attribute("src")).body() for side in sides]
    first, second = (Image.open(io.BytesIO(content)).tobytes() for content in pixels)
    assert first == second  # the second pipeline is a copy


def test_scripts_that_get_into_the_page_do_not_run(browser, server):
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#generate-start")
    page.evaluate(
        """async () => {
            for (const html of ["<img src=x: onerror='window.ran = 1'>", "<svg onload='window.ran = 1'></svg>"])
                document.body.insertAdjacentHTML("beforeend", html);
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            await new Promise((resolve) => setTimeout(resolve, 500));
        }"""
    )
    assert page.evaluate("window.ran") is None
    page.close()


def test_the_page_works_below_a_root_path(browser, finished_quickstart, tmp_path):
    with serving(finished_quickstart[0], tmp_path / "log", "--root-path", "/app") as server:
        page, complaints, requests = browser.new_page(), [], []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server.url + "app")
        page.wait_for_selector("#generate-start")
        page.fill("#generate-count input", "1")
        set_steps(page, "generate", 2)
        page.click("#generate-start")
        done(page, "generate")
        image = page.locator("#generate-images img").first
        wait_until(lambda: image.evaluate("image => image.naturalWidth") == 32)
        page.close()
    assert not complaints
    outside = [url for url in requests if not url.startswith((server.url + "app", "data:", "blob:"))]
    assert not outside


def test_everything_is_in_reach_on_a_telephone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_selector("#generate-start")
    for name in ("Generate", "Reconstruct", "Latents", "Compare"):
        open_tab(page, name)
        page.wait_for_selector(f"#{name.lower()}-start")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.set_viewport_size({"width": 1280, "height": 900})
