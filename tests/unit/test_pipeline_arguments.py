"""Arguments of a pipeline call as people write them: a working call, or one sentence."""

import numpy as np
import pytest
import torch
from test_pipeline import pipeline

from alight.runtime.errors import InputError

FAST = {"num_inference_steps": 2, "output_type": "latent"}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    "labels", [3, "3", [3], (3,), ["3"], np.int64(3), np.array([3]), torch.tensor([3]), torch.tensor(3), range(3, 4)]
)
def test_labels_in_every_form(labels):
    expected = pipeline()([3], seeds=[0], **FAST).images
    assert torch.equal(pipeline()(labels, seeds=[0], **FAST).images, expected)


def test_a_single_name_is_one_class():
    named = pipeline(class_names=["animals", *"bcdefghij"])
    assert named.resolve_labels("animals").tolist() == [0]
    with pytest.raises(InputError, match="no class 'animal'"):
        named("animal", **FAST)


@pytest.mark.parametrize("seeds", [0, [0], (0,), np.int64(0), np.array([0]), torch.tensor([0]), range(1)])
def test_seeds_in_every_form(seeds):
    expected = pipeline()([3], seeds=[0], **FAST).images
    assert torch.equal(pipeline()([3], seeds=seeds, **FAST).images, expected)


@pytest.mark.parametrize("solver", ["euler", "sde_euler"])
def test_a_generator_per_image_as_in_diffusers(solver):
    settings = FAST | {"solver": solver}
    both = pipeline()([3, 4], generator=generators(7, 8), **settings).images
    alone = [pipeline()([label], generator=generators(seed), **settings).images for label, seed in ((3, 7), (4, 8))]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=0)
    single = pipeline()([3], generator=generators(7)[0], **settings).images
    assert single.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": [2.5]}, "holds 2.5"),
        ({"class_labels": 2.5}, "class_labels is 2.5"),
        ({"class_labels": [True]}, "holds True"),
        ({"class_labels": None}, "class_labels is None"),
        ({"class_labels": torch.zeros(2, 2, dtype=torch.int64)}, "has the shape"),
        ({"class_labels": [0, 1], "seeds": 0}, "2 class labels need as many seeds; 1 were given"),
        ({"seeds": [0.5]}, "seeds holds 0.5"),
        ({"seeds": 0.5}, "seeds is 0.5"),
        ({"seeds": "0"}, "seeds holds '0'"),
        ({"seeds": [None]}, "seeds holds None"),
        ({"generator": 0}, "generator holds 0"),
        ({"generator": [0]}, "generator holds 0"),
        ({"generator": generators(0, 1)}, "as many generators"),
        ({"generator": []}, "as many generators"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": "50"}, "num_inference_steps is '50'"),
        ({"num_inference_steps": None}, "num_inference_steps is None"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'"),
        ({"timestep_shift": float("nan")}, "timestep_shift is nan"),
        ({"guidance_scale": 2.0, "guidance_interval": 0.5}, "guidance interval is 0.5"),
        ({"guidance_scale": 2.0, "guidance_interval": (0.1, 0.2, 0.3)}, "guidance interval"),
        ({"latents": [1, 2]}, "latents of shape"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        pipeline()(**{"class_labels": [0], **FAST} | settings)


@pytest.mark.parametrize("output_type", ["pil", "uint8", "pt"])
def test_a_result_that_is_not_finite_names_the_guidance_scale(output_type):
    with pytest.raises(InputError, match=r"not finite with these settings: guidance_scale 1e\+38"):
        pipeline()([0], seeds=0, num_inference_steps=3, guidance_scale=1e38, output_type=output_type)
