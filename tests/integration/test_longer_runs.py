"""Training beyond the planned length, on changed inputs, and on a run that is finished already."""

import errno
import json
import os
import shutil

import pytest
from PIL import Image

from alight.artifacts import read_artifact
from alight.config import TrainFoundationConfig, TrainTokenizerConfig, TrainTransformerConfig
from alight.runtime.errors import InputError
from alight.runtime.run_log import read_log
from alight.stages import train_foundation, train_tokenizer, train_transformer
from alight.training.checkpoint import list_checkpoints
from helpers.pictures import write_noise
from helpers.runs import before_each_step, stopping_after
from helpers.written import same_weights, write_latents


def write_images(folder, seed=0):
    for number in range(10):
        write_noise(folder / "ab"[number % 2] / f"{number}.png", seed=100 * seed + number, size=(32, 32))
    return folder


class Kind:
    """A trainable kind: how to configure and run it on inputs in a folder."""

    def __init__(self, kind, root):
        self.kind, self.root = kind, root
        self.images = write_images(root / "images")
        self.latents = write_latents(root / "latents")

    def configure(self, output, steps, **options):
        training = {"steps": steps, "global_batch_size": 4, "log_every": 1, "checkpoint_every": 3, "ema_decay": 0.5}
        training |= options.pop("training", {})
        values = {"output": self.root / output, "device": "cpu", "training": training} | options
        images = {"source": str(self.images), "size": 32}
        if self.kind == "transformer":
            model = {"preset": None, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "patch_size": 1}
            return TrainTransformerConfig.model_validate({"latents": self.latents, "model": model} | values)
        if self.kind == "foundation":
            model = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "patch_size": 8}
            return TrainFoundationConfig.model_validate({"images": images, "model": model} | values)
        model = {
            **{"latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4},
            **{"level_attention": False, "mid_block_attention": False},
        }
        parts = {"alignment": {"foundation": None}, "reconstruction": {"perceptual_weight": 0}, "preview_images": 0}
        if "stages" in values:
            del training["steps"]
        return TrainTokenizerConfig.model_validate({"images": images, "model": model} | parts | values)

    def train(self, output, steps, **options):
        stage = {"transformer": train_transformer, "tokenizer": train_tokenizer, "foundation": train_foundation}
        return stage[self.kind].run(self.configure(output, steps, **options))


@pytest.fixture(params=["transformer", "tokenizer", "foundation"])
def kind(request, tmp_path):
    return Kind(request.param, tmp_path)


@pytest.fixture
def transformer(tmp_path):
    return Kind("transformer", tmp_path)


@pytest.fixture
def tokenizer(tmp_path):
    return Kind("tokenizer", tmp_path)


# --- longer -------------------------------------------------------------------------------------------------------


def test_a_finished_run_that_is_trained_longer_equals_one_of_that_length(kind, log_text):
    whole = kind.train("whole", 8)
    kind.train("parts", 4)
    log_text.clear()
    parts = kind.train("parts", 8)
    assert same_weights(whole.path, parts.path)
    assert parts.facts["steps"] == 8
    assert parts.config["training"]["steps"] == 8
    assert [line["step"] for line in read_log(parts.path / "training")] == list(range(1, 9))
    assert "going on from step 4 of 8" in log_text.text
    assert "4 steps were planned, now 8" in log_text.text
    assert "the result is that of 8 steps from the start" in log_text.text


def test_an_interrupted_run_that_is_trained_longer_equals_one_of_that_length(kind, monkeypatch):
    whole = kind.train("whole", 8)
    with stopping_after(monkeypatch, 4):
        kind.train("parts", 6)
    assert [step for step, _ in list_checkpoints(kind.root / "parts" / "training")] == [3]
    assert same_weights(whole.path, kind.train("parts", 8).path)


def test_the_end_of_a_decay_that_moves_is_said(transformer, log_text):
    options = {"optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2}}
    transformer.train("run", 4, **options)
    log_text.clear()
    transformer.train("run", 8, **options)
    assert "the cosine decay now ends at step 8" in log_text.text
    assert "the learning rate at step 4 is 0.00075 instead of 0" in log_text.text
    assert "is not that of 8 steps from the start" in log_text.text


def test_a_shorter_run_is_refused_finished_or_not(kind, monkeypatch):
    kind.train("finished", 4)
    with pytest.raises(InputError, match=r"a run of 4 steps, more than training\.steps 2"):
        kind.train("finished", 2)
    with stopping_after(monkeypatch, 4):
        kind.train("stopped", 6)
    with pytest.raises(InputError, match=r"a run of 6 steps, more than training\.steps 5"):
        kind.train("stopped", 5)


def test_what_else_differs_is_still_another_configuration(kind):
    kind.train("run", 4)
    with pytest.raises(InputError, match="another configuration .*seed: 0 -> 1"):
        kind.train("run", 8, seed=1)


def test_a_finished_run_without_its_checkpoint_says_why_it_cannot_go_on(kind):
    kind.train("run", 4)
    for _, path in list_checkpoints(kind.root / "run" / "training"):
        path.unlink()
    with pytest.raises(InputError, match="cannot be trained longer: .* holds no checkpoint any more"):
        kind.train("run", 8)


@pytest.mark.parametrize("stop", [0, 2, 3])
def test_a_longer_run_that_is_killed_leaves_the_finished_artifact_and_goes_on(kind, monkeypatch, stop):
    whole, finished = kind.train("whole", 8), kind.train("parts", 4)
    files = {path.name: path.read_bytes() for path in finished.path.iterdir() if path.is_file()}
    with stopping_after(monkeypatch, stop):
        kind.train("parts", 8)
    assert {path.name: path.read_bytes() for path in finished.path.iterdir() if path.is_file()} == files
    assert kind.train("parts", 4).hash == finished.hash  # the shorter command still finds its artifact
    assert same_weights(whole.path, kind.train("parts", 8).path)


def test_a_longer_run_that_is_killed_between_weights_and_manifest_goes_on(kind, monkeypatch):
    """The moment at which weights and manifest do not belong together: the same command puts it right."""
    whole = kind.train("whole", 8)
    kind.train("parts", 4)
    manifest = (kind.root / "parts" / "alight.json").read_bytes()
    kind.train("parts", 8)
    (kind.root / "parts" / "alight.json").write_bytes(manifest)
    assert same_weights(whole.path, kind.train("parts", 8).path)
    (kind.root / "parts" / "alight.json").unlink()
    assert same_weights(whole.path, kind.train("parts", 8).path)


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ([{"steps": 5}], "the last phase ends at step 7"),
        ([{"steps": 2}, {"steps": 3, "lr": 1e-5}], "1 more phase follows"),
    ],
)
def test_a_schedule_goes_on_with_a_longer_last_phase_or_further_ones(tokenizer, log_text, more, note):
    before = [{"steps": 2, "adversarial_start_step": 1}]
    first, added = [before[0], {"steps": 2}], [before[0], *more]
    whole = tokenizer.train("whole", 0, stages=added)
    tokenizer.train("parts", 0, stages=first)
    assert same_weights(whole.path, tokenizer.train("parts", 0, stages=added).path)
    assert note in log_text.text
    with pytest.raises(InputError, match="schedule is longer than these phases|another configuration"):
        tokenizer.train("parts", 0, stages=[before[0], {"steps": 1}])
    with pytest.raises(InputError, match="another configuration"):
        tokenizer.train("parts", 0, stages=[{"steps": 3}, *added[1:]])


