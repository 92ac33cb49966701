"""A run that is stopped anywhere and resumed ends bit for bit as if it had not been."""

import dataclasses
import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import pytest

from robjax import data, training
from robjax.balls import Linf
from robjax.models import MLP
from robjax.runs import checkpoints, files, preemption, provenance
from robjax.training import objectives
from robjax.training.journal import Journal
from robjax.training.loop import Loop

CONFIG = training.FitConfig(
    epochs=3,
    batch_size=32,
    learning_rate=0.05,
    pad=1,
    ema_decay=0.9,
    warmup_epochs=2,
    checkpoint_every=4,
)
OBJECTIVE = functools.partial(
    objectives.adversarial, ball=Linf(0.1), steps=2, step_size=0.05
)


def run(run_dir, *, resume=False, config=CONFIG, **changes):
    """Six steps in each of three epochs; checkpoints after 4, 6, 8, 12, 16, 18."""
    options = {
        "model": MLP(10, widths=(8,)),
        "data": data.subset(data.load("digits", "train"), 200),
        "objective": OBJECTIVE,
        "on_epoch": lambda epoch, variables: {"measured": 2.0 * epoch},
        "devices": jax.devices()[:1],
        **changes,
    }
    return training.fit(
        **options,
        config=config,
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )


def records(run_dir):
    found = files.load_json_lines(pathlib.Path(run_dir) / "metrics.jsonl")
    for record in found:
        record.pop("images_per_second", None)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), records(folder), folder


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("saves", [0, 1, 3, 5])
@pytest.mark.parametrize("when", ["before", "after"])
def test_resumes_bit_for_bit(monkeypatch, tmp_path, whole, saves, when):
    save, count = Journal.save, 0

    def stop(self, state, extra):
        nonlocal count
        if count == saves and when == "before":
            raise Stop
        save(self, state, extra)
        if count == saves:
            raise Stop
        count += 1

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", stop)
        with pytest.raises(Stop):
            run(tmp_path)
    chex.assert_trees_all_equal(run(tmp_path, resume=True), whole[0])
    assert records(tmp_path) == whole[1]


def test_killed_at_a_random_moment(tmp_path, whole):
    code = (
        "import importlib.util, jax, sys\n"
        "jax.config.update('jax_num_cpu_devices', 8)\n"
        "spec = importlib.util.spec_from_file_location('test_resume', sys.argv[1])\n"
        "test = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(test)\n"
        "test.run(sys.argv[2])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, __file__, str(tmp_path)])
    while process.poll() is None and not (tmp_path / "checkpoints").exists():
        time.sleep(0.001)
    # what is left after the compilation takes about this long, most of it saving
    time.sleep(random.SystemRandom().uniform(0, 0.6))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    chex.assert_trees_all_equal(run(tmp_path, resume=True), whole[0])
    assert records(tmp_path) == whole[1]


def test_told_to_stop_it_goes_on_and_with_other_devices(monkeypatch, tmp_path, whole):
    """SIGTERM in the ninth step, of an epoch of six; then one device, or two."""
    step, taken = Loop.take_step, 0

    def told_while_stepping(self, state, batch):
        nonlocal taken
        taken += 1
        if taken == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, batch)

    monkeypatch.setattr(Loop, "take_step", told_while_stepping)
    with pytest.raises(preemption.Preempted) as stopped:
        run(tmp_path)
    assert stopped.value.code == preemption.EXIT_CODE
    last = checkpoints.list_checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == "step_0000000009"
    shutil.copytree(tmp_path, tmp_path / "two")
    chex.assert_trees_all_equal(run(tmp_path, resume=True), whole[0])
    assert records(tmp_path) == whole[1]
    with pytest.warns(UserWarning, match=r"different devices \(1 then, 2 now\)"):
        shared = run(tmp_path / "two", resume=True, devices=jax.devices()[:2])
    chex.assert_trees_all_close(
        shared.variables, whole[0].variables, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("damage", ["removed", "cut", "digit"])
def test_records_are_written_again_from_the_checkpoint(damage, tmp_path, whole):
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "metrics.jsonl"
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:  # another number, which JSON would take
        file.write_bytes(content.replace(b'"measured": 2.0', b'"measured": 3.0'))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl was altered"):
        run(tmp_path, resume=True)
    assert file.read_bytes() == content


def test_torn_record_and_later_records_are_dropped(tmp_path, whole):
    run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "step": 24}\n{"epoch": 5, "st')
    run(tmp_path, resume=True)
    assert records(tmp_path) == whole[1]


def test_resuming_a_finished_run_changes_nothing(whole):
    state, found, folder = whole
    chex.assert_trees_all_equal(run(folder, resume=True), state)
    assert records(folder) == found


def test_two_runs_are_bit_equal(tmp_path, whole):
    chex.assert_trees_all_equal(run(tmp_path), whole[0])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed", {"config": dataclasses.replace(CONFIG, seed=1)}),
        ("epochs", {"config": dataclasses.replace(CONFIG, epochs=4)}),
        ("learning_rate", {"config": dataclasses.replace(CONFIG, learning_rate=0.2)}),
        ("model", {"model": MLP(10, widths=(9,))}),
        ("objective", {"objective": functools.partial(OBJECTIVE, steps=3)}),
        ("objective", {"objective": objectives.standard}),
        ("data", {"data": data.subset(data.load("digits", "train"), 200, seed=1)}),
    ],
)
def test_another_set_up_is_refused_by_name(whole, name, changes):
    with pytest.raises(ValueError, match=f"another {name}"):
        run(whole[2], resume=True, **changes)


def test_a_run_is_not_overwritten(whole):
    with pytest.raises(ValueError, match="already holds a run"):
        run(whole[2])


def damage(checkpoint):
    largest = max(
        (path for path in checkpoint.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_corrupt_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path):
    run(tmp_path)
    before, last = checkpoints.list_checkpoints(tmp_path / "checkpoints")
    damage(last)
    with pytest.warns(UserWarning, match=f"corrupt.*going on from {before.name}"):
        state = run(tmp_path, resume=True)
    chex.assert_trees_all_equal(state.variables, whole[0].variables)
    assert checkpoints.latest_checkpoint(tmp_path / "checkpoints")[0] == last  # again
    damage(before)
    damage(last)
    with pytest.raises(ValueError, match="corrupt|manifest"):
        run(tmp_path, resume=True)


def test_other_versions_are_a_warning(monkeypatch, tmp_path):
    run(tmp_path)
    versions = provenance.versions()
    monkeypatch.setattr(
        provenance, "versions", lambda: versions | {"backend": "abacus"}
    )
    with pytest.warns(UserWarning, match="different backend"):
        run(tmp_path, resume=True)
