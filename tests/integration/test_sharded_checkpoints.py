"""Checkpoints of which every process writes a part: converted, damaged, interrupted, and seen by one process alone."""

import math
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from alight.config import TrainingConfig
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.training import resuming, sharded_checkpoint
from alight.training.checkpoint import (
    checkpoint_size,
    is_whole,
    list_checkpoints,
    load_latest_checkpoint,
    newest_whole,
    read_checkpoint,
    remove_leftovers,
)
from alight.training.resuming import choose_newest, restore_newest
from alight.training.run import TrainingRun
from alight.training.state_tree import split
from helpers.many_processes import Trained, call_together, start_together


def begin(processes, folder, sharded, optimizer="adamw", steps=(1,)):
    """Train a little and save."""
    trained = Trained(processes, sharded, optimizer)
    for step in steps:
        trained.step()
        trained.save(folder, step, processes)


def go_on(processes, folder, sharded, optimizer="adamw", save=None, own_folder=False):
    """Fill another model from the newest checkpoint, and save it again; gives its step, weights and first memory."""
    if own_folder and not processes.is_main:
        folder = folder / f"of {processes.rank}"
    resuming.seen_in_time = lambda look: look()  # the files of this test do not lag behind
    trained = Trained(processes, sharded, optimizer, seed=1)
    newest, _ = choose_newest(folder, processes)
    restore_newest(trained.states(), newest, folder, processes, trained.group)
    if save is not None:
        trained.save(folder, save, processes)
    parameter = trained.model.blocks[0].attn.qkv.weight
    memory = next(iter(trained.optimizer.state[parameter].values()))
    first = [tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for tensor in (parameter, memory)]
    return newest.content["step"], *(tensor.detach().numpy() for tensor in first)


def state_of(folder, step):
    path = dict(list_checkpoints(folder))[step]
    content = read_checkpoint(path)
    return content, split(content["state"])[1]


def require_equal(folder, one, other):
    (content, tensors), (later, others) = state_of(folder, one), state_of(folder, other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[path]) for path, tensor in tensors.items())
    groups, its_groups = (each["state"]["optimizer"]["param_groups"] for each in (content, later))
    assert groups == its_groups


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.exhaustive), "muon"])
def test_a_checkpoint_keeps_every_bit_from_four_processes_to_two_to_one_and_back(tmp_path, optimizer):
    call_together(begin, 4, tmp_path, True, optimizer)
    forms = [(2, True), (1, False), (4, True), (2, False), (2, True)]
    for number, (count, sharded) in enumerate(forms, start=2):
        call_together(go_on, count, tmp_path, sharded, optimizer, number)
        require_equal(tmp_path, 1, number)
    kinds = [path.is_dir() for _, path in list_checkpoints(tmp_path)]
    assert kinds == [True, True, False, True, False, True]


def test_no_process_writes_much_more_than_its_part(tmp_path):
    call_together(begin, 4, tmp_path, True)
    path = list_checkpoints(tmp_path)[0][1]
    parts = [file.stat().st_size for file in path.glob("*.distcp")]
    assert len(parts) == 4
    assert max(parts) < 0.4 * sum(parts)
    assert checkpoint_size(path) > sum(parts)


@pytest.mark.parametrize("sharded_before", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_that_only_the_first_process_sees(tmp_path, sharded_before, sharded):
    call_together(begin, 2, tmp_path, sharded_before, "adamw", (1, 2))
    (tmp_path / "of 1").mkdir()
    seen = call_together(go_on, 2, tmp_path, sharded, "adamw", None, True)
    weight = state_of(tmp_path, 2)[1]["model", "blocks.0.attn.qkv.weight"]
    assert [step for step, *_ in seen] == [2, 2]
    assert all((own == weight.numpy()).all() for _, own, _ in seen)


def test_processes_that_see_other_checkpoints_go_on_from_the_same(tmp_path):
    call_together(begin, 2, tmp_path, False, "adamw", (1, 2))
    (tmp_path / "of 1").mkdir()
    call_together(begin, 1, tmp_path / "of 1", False)
    (one, *first), (other, *second) = call_together(go_on, 2, tmp_path, False, "adamw", None, True)
    assert one == other == 2
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def roll_back(processes, folder, sharded):
    """Train through a gradient that is not finite; gives a weight after it."""
    trained = Trained(processes, sharded)
    settings = TrainingConfig(steps=6, log_every=2, checkpoint_every=2, on_non_finite="rollback")
    with TrainingRun(folder, {}, settings, trained.states(), "test", processes) as run:
        for step in run.steps():
            trained.step(1)
            run.check(torch.tensor(math.nan if step == 4 else 1.0))
            if step == 4:
                weight = trained.model.blocks[0].attn.qkv.weight.detach()
                return (weight.full_tensor() if sharded else weight).numpy()


@pytest.mark.parametrize("sharded", [False, True])
def test_all_processes_roll_back_to_the_same_weights(tmp_path, sharded):
    found = call_together(roll_back, 2, tmp_path, sharded)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 4]
    weight = state_of(tmp_path, 4)[1]["model", "blocks.0.attn.qkv.weight"]
    assert all((each == weight.numpy()).all() for each in found)


