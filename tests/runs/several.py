"""One of several CPU processes: its number, their count, a port, a folder, a fault.

It runs the program of docs/guides/many-machines.md and keeps what came out. With the
fault "errors" process 1 then fails in many ways. With "kill" all there is to do is a
training, in which process 1 is killed; with "stop" an evaluation, in which it is told
to stop.
"""

import os
import pathlib
import signal
import sys
import time
from unittest import mock

import jax
import numpy as np

from tests.test_documents import PAGES


def main(number, count, port, folder, fault):
    os.chdir(folder)
    jax.config.update("jax_num_cpu_devices", 1)
    if fault == "kill":
        address = f"localhost:{port}"
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=10)
        train_until(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return
    if fault == "stop":
        jax.distributed.initialize(f"localhost:{port}", count, number)
        evaluate_until(number, lambda: os.kill(os.getpid(), signal.SIGTERM))
        return
    os.environ |= {"COORDINATOR": f"localhost:{port}", "PROCESSES": str(count)}
    os.environ["PROCESS"] = str(number)
    names = {}
    for block, _ in PAGES["docs/guides/many-machines.md"]:
        exec(block, names)
    # only now: what they import may ask JAX for its devices
    from tests.runs.test_processes import results
    from tests.training.test_parallel import batch_norm_run

    np.savez(f"results{number}.npz", **results(names))
    batch_norm_run("norm")
    state = batch_norm_run("norm", resume=True)  # process 0 wrote it, all read it
    np.savez(f"norm{number}.npz", *map(np.asarray, jax.tree.leaves(state.variables)))
    if fault == "errors":
        fail_in_many_ways(number, count, names)
        print("all errors were told", flush=True)
        train_until(number, lambda: 1 / 0)


def fail_in_many_ways(number, count, names):
    """Process 1 fails, and the others raise its message."""
    from robjax import evaluation, training
    from robjax.runs import files

    def expect(kind, words, action):
        try:
            action()
        except Exception as error:
            told = f"process 1 of {count} failed: {kind.__name__}: {words}"
            assert (words if number == 1 else told) in str(error), repr(error)
            assert isinstance(error, kind if number == 1 else RuntimeError)
        else:
            raise AssertionError(f"nothing raised: {words}")

    def evaluate(run_dir=None, key=0):
        evaluation.evaluate(
            names["logits_fn"],
            names["test"],
            {},
            key=jax.random.key(key),
            batch_size=8,
            run_dir=run_dir,
        )

    full = OSError("no space left") if number == 1 else None
    with mock.patch.object(files, "save_npz", side_effect=full):
        expect(OSError, "no space left", lambda: evaluate("full"))
    apart = "run_dir='apart1' must be a folder that all processes share"
    expect(ValueError, apart, lambda: evaluate(f"apart{number}"))

    def not_a_mapping(epoch, variables):
        return None if epoch and number == 1 else {}

    train = names["model"], names["train"]
    options = {"config": names["config"], "on_epoch": not_a_mapping, "progress": False}
    message = "on_epoch must return a mapping"
    expect(ValueError, message, lambda: training.fit(*train, **options))
    try:
        evaluate(key=number)
    except RuntimeError as error:
        assert "process 1 has another key than process 0" in str(error)
    else:
        raise AssertionError("other keys were accepted")


def evaluate_until(number, stop):
    """Evaluates twelve batches; calls `stop` in process 1 after its second one."""
    from robjax.evaluation.store import Store

    save, saved = Store.save, []

    def then_stop(self, *batch):
        save(self, *batch)
        saved.append(batch)
        if len(saved) == 2 and number == 1:
            stop()
        time.sleep(0.5)

    with mock.patch.object(Store, "save", then_stop):
        twelve_batches("stopped")


def twelve_batches(run_dir, *, resume=False):
    """The run that process 1 is told to stop."""
    from robjax.evaluation import evaluate

    x = np.random.default_rng(0).random((96, 4), np.float32)
    key = jax.random.key(0)
    options = {"batch_size": 8, "run_dir": run_dir, "resume": resume}
    return evaluate(jax.numpy.tanh, (x, np.arange(96) % 4), {}, key=key, **options)


def train_until(number, stop):
    """Trains; calls `stop` in process 1 while the others wait for its third step."""
    from robjax import data, training
    from robjax.models import MLP
    from robjax.training.loop import Loop

    feed, steps = Loop.feed, []

    def broken(self, batch):
        steps.append(batch)
        if len(steps) == 3 and number == 1:
            time.sleep(1)
            pathlib.Path("failed").write_text(str(time.time()))
            stop()
        return feed(self, batch)

    with mock.patch.object(Loop, "feed", broken):
        training.fit(
            MLP(10, widths=(4,)),
            data.subset(data.load("digits", "train"), 256),
            config=training.FitConfig(epochs=2, batch_size=32),
            progress=False,
        )


if __name__ == "__main__":
    first, second, *others, last = sys.argv[1:]
    main(int(first), int(second), *others, last)
