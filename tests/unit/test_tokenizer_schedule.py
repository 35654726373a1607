"""The parts of a staged schedule, and the optional demands on the latent."""

import logging

import pytest
import torch
from pydantic import ValidationError

from alight.config import LatentRegularisationConfig, TrainTokenizerConfig
from alight.config.recipes import load_config
from alight.training.discriminator_watch import DiscriminatorWatch
from alight.training.latent_regularisation import draw_regularisation
from alight.training.tokenizer_schedule import phase_at, tokenizer_schedule


def staged(*stages, **options):
    return TrainTokenizerConfig.model_validate({"stages": stages, "training": {"global_batch_size": 10}} | options)


def test_the_released_weights_have_three_parts():
    config = load_config("imagenet/tokenizer_f16d32_released")
    schedule = tokenizer_schedule(config, num_images=1_281_167)
    epoch = 1_281_167 / 256
    assert [stage.start for stage in schedule] == [0, round(100 * epoch), round(100 * epoch) + round(15 * epoch)]
    assert [stage.alignment.weight for stage in schedule] == [0.5, 0.1, 0.1]
    margins = [(stage.alignment.cosine_margin, stage.alignment.distance_margin) for stage in schedule]
    assert margins == [(0, 0), (0, 0), (0.5, 0.25)]
    assert [stage.restart for stage in schedule] == [False, True, True]
    assert [stage.alignment.foundation_input for stage in schedule] == ["published"] * 3  # taken over


def test_parts_lie_back_to_back_and_each_has_its_own_schedule():
    config = staged(
        {"steps": 4, "lr": 1e-3, "adversarial_start_step": 2},
        {"epochs": 0.3, "alignment_weight": 0},
        optimizer={"lr": 1e-2, "schedule": "linear"},
    )
    first, second = tokenizer_schedule(config, num_images=100)
    assert (first.start, first.stop, second.start, second.stop) == (0, 4, 4, 7)
    assert [phase_at([first, second], step) for step in (0, 3, 4, 6)] == [first, first, second, second]
    assert [first.adversarial_factor(step) for step in range(4)] == [None, None, 1.0, 1.0]
    assert second.adversarial_factor(6) is None  # starts at step 2,500 of the part, as the section says
    assert first.learning_rate(0) == pytest.approx(1e-3)
    assert second.learning_rate(4) == pytest.approx(1e-2)
    assert second.learning_rate(6) == pytest.approx(1e-2 / 3)
    assert first.alignment.enabled
    assert not second.alignment.enabled


def test_a_schedule_without_parts_is_one_part():
    config = TrainTokenizerConfig.model_validate({"training": {"steps": 7}})
    (whole,) = tokenizer_schedule(config, num_images=3)
    assert (whole.start, whole.stop, whole.alignment, whole.restart) == (0, 7, config.alignment, False)


UNALIGNED = {"train": "decoder", "init_from": "x", "alignment": {"weight": 0}}


@pytest.mark.parametrize(
    ("stages", "options", "complaint"),
    [
        ([{}], {}, "either steps or epochs"),
        ([{"steps": 1, "epochs": 1}], {}, "either steps or epochs"),
        ([{"steps": 2}, {"steps": 3}], {"training": {"steps": 4}}, "stages are 5 steps long"),
        ([{"epochs": 2}], {"training": {"steps": 4}}, "stages are a number of epochs long"),
        ([{"steps": 2, "alignment_weight": 1}], {"alignment": {"foundation": None}}, "names no model"),
        ([{"steps": 2, "adversarial_start_step": 1}], {"reconstruction": {"adversarial_weight": 0}}, "discriminator"),
        ([], {"train": "decoder"}, "name it in init_from"),
        ([], {"train": "decoder", "init_from": "x"}, "nothing can align"),
        ([{"steps": 1, "alignment_weight": 1}], {"train": "decoder", "init_from": "x"}, "nothing can align"),
        ([], UNALIGNED | {"regularisation": {"equivariance_probability": 1}}, "make them equivariant"),
    ],
)
def test_contradictions_are_refused(stages, options, complaint):
    options = {"reconstruction": {"perceptual_weight": 0}} | options
    if "perceptual_weight" not in options["reconstruction"]:
        options["reconstruction"]["perceptual_weight"] = 0
    with pytest.raises(ValidationError, match=complaint):
        staged(*stages, **options)


