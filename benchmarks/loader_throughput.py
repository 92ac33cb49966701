"""What it costs to stream the images of a training step from the disk.

    python -m benchmarks.loader_throughput FOLDER [--workers 1 2] [--rounds 30]

FOLDER has one folder of images for each class. Where there is no such folder, one of
50,000 PNG files of 32×32 pixels is written: CIFAR-10 if it is prepared. The steps, of
adversarial training with PGD-10, take turns: one is fed from memory, the next one by
the processes, which have nothing to do in the step between. On a loaded machine the
ratio of CPU times says more than that of the medians.
"""

import argparse
import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from robjax import data, models
from robjax.balls import Linf
from robjax.training import FitConfig, objectives, parallel
from robjax.training.loop import Rows
from robjax.training.state import create_state, make_optimizer
from robjax.training.step import make_step

OBJECTIVE = functools.partial(
    objectives.adversarial, ball=Linf(8 / 255), steps=10, step_size=2 / 255
)


def write(root: pathlib.Path) -> None:
    """Writes 50,000 images as PNG."""
    from PIL import Image

    try:
        found = data.load("cifar10", "train")
    except data.NotPreparedError:
        noise = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), np.uint8)
        found = data.from_arrays(noise, np.arange(len(noise)) % 10)
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
    for number, label in enumerate(found.labels):
        path = root / str(label) / f"{number:05d}.png"
        Image.fromarray(found.images[number]).save(path)


class Usage(NamedTuple):
    """What a process has used: seconds of CPU, megabytes, and whether it has JAX."""

    seconds: float
    proportional: float
    unique: float
    jax: bool

    @classmethod
    def of(cls, process: int) -> "Usage":
        folder = pathlib.Path(f"/proc/{process}")
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
        size = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines}
        return cls(
            ticks / os.sysconf("SC_CLK_TCK"),
            size["Pss:"],
            size["Private_Clean:"] + size["Private_Dirty:"],
            "jaxlib" in (folder / "maps").read_text(),
        )


def workers_of() -> list[Usage]:
    """The processes that decode for this one."""
    listed = pathlib.Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(p) for file in listed for p in file.read_text().split()]
    return [
        Usage.of(p)
        for p in found
        if b"decoder.py" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()
    ]


def alone(streamed: data.Dataset, rows: Rows, count: int) -> str:
    """Decodes `count` batches with nothing else to do; the cells of the table."""
    assert isinstance(streamed.images, data.StoredImages)
    with streamed.images.batches(rows) as batches:
        next(batches)
        before = workers_of()
        wall, own = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(batches)
        wall, own = time.perf_counter() - wall, time.process_time() - own
        after = workers_of()
    spent = sum(w.seconds for w in after) - sum(w.seconds for w in before)
    return (
        f"{count * rows[0].size / wall:.0f} | "
        f"{1e3 * spent / count:.1f} | {1e3 * own / count:.2f} | "
        f"{max(w.proportional for w in after):.0f} | "
        f"{max(w.unique for w in after):.0f} | "
        f"{'yes' if any(w.jax for w in after) else 'no'}"
    )


def beside(streamed: data.Dataset, rows: Rows, size: int, rounds: int) -> str:
    """Training steps, fed from memory and streamed in turn; the cells of the table."""
    memory, stored = np.asarray(streamed.images), streamed.images
    assert isinstance(stored, data.StoredImages)
    config = FitConfig(batch_size=size, optimizer="adam", learning_rate=1e-3)
    model = parallel.join_batch_norm(models.CNN(10))
    optimizer = make_optimizer(config, 100)
    devices = jax.devices()[:1]
    step = make_step(
        model, OBJECTIVE, optimizer, config, steps_per_epoch=100, scale=255.0
    )
    step = parallel.data_parallel(step, devices)
    start = create_state(
        model, data.to_float(memory[:1], streamed.scale), optimizer, config
    )
    state = [parallel.replicate(jax.tree.map(jnp.copy, start), devices)]
    seconds = {"memory": 0.0, "streamed": 0.0}

    def take(name: str, images: Callable[[], Any], chosen: np.ndarray) -> Any:
        began = time.process_time()
        fed = images(), streamed.labels[chosen], chosen.astype(np.int32)
        state[0], metrics = step(state[0], *fed)
        jax.block_until_ready(metrics)
        seconds[name] += time.process_time() - began
        return metrics

    with stored.batches(rows) as batches:
        numbers = iter(range(len(rows)))

        def in_memory():
            chosen = rows[next(numbers)]
            return take("memory", lambda: memory[chosen], chosen)

        def from_disk():
            return take("streamed", lambda: next(batches), rows[next(numbers)])

        in_memory()  # which compiles
        seconds = dict.fromkeys(seconds, 0.0)
        before = sum(w.seconds for w in workers_of())
        times = timing.compare({"memory": in_memory, "streamed": from_disk}, rounds)
        seconds["streamed"] += sum(w.seconds for w in workers_of()) - before
    median = times["memory"].median / times["streamed"].median
    return (
        f"{1e3 * times['memory'].median:.0f} | {1e3 * times['streamed'].median:.0f} | "
        f"{median:.3f} | {1e3 * seconds['memory'] / (rounds + 2):.0f} | "
        f"{1e3 * seconds['streamed'] / (rounds + 2):.0f} | "
        f"{seconds['memory'] / seconds['streamed']:.3f}"
    )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if not args.folder.exists():
        write(args.folder)
    print(f"Measured on {timing.environment()}\n")
    print(
        "| workers | images/s | CPU ms a batch | in this process | PSS MB a worker | "
        "USS MB | has JAX | ms a step in memory | streamed | ratio | "
        "CPU ms a step in memory | streamed, with workers | ratio |\n"
        + 13 * "|---"
        + "|"
    )
    listing = data.folders(args.folder)
    for workers in args.workers:
        streamed = listing.stream(workers=workers)
        config = FitConfig(batch_size=args.batch, epochs=100)
        rows = Rows(streamed.labels, config, jax.devices()[:1])
        first = alone(streamed, rows, 100)
        second = beside(streamed, rows, args.batch, args.rounds)
        print(f"| {workers} | {first} | {second} |", flush=True)


if __name__ == "__main__":
    main()
