"""The page: a heading and the tabs."""

from typing import Any

from alight.web.compare_tab import compare_tab
from alight.web.controls import fragment
from alight.web.events import AppContext
from alight.web.generate_tab import generate_tab
from alight.web.jobs import Jobs
from alight.web.latents_tab import latents_tab
from alight.web.markup import page_head
from alight.web.pictures import PictureStore
from alight.web.reconstruct_tab import reconstruct_tab
from alight.web.served import Served

TABS = {
    "Generate": generate_tab,
    "Reconstruct": reconstruct_tab,
    "Latents": latents_tab,
    "Compare": compare_tab,
}


def build_page(served: Served, jobs: Jobs, pictures: PictureStore) -> Any:
    """The whole page as gradio blocks, not served yet."""
    import gradio as gr

    app = AppContext(served, jobs, pictures)
    title = f"alight: {served.main.name}"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        fragment(head(served))
        with gr.Tabs(elem_id="tabs"):
            for name, build in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    build(app)

        def leave(request: gr.Request) -> None:
            jobs.stop(str(request.session_hash))

        page.unload(leave)
    page.queue(max_size=served.config.queue_size, default_concurrency_limit=1)
    return page


def head(served: Served) -> str:
    """The heading: names and sizes of the served models."""
    which = served.main
    transformer, tokenizer = which.pipeline.transformer, which.pipeline.tokenizer
    size = which.image_size
    channels, factor = tokenizer.config.latent_channels, tokenizer.downsampling_factor
    parameters = sum(weight.numel() for weight in transformer.parameters()) / 1e6
    facts = [
        f"{which.num_classes:,} class{'es'[: 2 * (which.num_classes > 1)]}",
        f"{size} x {size} pixels",
        f"tokenizer f{factor}d{channels}",
        f"transformer of {parameters:.1f} million parameters",
        f"on {served.device.type}",
    ]
    title = " and ".join(one.name for one in served.pipelines)
    return page_head(title, ", ".join(facts))
