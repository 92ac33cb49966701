"""Training on images that stay on the disk ends bit for bit as training in memory."""

import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from robjax import data, evaluation, training
from robjax.models import MLP
from robjax.training.loop import Rows

CONFIG = training.FitConfig(epochs=3, batch_size=8, checkpoint_every=2, pad=1)
MODEL = MLP(2, widths=(4,))


def write(root):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(37) // 20
    for number, image in enumerate(pixels):
        path = root / "ab"[labels[number]] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    return data.from_arrays(pixels, labels)


def run(images, run_dir=None, *, resume=False, **options):
    """Four steps in each of three epochs; checkpoints after 2, 4, 6, …"""
    return training.fit(
        MODEL,
        images,
        config=CONFIG,
        run_dir=run_dir,
        resume=resume,
        devices=jax.devices()[:2],
        progress=False,
        **options,
    )


def stream(root, workers):
    return data.folders(root).stream(workers=workers)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def test_as_in_memory_and_after_an_interruption(tmp_path):
    root = tmp_path / "photos"
    memory = write(root)
    whole = run(memory)
    streamed = stream(root, 2)
    chex.assert_trees_all_equal(run(streamed), whole)

    def interrupt(epoch, variables):
        if epoch == 2:
            raise Interrupted
        return {}

    # after 6 of 12 steps, in the middle of an epoch
    with pytest.raises(Interrupted):
        run(streamed, tmp_path / "run", on_epoch=interrupt)
    resumed = run(stream(root, 1), tmp_path / "run", resume=True)
    chex.assert_trees_all_equal(resumed, whole)
    (root / "a" / "00.png").write_bytes(b"")
    with pytest.raises(ValueError, match="looked for an image at .*a/00.png: no image"):
        run(streamed)


def test_killed_and_resumed(tmp_path):
    root = tmp_path / "photos"
    whole = run(write(root))
    code = (
        "import importlib.util, jax, pathlib, sys\n"
        "jax.config.update('jax_num_cpu_devices', 8)\n"
        "spec = importlib.util.spec_from_file_location('streamed', sys.argv[1])\n"
        "test = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(test)\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "test.run(test.stream(folder / 'photos', 2), folder / 'run')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, __file__, str(tmp_path)])
    while process.poll() is None and not (tmp_path / "run" / "checkpoints").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = run(stream(root, 0), tmp_path / "run", resume=True)
    chex.assert_trees_all_equal(resumed, whole)


def test_evaluation_as_in_memory(tmp_path):
    memory = write(tmp_path)
    streamed = stream(tmp_path, 0)

    def model(x):
        return x.reshape(len(x), -1)[:, :2]

    mirror = {"mirror": lambda f, x, y, *, key, bounds: x[:, :, ::-1]}
    options = {"key": jax.random.key(0), "batch_size": 16, "keep_images": True}
    expected = evaluation.evaluate(model, memory, mirror, **options)
    found = evaluation.evaluate(model, streamed, mirror, **options)
    chex.assert_trees_all_equal(found, expected)
    with pytest.raises(ValueError, match=r"inside bounds \(0.2, 0.9\), got"):
        evaluation.evaluate(model, streamed, mirror, **options, bounds=(0.2, 0.9))


class Device(NamedTuple):
    process_index: int


def test_each_process_decodes_its_own_rows(monkeypatch, tmp_path):
    memory = write(tmp_path)
    decoded = []
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        rows = Rows(memory.labels, CONFIG, [Device(0), Device(0), Device(1), Device(1)])
        images = stream(tmp_path, 0).images
        read = images._read
        asked = []
        monkeypatch.setattr(
            images,
            "_read",
            lambda rows, read=read, asked=asked: asked.extend(rows) or read(rows),
        )
        with images.batches(rows) as batches:
            decoded.append(np.stack(list(batches)))
        assert len(asked) == len(rows) * CONFIG.batch_size / 2
    batches = [data.batch_indices(37, 8, seed=0, epoch=epoch) for epoch in range(3)]
    both = np.concatenate(decoded, axis=1).reshape(12, 8, 4, 4, 1)
    np.testing.assert_array_equal(both, memory.images[np.concatenate(batches)])
