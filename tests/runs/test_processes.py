"""Several processes give the results of one, and all end if one fails."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.runs.several import twelve_batches
from tests.test_documents import PAGES
from tests.training.test_parallel import batch_norm_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


def results(names):
    """What the program of the page found, as arrays."""
    table = names["table"]
    columns = {
        f"{n} {f}": v for n, a in table.attacks.items() for f, v in a._asdict().items()
    }
    divergence = {
        f"pairs {k}": np.array(v) for k, v in names["divergence"]._asdict().items()
    }
    played = {f"game {k}": v for k, v in names["interactions"]._asdict().items()}
    leaves = jax.tree.leaves(names["state"].variables)
    weights = {f"weights {i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    return {
        **weights,
        **columns,
        **divergence,
        **played,
        "fooled_by": table.fooled_by,
        "x_adv": table.x_adv,
        "broken": names["curve"].broken,
    }


def run_processes(count, folder, fault):
    """Starts the processes and waits; returns their codes, what they said, seconds.

    The seconds are those from the moment at which one failed to the end of the last.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [str(count), str(port), str(folder), fault]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runs.several", str(number), *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    failed = folder / "failed"
    seconds = time.time() - float(failed.read_text()) if failed.exists() else np.inf
    return [process.returncode for process in processes], said, seconds


def assert_like_one(count, folder, monkeypatch):
    """Compares what the processes kept with what one process finds."""
    alone = folder / "alone"
    alone.mkdir()
    monkeypatch.chdir(alone)
    names = {}
    opening, training, *rest, _ = [b for b, _ in PAGES["docs/guides/many-machines.md"]]
    exec(opening + training, names)
    several = [dict(np.load(folder / f"results{n}.npz")) for n in range(count)]
    # the same weights from here on, so that a verdict on the edge cannot flip
    leaves, tree = jax.tree.flatten(names["state"].variables)
    for number, leaf in enumerate(leaves):
        found = several[0][f"weights {number}"]
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-5)
        leaves[number] = jax.numpy.asarray(found)
    names["state"] = names["state"]._replace(variables=jax.tree.unflatten(tree, leaves))
    exec("".join(rest), names)
    one = results(names)
    for found in several:
        assert found.keys() == one.keys()
        for name, value in one.items():
            close = 1e-9 if name.startswith("pairs") else 0
            np.testing.assert_allclose(found[name], value, rtol=close, err_msg=name)
    assert one["fooled_by"].max() > 0 and one["broken"].any()
    parts = sorted(p.relative_to(alone) for p in alone.rglob("*.npz"))
    assert len(parts) > 6
    assert parts == sorted(
        p.relative_to(folder)
        for p in folder.rglob("results/**/*.npz")
        if alone not in p.parents
    )
    lines = [len(p.read_text().splitlines()) for p in folder.rglob("metrics.jsonl")]
    assert lines == [3] * len(lines)
    norm = jax.tree.leaves(batch_norm_run("norm").variables)
    for number in range(count):
        with np.load(folder / f"norm{number}.npz") as found:
            for name, leaf in zip(found.files, norm, strict=True):
                np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_two_processes_are_like_one_and_end_together(tmp_path, monkeypatch):
    codes, said, seconds = run_processes(2, tmp_path, "errors")
    assert all("all errors were told" in text for text in said), said
    assert codes == [1, 1] and seconds < 60, said
    assert "ZeroDivisionError" in said[1].splitlines()[-1]
    assert (
        "robjax: process 1 of 2 failed: ZeroDivisionError: division by zero" in said[0]
    )
    bars = [text.count("epoch 2/2") for text in said]
    assert bars[0] and not bars[1]
    assert_like_one(2, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_four_processes_are_like_one(tmp_path, monkeypatch):
    codes, said, _ = run_processes(4, tmp_path, "none")
    assert codes == [0] * 4, said
    assert_like_one(4, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_processes_stop_together_if_one_is_told_to(tmp_path):
    codes, said, _ = run_processes(2, tmp_path, "stop")
    assert codes == [75, 75], said
    assert 4 <= len(list(tmp_path.glob("stopped/*/*.npz"))) < 12
    with pytest.warns(UserWarning, match="resuming with different device, processes"):
        resumed = twelve_batches(tmp_path / "stopped", resume=True)
    whole = twelve_batches(tmp_path / "whole")
    np.testing.assert_array_equal(resumed.fooled_by, whole.fooled_by)
    np.testing.assert_array_equal(resumed.predictions, whole.predictions)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path):
    codes, said, seconds = run_processes(4, tmp_path, "kill")
    assert codes[1] == -9 and 0 not in codes, said
    assert seconds < 60  # with a heartbeat_timeout_seconds of 10