# --- inputs -------------------------------------------------------------------------------------------------------


def change_inputs(kind):
    if kind.kind == "transformer":
        write_latents(kind.latents, seed=1)
    else:
        Image.new("RGB", (32, 32), (1, 2, 3)).save(kind.images / "a" / "0.png")


def test_a_finished_run_says_that_nothing_was_done(kind, log_text):
    kind.train("run", 2)
    log_text.clear()
    kind.train("run", 2)
    assert f"{kind.root / 'run'} is finished already" in log_text.text


def test_a_finished_run_of_other_inputs_is_not_kept_in_silence(kind):
    kind.train("run", 2)
    change_inputs(kind)
    with pytest.raises(InputError, match="made from inputs that have changed since: the images|was made with other"):
        kind.train("run", 2)


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "class added"])
def test_every_change_of_the_images_is_noticed(tokenizer, change):
    tokenizer.train("run", 2)
    image = tokenizer.images / "a" / "0.png"
    if change == "replaced":
        Image.new("RGB", (32, 32)).save(image)
    elif change == "added":
        Image.new("RGB", (32, 32)).save(tokenizer.images / "a" / "new.png")
    elif change == "removed":
        image.unlink()
    else:
        (tokenizer.images / "c").mkdir()
        Image.new("RGB", (32, 32)).save(tokenizer.images / "c" / "new.png")
    with pytest.raises(InputError, match="changed since: the images"):
        tokenizer.train("run", 2)