def test_equivariance_scales_and_turns_latents_and_images_alike():
    config = LatentRegularisationConfig(equivariance_probability=1.0, equivariance_min_scale=0.5)
    seen = set()
    for seed in range(200):
        changed = draw_regularisation(config, (2, 3, 8, 4), 8, torch.Generator().manual_seed(seed))
        height, width = changed.grid
        assert 4 <= height <= 8
        assert width == 4  # 32 pixels, the smallest that may be
        seen.add((height, changed.turns))
        # an image that is its own latent, enlarged: what happens to both must agree
        latents = torch.arange(2 * 3 * 8 * 4.0).view(2, 3, 8, 4)
        images = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
        targets, decoded = changed(images, latents)
        side = (width, height) if changed.turns % 2 else (height, width)
        assert decoded.shape == (2, 3, *side)
        assert targets.shape == (2, 3, 8 * side[0], 8 * side[1])
        coarse = torch.nn.functional.avg_pool2d(targets, 8)
        inner = (coarse - decoded)[:, :, 1:-1, 1:-1] / latents.max()
        assert inner.abs().max() < 0.02  # the two interpolations differ a little within a cell
    assert len(seen) == 5 * 4


def test_noise_is_of_each_image_and_within_its_strength():
    config = LatentRegularisationConfig(noise=0.5)
    changed = draw_regularisation(config, (400, 2, 8, 8), 8, torch.Generator().manual_seed(0))
    latents = torch.zeros(400, 2, 8, 8)
    images, decoded = changed(torch.zeros(400, 3, 64, 64), latents)
    strengths = decoded.flatten(1).std(1)  # u ~ U(0, 0.5), measured on 128 numbers
    assert strengths.max() < 0.5 * 1.3
    assert strengths.mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(images, torch.zeros(400, 3, 64, 64))
    part = changed.part(slice(3, 7))
    assert torch.equal(part(images[3:7], latents[3:7])[1], decoded[3:7])


def test_noise_of_a_normal_law_is_that_of_its_second_and_fourth_moments():
    """E s^2 = noise^2 and E s^4 = 3 noise^4, where a uniform law has a third and a fifth."""
    config = LatentRegularisationConfig(noise=0.25, noise_law="normal")
    noise = draw_regularisation(config, (2000, 4, 16, 16), 8, torch.Generator().manual_seed(0)).noise
    squares = noise.flatten(1).square().mean(1)  # of 1,024 numbers each: s^2 to 4 %
    assert squares.mean().item() == pytest.approx(0.25**2, rel=0.1)
    assert squares.square().mean().item() == pytest.approx(3 * 0.25**4, rel=0.25)


def test_nothing_is_drawn_where_both_are_off():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert draw_regularisation(LatentRegularisationConfig(), (2, 4, 8, 8), 8, generator) is None
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(("accuracy", "outcome"), [(0.999, "wins"), (0.5, "loses"), (0.8, None)])
def test_a_one_sided_game_is_reported_once(caplog, accuracy, outcome, monkeypatch):
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    watch = DiscriminatorWatch()
    for step in range(0, 3_000, 100):
        watch(step, {"discriminator_accuracy": accuracy})
    watch(3_000, {"loss": 1.0})
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == (outcome is not None)
    if outcome:
        assert f"discriminator {outcome} since step 0" in warnings[0]


def test_a_fair_spell_ends_the_count(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    watch = DiscriminatorWatch()
    for step in range(0, 4_000, 100):
        watch(step, {"discriminator_accuracy": 0.8 if step % 900 == 0 else 1.0})
    assert not caplog.records
