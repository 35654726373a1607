"""The browser app and Internal Guidance: its sliders, and the way between two classes."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from alight import LightningDiTPipeline
from alight.config import SolverConfig
from alight.runtime.errors import InputError
from alight.web.controls import SolverControls, internal_controls, settings
from alight.web.interpolation import between_classes
from alight.web.sampling import MAX_GUIDANCE, solver_settings
from helpers.models import TRANSFORMER, normalised, tiny_tokenizer, tiny_transformer

PLAIN = {"steps": 5, "guidance": 1.0, "low": 0, "high": 1, "shift": 1.0, "solver": "euler", "channels": 0}
OFF = {"internal": 1.0, "internal_low": 0, "internal_high": 1, "kappa": 0.5, "ucgm_grid": False}


def pipeline(**options):
    transformer = tiny_transformer(**TRANSFORMER | {"sample_size": 2, "num_layers": 3} | options)
    return LightningDiTPipeline(normalised(tiny_tokenizer()), transformer, FlowMatchEulerDiscreteScheduler(shift=1.0))


def chosen(**values):
    return solver_settings(settings(tuple(SolverControls(**PLAIN | OFF | values))))


def test_the_values_of_the_sliders_are_the_settings():
    off = chosen()
    assert (off.internal_scale, off.internal_interval) == (1.0, None)
    on = chosen(internal=1.4, internal_low=0.1, internal_high=0.9)
    assert (on.internal_scale, on.internal_interval) == (1.4, (0.1, 0.9))
    with pytest.raises(InputError, match="too large"):
        chosen(internal=MAX_GUIDANCE + 1)


def test_a_last_time_that_has_no_control_is_kept_where_it_has_a_meaning():
    plain = tuple(SolverControls(**PLAIN | OFF))
    assert settings(plain, 0.9)["last_time"] == 0.9
    for change in ({"solver": "sde_euler"}, {"ucgm_grid": True}):
        values = tuple(SolverControls(**PLAIN | OFF | change))
        assert solver_settings(settings(values, 0.9)).last_time == 1


@pytest.mark.parametrize(("options", "shown"), [({}, False), ({"auxiliary_block": 1}, True)])
def test_the_sliders_are_there_where_the_transformer_has_the_output(options, shown):
    gr = pytest.importorskip("gradio")
    sampling = SolverConfig(internal_scale=1.7, internal_interval=(0.2, 1.0))
    with gr.Blocks():
        scale, low, high = internal_controls(SimpleNamespace(pipeline=pipeline(**options), sampling=sampling))
    assert [slider.visible for slider in (scale, low, high)] == [shown] * 3
    assert (scale.value, low.value, high.value) == (1.7 if shown else 1.0, 0.2, 1.0)


def test_the_ends_of_the_way_between_two_classes_are_samples_of_them():
    maker = pipeline(auxiliary_block=1)
    sampling = SolverConfig(
        num_inference_steps=3, guidance_scale=1.5, internal_scale=1.4, internal_interval=(0.0, 0.6)
    )
    sampling = sampling.model_copy(update={"last_time": 0.8, "timestep_shift": "auto"})
    way = between_classes(maker, 2, 5, 3, 7, sampling)
    images = maker([2, 5], seeds=[7, 7], output_type="latent", **sampling.model_dump()).images
    torch.testing.assert_close(way[[0, 2]], images, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="auxiliary output"):
        between_classes(pipeline(), 2, 5, 3, 7, sampling)