def test_an_interrupted_run_does_not_go_on_over_other_inputs(kind, monkeypatch):
    with stopping_after(monkeypatch, 4):
        kind.train("run", 6)
    change_inputs(kind)
    with pytest.raises(InputError, match="begun with other inputs.*the (images|latents)"):
        kind.train("run", 6)


def test_a_finished_run_is_not_trained_longer_on_other_inputs(kind):
    kind.train("run", 2)
    change_inputs(kind)
    with pytest.raises(InputError, match="other inputs|another latents"):
        kind.train("run", 4)


def test_images_that_are_gone_do_not_take_the_finished_run_along(tokenizer, log_text):
    finished = tokenizer.train("run", 2)
    tokenizer.images.rename(tokenizer.root / "elsewhere")
    assert tokenizer.train("run", 2).hash == finished.hash
    assert "cannot be compared" in log_text.text


def test_another_foundation_model_of_the_same_name_is_noticed(tmp_path, monkeypatch):
    foundation, tokenizer = Kind("foundation", tmp_path), Kind("tokenizer", tmp_path)
    aligned = {"alignment": {"foundation": str(tmp_path / "foundation")}}
    foundation.train("foundation", 2)
    tokenizer.train("finished", 2, **aligned)
    assert "foundation" in read_artifact(tmp_path / "finished", "tokenizer").inputs
    with stopping_after(monkeypatch, 8):
        tokenizer.train("stopped", 9, **aligned)
    foundation.train("foundation", 3)
    for output, steps in (("finished", 2), ("stopped", 9)):
        with pytest.raises(InputError, match="the foundation model"):
            tokenizer.train(output, steps, **aligned)


def test_a_run_of_an_earlier_version_goes_on_without_recorded_inputs(transformer):
    whole = transformer.train("whole", 4)
    transformer.train("run", 4)
    folder = transformer.root / "run"
    (folder / "alight.json").unlink()
    from alight.training.checkpoint import load_latest_checkpoint, save_checkpoint

    content, _ = load_latest_checkpoint(folder / "training")
    for name in ("inputs", "planned_steps", "artifact"):
        del content[name]
    save_checkpoint(folder / "training", content.pop("step"), content, keep=2)
    assert same_weights(whole.path, transformer.train("run", 4).path)
    manifest = json.loads((folder / "alight.json").read_text())
    assert manifest["inputs"]["latents"]


# --- faults at the end, and inputs that go away -------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        *(pytest.param(number, marks=pytest.mark.exhaustive) for number in (errno.EIO, errno.ESTALE, errno.EXDEV)),
        errno.ENOSPC,
    ],
    ids=errno.errorcode.get,
)
@pytest.mark.parametrize("longer", [False, True])
def test_a_disk_that_fails_while_the_artifact_is_written_costs_no_step(kind, monkeypatch, number, longer):
    whole = kind.train("whole", 6)
    if longer:
        kind.train("run", 3)
    original = os.replace

    def refuse(source, target):
        if str(target).endswith(".safetensors"):
            raise OSError(number, os.strerror(number), str(source), None, str(target))
        original(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", refuse)
        with pytest.raises(InputError, match="Cannot write to") as caught:
            kind.train("run", 6)
    assert "\n" not in str(caught.value)
    assert [step for step, _ in list_checkpoints(kind.root / "run" / "training")][-1] == 6
    assert not (kind.root / "run" / ".partial").exists()
    assert same_weights(whole.path, kind.train("run", 6).path)


def test_latents_that_are_removed_while_training_are_still_read(transformer, monkeypatch):
    """They are mapped, so the system keeps them until the run ends; the next start says that they are gone."""
    whole = transformer.train("whole", 6)

    def remove(step):
        if step == 2:
            shutil.rmtree(transformer.latents)

    with before_each_step(monkeypatch, remove):
        assert same_weights(whole.path, transformer.train("run", 6).path)
    with pytest.raises(InputError, match="There is no latents folder"):
        transformer.train("run", 6)


def test_images_that_are_removed_while_training_end_the_run_with_a_sentence(tokenizer, monkeypatch):
    from alight.data.image_dataset import ImageDataset

    def remove(step):
        if step == 2:
            shutil.rmtree(tokenizer.images)

    monkeypatch.setattr(ImageDataset, "_decode_all", lambda self: None)  # as if there were too many to keep
    with before_each_step(monkeypatch, remove):
        with pytest.raises(InputError, match=r"images.*(No such file|removed|cannot be read)"):
            tokenizer.train("run", 20)