def unreadable(processes, folder):
    """Gives what each process says of a checkpoint that the first cannot read."""
    with pytest.raises(InputError) as caught:
        choose_newest(folder, processes)
    return str(caught.value)


def test_all_processes_say_why_a_checkpoint_cannot_be_read(tmp_path):
    call_together(begin, 1, tmp_path, False)
    path = list_checkpoints(tmp_path)[0][1]
    torch.save({"step": "first"}, path)
    path.with_suffix(".sha256").write_text(f"{file_hash(path)}  {path.name}\n")
    one, other = call_together(unreadable, 2, tmp_path)
    assert one == other
    assert "holds no checkpoint of a training run" in one


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    call_together(begin, 2, folder, True, "adamw", (1, 2))
    return folder


@pytest.fixture
def two(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", ["__1_0.distcp", "progress.pt", ".metadata", "checksums.sha256"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_taken(two, name, damage):
    part = list_checkpoints(two)[-1][1] / name
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.unlink() if damage == "missing" else part.write_bytes(content)
    path, damaged = newest_whole(two)
    assert path == list_checkpoints(two)[0][1]
    assert [file.parent.name for file in damaged] == ["step-00000002"]
    assert name == "checksums.sha256" or damaged[0].name == name  # of a flipped checksum the file, which may be whole
    assert load_latest_checkpoint(two)[0]["step"] == 1


def test_a_damaged_checkpoint_is_replaced_by_the_next_one_of_its_step(two):
    part = list_checkpoints(two)[-1][1] / "__0_0.distcp"
    part.write_bytes(b"")
    call_together(go_on, 2, two, True, "adamw", 2)
    assert newest_whole(two) == (part.parent, [])
    require_equal(two, 1, 2)


def test_one_form_of_a_step_replaces_the_other(two):
    call_together(go_on, 1, two, False, "adamw", 2)
    assert [path.name for _, path in list_checkpoints(two)] == ["step-00000001", "step-00000002.pt"]
    call_together(go_on, 2, two, True, "adamw", 2)
    assert [path.name for _, path in list_checkpoints(two)] == ["step-00000001", "step-00000002"]


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_nothing_in_a_sharded_checkpoint_is_executed(two, monkeypatch):
    monkeypatch.chdir(two)
    path = list_checkpoints(two)[-1][1]
    for name in (".metadata", "progress.pt"):
        before = (path / name).read_bytes(), (path / "checksums.sha256").read_text()
        (path / name).write_bytes(pickle.dumps(Harm(), protocol=2))
        lines = before[1].replace(file_hash(path / name), "").splitlines()
        kept = [line for line in lines if not line.endswith(f"  {name}")]
        (path / "checksums.sha256").write_text("\n".join([*kept, f"{file_hash(path / name)}  {name}"]) + "\n")
        assert is_whole(path)
        with pytest.raises(InputError, match="holds no checkpoint of a training run"):
            load_latest_checkpoint(two)
        (path / name).write_bytes(before[0])
        (path / "checksums.sha256").write_text(before[1])
    assert not Path("harm").exists()
    assert load_latest_checkpoint(two)[0]["step"] == 2


def die_while_saving(processes, folder):
    """Save once, then begin to save again and be killed when the parts are written."""
    trained = Trained(processes, True)
    trained.save(folder, 1, processes)
    save = sharded_checkpoint.dcp.save

    def killed(*arguments, **options):
        save(*arguments, **options)
        if processes.rank == 1:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    sharded_checkpoint.dcp.save = killed
    trained.save(folder, 2, processes)


def test_killed_during_a_save_the_checkpoint_before_is_used_and_nothing_is_left(tmp_path):
    started, _results = start_together(die_while_saving, 2, tmp_path)
    started[1].join(120)
    assert started[1].exitcode == -signal.SIGKILL
    started[0].kill()
    started[0].join(60)
    assert (tmp_path / "killed").exists()
    left = tmp_path / ".step-00000002.writing"
    assert list(left.glob("*.distcp"))
    path, damaged = newest_whole(tmp_path)
    assert (path.name, damaged) == ("step-00000001", [])
    remove_leftovers(tmp_path)
    assert not left.exists()
    assert [step for step, *_ in call_together(go_on, 2, tmp_path, True, "adamw", 2)] == [1, 1]
    require_equal(tmp_path, 1, 2)


def test_a_half_removed_checkpoint_is_a_leftover(two):
    path = list_checkpoints(two)[0][1]
    path.rename(two / f".{path.name}.removing")
    remove_leftovers(two)
    assert [file.name for file in two.iterdir()] == ["step-00000002"]


def full_disk(processes, folder):
    """Gives what each process says when the disk of one of them is full."""
    trained = Trained(processes, True)
    trained.save(folder, 1, processes)
    if processes.rank == 1:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with pytest.raises(InputError) as caught:
        trained.save(folder, 2, processes)
    return str(caught.value)


def test_a_full_disk_of_one_process_is_an_error_of_all_and_leaves_the_checkpoint_before(tmp_path):
    one, other = call_together(full_disk, 2, tmp_path)
    assert one == other
    assert "the file size limit is reached" in one
    assert newest_whole(tmp_path)[0].name == "step-00000001"
