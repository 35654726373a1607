"""The pipeline: guidance costs what arithmetic says, every solver runs, and wrong settings are refused in words."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from alight import LightningDiT, LightningDiTPipeline
from alight.flow import SOLVERS, time_grid
from alight.flow.adaptive import ADAPTIVE_METHODS
from alight.options import ODE_SOLVERS, SDE_SOLVERS, require_solver
from alight.runtime.errors import InputError
from helpers.models import TRANSFORMER, normalised, tiny_tokenizer, tiny_transformer

SIZES = TRANSFORMER | {"sample_size": 2}


def transformer(seed=0, **options):
    return tiny_transformer(seed, **SIZES | options)


def pipeline(model=None, shift=1.0, **options):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return LightningDiTPipeline(normalised(tiny_tokenizer(1)), model or transformer(), scheduler, **options)


def test_config_and_flow_know_the_same_solvers():
    assert set(ODE_SOLVERS) == set(SOLVERS)
    with pytest.raises(InputError, match="Did you mean 'midpoint'"):
        require_solver("midpont")


def test_the_published_sampler_costs_417_evaluations():
    """249 Euler steps with shift 0.3: one evaluation each, and a second one where t >= 0.125, which is 168 times."""
    times = time_grid(249, 0.3)[:-1]
    assert 249 + int((times >= 0.125).sum()) == 417
    settings = {"num_inference_steps": 249, "timestep_shift": 0.3, "guidance_scale": 6.7, "guidance_channels": 3}
    result = pipeline()([1], seeds=[0], guidance_interval=(0.125, 1.0), output_type="latent", **settings)
    assert result.nfe == 417


@pytest.mark.parametrize("solver", [*ODE_SOLVERS, *SDE_SOLVERS])
def test_every_solver_makes_finite_latents_that_follow_the_seeds(solver):
    def sample(labels, seeds):
        settings = {"solver": solver, "num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
        return pipeline()(labels, seeds=seeds, **settings)

    both, second = sample([3, 4], [7, 8]), sample([4], [8])
    assert both.images.isfinite().all()
    assert both.nfe >= 8  # two per step at least
    # Fixed steps: rounding of matrix products alone. Adaptive: the batch's images share its step sizes, and with the
    # allowed error of 1e-3 per step two choices of steps end within 2e-2 (measured: 1.5e-2) of each other.
    tolerance = 2e-2 if solver in ADAPTIVE_METHODS else 1e-5
    torch.testing.assert_close(both.images[1:], second.images, atol=tolerance, rtol=0)
    assert not torch.equal(sample([4], [9]).images, second.images)


def test_stochastic_solvers_take_their_settings():
    def sample(**settings):
        settings = {"solver": "sde_euler", "num_inference_steps": 4, "output_type": "latent"} | settings
        return pipeline()([1], seeds=[0], **settings).images

    plain = sample()
    assert torch.equal(plain, sample())
    for settings in (
        {"diffusion_form": "linear", "last_step": "tweedie"},
        {"last_step": "euler"},
        {"solver": "sde_heun"},
        {"timestep_shift": 0.4},
        {"last_step_size": 0.1},
    ):
        assert not torch.equal(plain, sample(**settings))
    # sigma = 1 - t on the linear path, so these are two names of one diffusion
    torch.testing.assert_close(plain, sample(diffusion_form="linear"))


def test_history_extrapolation_takes_its_settings():
    def sample(**settings):
        settings = {"solver": "ucgm", "num_inference_steps": 5, "output_type": "latent"} | settings
        return pipeline()([1], seeds=[0], **settings).images

    assert not torch.equal(sample(), sample(kappa=1 / 3))
    assert not torch.equal(sample(), sample(time_warp=(1.17, 0.8, 1.1)))
    torch.testing.assert_close(sample(kappa=0), sample(solver="euler"))
    with pytest.raises(InputError, match="linear path"):
        pipeline(path="gvp")([1], solver="ucgm")


def test_autoguidance_pushes_away_from_the_guide():
    """v = v_guide + w (v - v_guide): with one Euler step the latents are linear in w."""
    strong, weak = transformer(0), transformer(5, num_layers=2)

    def sample(model, **settings):
        return pipeline(model)([2], seeds=[0], num_inference_steps=1, output_type="latent", **settings)

    guided = sample(strong, guidance_scale=3.0, guide=weak)
    one, other = sample(strong).images, sample(weak).images
    torch.testing.assert_close(guided.images, other + 3.0 * (one - other), atol=1e-5, rtol=1e-5)
    assert guided.nfe == 2


def test_path_and_prediction_of_the_transformer_are_followed():
    """On the linear path noise and velocity are affine in each other: v = (x_t - x_0) / t."""
    model = transformer()

    class Noise(LightningDiT):
        def forward(self, x, t, class_labels):
            return x - t.view(-1, 1, 1, 1) * super().forward(x, t, class_labels)

    noise_model = Noise(**SIZES).eval()
    noise_model.load_state_dict(model.state_dict())
    settings = {"seeds": [0], "num_inference_steps": 50, "output_type": "latent"}
    velocity = pipeline(model)([1], **settings).images
    noise = pipeline(noise_model, prediction="noise")([1], **settings).images
    # a noise prediction says nothing at t = 0, so sampling starts 1e-3 later
    torch.testing.assert_close(noise, velocity, atol=1e-2, rtol=0)
    assert (
        pipeline(model, path="gvp")([1], **settings).images - velocity
    ).abs().max() == 0  # a velocity is a velocity
    stochastic = settings | {"solver": "sde_euler"}
    one, other = pipeline(model)([1], **stochastic), pipeline(model, path="gvp")([1], **stochastic)
    assert not torch.allclose(one.images, other.images, atol=1e-2)  # its score depends on the path


def test_a_guide_replaces_the_null_class():
    without_null = transformer(class_dropout_prob=0.0)
    with pytest.raises(InputError, match="no null class"):
        pipeline(without_null)([0], guidance_scale=2.0)
    assert pipeline(without_null)([0], num_inference_steps=1, guidance_scale=2.0, guide=transformer(1)).nfe == 2
    with pytest.raises(InputError, match="The guide knows 11 classes"):
        pipeline()([0], guidance_scale=2.0, guide=transformer(num_classes=11))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_labels": [10]}, "out of range"),
        ({"class_labels": ["cat"]}, "no class 'cat'"),
        ({"num_inference_steps": 0}, "at least one step"),
        ({"guidance_scale": 2.0, "guidance_interval": (0.8, 0.2)}, "guidance interval"),
        ({"timestep_shift": 0.0}, "must be positive"),
        ({"timestep_shift": -1.0}, "must be positive"),
        ({"solver": "eulr"}, "Did you mean 'euler'"),
        ({"guidance_scale": 2.0, "guidance_channels": 5}, "only 4 channels"),
        ({"solver": "sde_heun", "time_warp": (1.17, 0.8, 1.1)}, "no time warp"),
        ({"timestep_shift": 0.3, "time_warp": (1.17, 0.8, 1.1)}, "no timestep shift"),
        ({"time_warp": (1.17, 0.8, -1.1)}, "three positive numbers"),
        ({"output_type": "jpeg"}, "Unknown output_type"),
        ({"seeds": [1, 2]}, "as many seeds"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        pipeline()(**{"class_labels": [0]} | settings)


def test_the_scheduler_holds_the_default_warp():
    def sample(shift, **settings):
        settings = {"num_inference_steps": 3, "output_type": "latent"} | settings
        return pipeline(shift=shift)([1], seeds=[0], **settings).images

    assert torch.equal(sample(2.0), sample(1.0, timestep_shift=0.5))
    assert torch.equal(sample(2.0, timestep_shift=1.0), sample(1.0))


def test_names_of_imagenet_come_with_a_thousand_classes():
    assert pipeline(transformer(num_classes=1000)).resolve_labels(["tench", "Pizza", 7]).tolist() == [0, 963, 7]
    named = pipeline(class_names=[*"abcdefghij"])
    assert named.resolve_labels(["a", "J"]).tolist() == [0, 9]
