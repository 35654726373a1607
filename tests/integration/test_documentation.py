"""What README and documentation tell the reader to type works, and what they point at is there."""

import importlib.util
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from alight.cli import parse
from alight.config.commands import COMMANDS
from helpers.pages import NOT_RUN, PAGES, REPOSITORY, blocks, command_of, links, run_blocks
from helpers.pictures import write_photographs

IDS = [str(page.relative_to(REPOSITORY)) for page in PAGES]
RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.fixture(scope="module")
def reader():
    """A process of its own that runs the blocks: it imports torch once, and changes its folder."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda *arguments: pool.submit(run_blocks, *arguments).result(timeout=300)


@pytest.fixture
def desk(finished_quickstart, tmp_path, monkeypatch):
    """The folder of someone who reads: a finished quickstart, and a few images of two classes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished_quickstart[0])
    write_photographs(tmp_path / "images", number=4, size=(80, 96))
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE, ids=[str(page.relative_to(REPOSITORY)) for page in RUNNABLE])
def test_blocks_run(page, reader, desk):
    assert reader(desk, [block for block in blocks(page) if block.runs]) == ""


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_that_do_not_run_here_are_valid(page):
    """The command exists, its recipe is for it, and its options are known and agree with each other."""
    for block in blocks(page):
        assert block.mark in {None, "tiny", *NOT_RUN}, block.where
        if block.runs or block.language != "bash":
            continue
        for words in block.lines():
            command = command_of(words)
            if command is None:
                assert words[0] != "alight", block.where
                continue
            name, arguments = command
            assert name in COMMANDS, f"{block.where}: there is no command {name}"
            try:
                parse(name, [argument for argument in arguments if argument != "--json"])
            except SystemExit as refusal:
                pytest.fail(f"{block.where}: {' '.join(words)}: {refusal}")


def test_a_block_of_every_kind_is_found():
    """The tests above look at something."""
    found = [block for page in PAGES for block in blocks(page)]
    assert len(found) > 40
    assert {block.mark for block in found} >= {None, "tiny", "gpu", "download", "install"}
    assert sum(block.runs for block in found) > 15


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_pictures_exist(page):
    missing = [target for target in links(page) if not (page.parent / target).exists()]
    assert not missing


def test_pictures_are_small_and_shown():
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    for picture in (REPOSITORY / "docs" / "pictures").iterdir():
        assert picture.resolve() in shown, f"{picture.name} is on no page"
        assert picture.stat().st_size < 150_000, picture.name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages."""
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings_handlers") is None:
        pytest.skip("mkdocs-material and mkdocstrings are not installed; they are in the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_the_pages_build_strictly(site):
    built = {str(path.relative_to(site).with_suffix(".md")) for path in site.rglob("*.html")}
    assert {str(page.relative_to(REPOSITORY / "docs")) for page in PAGES[1:]} <= built
    configuration = (site / "api" / "configuration.html").read_text()
    for name in COMMANDS:
        assert f"alight {name}</h2>" in re.sub(r"<a class=.headerlink.*?</a>", "", configuration), name


def test_pages_load_nothing_from_elsewhere(site):
    """Links may lead away; what is loaded to show a page may not."""
    loaded = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(https?:)?//|<link\b[^>]*href=\"https?://")
    for path in site.rglob("*.html"):
        assert not loaded.search(path.read_text(encoding="utf-8")), path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", path.read_text(encoding="utf-8")), path.name
