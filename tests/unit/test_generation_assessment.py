"""The verdict on generated images: the stage that loses most is named, with the numbers that show it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alight.artifacts import Artifact
from alight.evaluation.bottleneck import Bottleneck, Distances
from alight.evaluation.generation_assessment import assess_generation, training_trend
from alight.evaluation.label_figures import LabelScores
from alight.metrics.label_accuracy import DigitClassifier, LabelAccuracy
from alight.reporting.report import Answer

TOKENIZER = Answer("Good enough?", "Nearly: as the smaller one.", ["PSNR 26."], ["Train it longer.", "Room."])
IMAGES = SimpleNamespace(labels=np.arange(100) % 10, settings={"sampling": {"guidance_scale": 1.0}})


def scores(generated: float) -> LabelScores:
    accuracy = LabelAccuracy(generated, 100, {}, "a classifier")
    return LabelScores(accuracy, accuracy, DigitClassifier())


def found(reconstructed: float, generated: float, decoded_accuracy: float = 0.94) -> Bottleneck:
    return Bottleneck([Distances("grey pixels 8x8", 100, 0.05, reconstructed, generated)], 0.95, decoded_accuracy)


def verdict(bottleneck: Bottleneck, accuracy: float, level: int = 1) -> Answer:
    answer = assess_generation(IMAGES, scores(accuracy), bottleneck, TOKENIZER, level, {})
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("bottleneck", "accuracy", "level", "words"),
    [
        (found(0.07, 0.08), 0.93, 1, "Yes: they are about as close"),
        (found(0.07, 0.9), 0.93, 1, "Not yet: undertrained"),
        (found(0.07, 0.2), 0.93, 1, "Nearly: undertrained"),
        (found(0.07, 0.08), 0.3, 1, "Not yet: undertrained"),  # right colours, wrong classes
        (found(0.8, 0.9, 0.1), 0.1, 0, "Not yet: held back by the tokenizer"),
        (found(0.07, 0.08), 0.93, 0, "Nearly: held back by the tokenizer"),
        (found(0.1, 0.9), 0.2, 0, "Not yet: the transformer is undertrained, and held back by the tokenizer"),
    ],
)
def test_the_weakest_measure_decides_and_its_cause_is_named(bottleneck, accuracy, level, words):
    assert verdict(bottleneck, accuracy, level).answer.startswith(words)


def test_the_reasons_hold_the_numbers_and_the_verdict_on_the_tokenizer():
    reasons = verdict(found(0.07, 0.9), 0.3).reasons
    assert "real ones 0.050, their reconstructions 0.070, generated ones 0.900" in reasons[0]
    assert "generated ones 0.300; chance is 0.100" in reasons[1]
    assert reasons[-1] == "The tokenizer alone: Nearly: as the smaller one. PSNR 26."


def test_the_advice_is_about_the_stage_that_is_named():
    transformer = Artifact(Path("runs/my transformer"), "transformer", {}, "f00", facts={"steps": 400})
    answer = assess_generation(IMAGES, scores(0.3), found(0.07, 0.9), TOKENIZER, 1, {"transformer": transformer})
    assert answer is not None
    command = (
        "'alight transformer train --config 'runs/my transformer' --output 'runs/my transformer' --training.steps 800'"
    )
    assert command in answer.advice[0]
    assert any("guidance" in advice for advice in answer.advice)
    assert verdict(found(0.8, 0.9, 0.1), 0.1).advice[1:] == ["Train it longer.", "Room."]
    assert not verdict(found(0.07, 0.08), 0.93).advice


def test_a_classifier_that_does_not_know_real_images_is_no_evidence():
    weak = Bottleneck([Distances("grey pixels 8x8", 100, 0.05, 0.06, 0.07)], 0.2, 0.2)
    assert verdict(weak, 0.1).answer.startswith("Yes")


def test_nothing_is_said_without_measurements():
    assert assess_generation(IMAGES, scores(0.9), None, TOKENIZER, 1, {}) is None


@pytest.mark.parametrize(("slope", "words"), [(-0.02, "was still falling"), (0.0, "hardly fell")])
def test_the_trend_of_the_training_loss_is_read_off_the_log(tmp_path, slope, words):
    (tmp_path / "training").mkdir()
    lines = [json.dumps({"step": 10 * step, "loss": 1.0 + slope * step}) for step in range(1, 17)]
    (tmp_path / "training" / "log.jsonl").write_text("\n".join(lines) + "\n")
    (sentence,) = training_trend(Artifact(tmp_path, "transformer", {}, "f00"))
    assert words in sentence
    assert "160 steps" in sentence
    (tmp_path / "training" / "log.jsonl").write_text("\n".join(lines[:4]))
    assert training_trend(Artifact(tmp_path, "transformer", {}, "f00")) == []
