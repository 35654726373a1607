"""The groups of controls that several tabs have: classes, seed, and the solver's settings."""

from typing import Any, NamedTuple

from alight.options import MEAN_SOLVER, ODE_SOLVERS, PUBLISHED_WARP, SDE_SOLVERS
from alight.web.sampling import MAX_GUIDANCE, MAX_STEPS
from alight.web.served import ServedPipeline
from alight.web.uploads import SUFFIXES

CLASSES_AT_FIRST = 10  # where there are no more, all are chosen
SUGGESTED = 4  # otherwise the first of them
MAX_SHIFT = 5.0
SOLVER_NOTE = "euler, ab2 and ucgm evaluate once a step, heun twice, rk4 four times; sde_ solvers add noise"


class SolverControls(NamedTuple):
    """The components of a solver's settings; `settings` understands their values in this order."""

    steps: Any
    guidance: Any
    low: Any
    high: Any
    shift: Any
    solver: Any
    channels: Any
    kappa: Any
    ucgm_grid: Any
    internal: Any
    internal_low: Any
    internal_high: Any


def fragment(content: str, element: str | None = None) -> Any:
    """A component for HTML of this package, without gradio's styles."""
    import gradio as gr

    return gr.HTML(content, elem_id=element, apply_default_css=False)


def class_control(which: ServedPipeline, element: str, label: str = "Classes", one: int | None = None) -> Any:
    """Choose classes by name, or a single class with `one` preselected; typing searches names and synonyms."""
    import gradio as gr

    count = which.num_classes
    return gr.Dropdown(
        [(which.class_choice(index), index) for index in range(count)],
        value=list(range(count if count <= CLASSES_AT_FIRST else SUGGESTED)) if one is None else one,
        multiselect=one is None,
        label=label,
        info=f"{count:,} to choose from; type to search" if count > 1 else None,
        scale=3,
        min_width=280,
        elem_id=element,
    )


def image_files(element: str, label: str = "Images") -> Any:
    """A drop area for image files."""
    import gradio as gr

    name = f"{element}-files"
    return gr.File(label=label, file_count="multiple", file_types=SUFFIXES, height=160, elem_id=name)


def start_and_stop(element: str, label: str) -> tuple[Any, Any]:
    """A row with a button that starts work and one that stops it."""
    import gradio as gr

    with gr.Row():
        start = gr.Button(label, variant="primary", elem_id=f"{element}-start", min_width=120)
        return start, gr.Button("Stop", elem_id=f"{element}-stop", min_width=80)


def seed_control(element: str) -> Any:
    """The seed that everything random follows from."""
    import gradio as gr

    return gr.Number(0, label="Seed", precision=0, elem_id=element)


def solver_controls(which: ServedPipeline, element: str) -> SolverControls:
    """Steps and guidance, and the rest behind a fold."""
    import gradio as gr

    start = which.sampling
    low, high = start.guidance_interval or (0.0, 1.0)
    shift = which.pipeline.shift_of(start.timestep_shift)
    taken, scale = min(start.num_inference_steps, MAX_STEPS), min(start.guidance_scale, MAX_GUIDANCE)
    steps = gr.Slider(1, MAX_STEPS, taken, step=1, label="Steps", elem_id=f"{element}-steps")
    guidance = gr.Slider(
        0, MAX_GUIDANCE, scale, step=0.1, label="Guidance scale", info="1 = off", elem_id=f"{element}-guidance"
    )
    with gr.Accordion("More settings", open=False):
        low_slider = gr.Slider(0, 1, low, step=0.01, label="Guide from t", info="t = 0 is noise")
        high_slider = gr.Slider(0, 1, high, step=0.01, label="Guide until t", info="t = 1 is data")
        shift_slider = gr.Slider(
            0.05, MAX_SHIFT, shift, step=0.001, label="Timestep shift", info="1 = even steps; less = more near noise"
        )
        few = [MEAN_SOLVER] if which.pipeline.transformer.has_interval_embedding else []
        solver = gr.Dropdown([*ODE_SOLVERS, *SDE_SOLVERS, *few], value=start.solver, label="Solver", info=SOLVER_NOTE)
        kappa = gr.Slider(
            0, 1, start.kappa, label="Extrapolation (kappa)", info="of ucgm alone: 0.33 is second order, 0.5 published"
        )
        ucgm_grid = gr.Checkbox(
            start.time_warp is not None, label="Time grid of UCGM", info="in place of the timestep shift"
        )
        channels = gr.Number(
            start.guidance_channels or 0, label="Guided channels", precision=0, info="0 = all of the latent's"
        )
        internal = internal_controls(which)
    return SolverControls(
        *(steps, guidance, low_slider, high_slider, shift_slider, solver, channels, kappa, ucgm_grid, *internal)
    )


def internal_controls(which: ServedPipeline) -> tuple[Any, Any, Any]:
    """Scale and interval of Internal Guidance; hidden where the transformer has no auxiliary output."""
    import gradio as gr

    start, shown = which.sampling, which.pipeline.transformer.has_auxiliary_output
    low, high = start.internal_interval or (0.0, 1.0)
    scale = min(start.internal_scale, MAX_GUIDANCE) if shown else 1.0
    return (
        gr.Slider(0, MAX_GUIDANCE, scale, step=0.1, label="Internal guidance", info="1 = off", visible=shown),
        gr.Slider(0, 1, low, step=0.01, label="Guide internally from t", info="t = 0 is noise", visible=shown),
        gr.Slider(0, 1, high, step=0.01, label="Guide internally until t", info="t = 1 is data", visible=shown),
    )


def settings(values: tuple[Any, ...], last_time: float = 1.0) -> dict[str, Any]:
    """The values of a `SolverControls` as the fields of a `SolverConfig`, which validates them.

    Args:
        values: of all controls.
        last_time: of the initial settings, since it has no control; kept where it goes with the others.
    """
    now = SolverControls(*values)
    chosen: dict[str, Any] = {
        "num_inference_steps": now.steps,
        "guidance_scale": now.guidance,
        "guidance_interval": interval_of(now.low, now.high),
        "timestep_shift": None if now.ucgm_grid else now.shift,
        "time_warp": PUBLISHED_WARP if now.ucgm_grid else None,
        "solver": now.solver,
        "guidance_channels": now.channels or None,
        "internal_scale": now.internal,
        "internal_interval": interval_of(now.internal_low, now.internal_high),
    }
    if now.solver == "ucgm":
        chosen["kappa"] = now.kappa
    if now.solver in ODE_SOLVERS and not now.ucgm_grid:
        chosen["last_time"] = last_time
    return chosen


def interval_of(low: float, high: float) -> tuple[float, float] | None:
    """The interval between two sliders; None where it is all times."""
    return None if (low, high) == (0, 1) else (low, high)
