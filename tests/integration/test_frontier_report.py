"""The frontier of the shipped recipe, and its page in a real browser, on a desk and on a telephone."""

import json

import pytest

from helpers.browsing import needs_browser, open_browser

SHORT = (
    *("--foundation.training.steps", "4", "--observer.training.steps", "4", "--tokenizer.training.steps", "8"),
    *("--transformer.training.steps", "9", "--samples.samples-per-class", "2"),
    *("--samples.sampling.num-inference-steps", "2", "--report.density-runs", "0"),
    *("--foundation.model.num-layers", "1", "--observer.model.num-layers", "1", "--transformer.model.num-layers", "1"),
    *("--tokenizer.model.block-out-channels", "8", "8", "16", "16", "--tokenizer.model.norm-num-groups", "4"),
    *("--reconstruction.linear-map-images", "100", "--report.neighbours", "2"),
)
AS_SHIPPED = ("--jobs", "2")


@pytest.fixture(
    scope="module", params=[SHORT, pytest.param(AS_SHIPPED, marks=pytest.mark.exhaustive)], ids=["short", "as shipped"]
)
def study(request, alight, tmp_path_factory):
    """The folder of the finished study."""
    output = tmp_path_factory.mktemp("study") / "frontier"
    command = ("study", "frontier", "--config", "digits/frontier_quick", "--output", output)
    result = alight(*command, *request.param, timeout=3600)
    assert result.returncode == 0, result.stderr
    assert f"Report: {output}/report/report.html" in result.stdout
    return output


def test_the_quick_frontier_measures_both_kinds_at_both_widths(study):
    report = json.loads((study / "report" / "report.json").read_text())
    assert report["comparison"]["columns"] == ["plain d8", "aligned d8", "plain d64", "aligned d64"]
    assert "Without alignment, reconstruction" in report["summary"]
    assert "overlap" not in report["summary"]  # of intervals, of which one run has none
    assert report["configuration"]["study"]["measurements"] == 3


@needs_browser
def test_the_report_of_a_frontier_opens_in_a_browser(study, tmp_path):
    with open_browser(tmp_path / "profile") as browser:
        page, complaints, requests = browser.new_page(), [], []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((study / "report" / "report.html").as_uri())
        for heading in ("Label accuracy against Reconstruction PSNR", "Label accuracy while transformers train"):
            assert page.get_by_role("heading", name=heading, exact=True).is_visible(), heading
        for point in ("d8", "d64"):
            assert page.locator("svg text", has_text=point).first.is_visible(), point
        assert page.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 0")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not complaints
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
