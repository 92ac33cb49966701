"""Which short runs of Auto-PGD break most, by themselves and after one another.

    python -m benchmarks.schedules

The suite "fast" was chosen by this table, on two networks that `autoattack.RACE` does
not judge it on: digits-madry, and a small CNN trained on MNIST without attacks, from
images and a seed of its own. Of the images that 10 steps on the cross-entropy leave:
the share that each schedule breaks of those that any of them breaks with any of `KEYS`
keys, and forward-equivalents for an image that stays robust (a gradient is 3).

Names: "ce 4×25" is 25 steps on the cross-entropy from each of four starts, "4×2×25" is
25 steps from each of two starts towards each of four classes, "9×10+1×100" is 10 steps
towards each of nine classes and then 100 towards the nearest.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from benchmarks import timing, trained
from benchmarks.autoattack import images_of
from robjax import attacks, data, training
from robjax.balls import L1, L2, Ball, Linf
from robjax.training import objectives

KEYS = 2
TESTED = 600
CASES: dict[str, tuple[Ball, ...]] = {
    "digits-madry": (Linf(0.2), L2(0.6), L1(2.5)),
    "mnist-other": (Linf(0.1), L2(1.0), L1(6.0)),
}
RUNS: dict[str, dict[str, Any]] = {
    "9×10+1×100": {"steps": 10, "longer": (1, 100)},
    "9×100": {},
    "4×3×25": {"steps": 25, "targets": 4, "restarts": 3},
    "4×2×25": {"steps": 25, "targets": 4, "restarts": 2},
    "3×2×25": {"steps": 25, "targets": 3, "restarts": 2},
    "ce 100": {},
    "ce 4×25": {"steps": 25, "restarts": 4},
    "ce 8×25": {"steps": 25, "restarts": 8},
}
TOGETHER = [
    (targeted, untargeted)
    for targeted in ("9×10+1×100", "4×2×25", "3×2×25")
    for untargeted in ("ce 100", "ce 4×25", "ce 8×25")
]


def mnist_other() -> tuple[Partial, jax.Array, jax.Array]:
    """The small CNN trained on 4,000 other images; test images of the second half."""
    train = data.load("mnist", "train")
    images, labels = (np.asarray(v)[20000:24000] for v in (train.images, train.labels))
    model = trained.SHAPES["small"](1)
    fit = dataclasses.replace(trained.PLANS["mnist"].fit, learning_rate=1e-3, seed=7)
    state = training.fit(
        model,
        data.from_arrays(images, labels),
        objective=objectives.standard,
        config=fit,
        run_dir=trained.FOLDER / "mnist-other",
        resume=True,
    )
    test, rows = data.load("mnist", "test"), slice(5000, 5000 + TESTED)
    x = data.to_float(test.images[rows], test.scale)
    return Partial(model.apply, state.weights), x, jax.numpy.asarray(test.labels[rows])


def column(name: str, ball: Ball) -> dict[str, tuple[float, float]]:
    """Share [%] and calls of every schedule on one network in one ball."""
    if name == "mnist-other":
        logits_fn, x, y = mnist_other()
    else:
        logits_fn, x, y, _ = images_of(name, TESTED)
    first = attacks.apgd(logits_fn, x, y, key=jax.random.key(5), ball=ball, steps=10)
    x, y = x[~first.success], y[~first.success]
    won, calls = {}, {}
    for run, options in RUNS.items():
        attack = attacks.apgd if run.startswith("ce") else attacks.apgd_targeted
        attack = partial(attack, ball=ball, large_reps=isinstance(ball, L1), **options)
        found = [attack(logits_fn, x, y, key=jax.random.key(k)) for k in range(KEYS)]
        won[run] = np.stack([np.asarray(result.success) for result in found])
        robust = ~np.asarray(found[0].success)
        calls[run] = 3 * np.asarray(found[0].queries)[robust].mean()
    for pair in TOGETHER:
        both = ", ".join(pair)
        won[both] = won[pair[0]] | won[pair[1]]
        calls[both] = calls[pair[0]] + calls[pair[1]]
    broken = np.stack(list(won.values())).any((0, 1)).sum()
    return {
        run: (100 * wins.sum(1).mean() / broken, calls[run])
        for run, wins in won.items()
    }


def main() -> None:
    """Prints one table, a row for each schedule."""
    print(f"Measured on {timing.environment()}\n", flush=True)
    cases = [(name, ball) for name, balls in CASES.items() for ball in balls]
    columns = [column(name, ball) for name, ball in cases]
    heads = [f"{name}, {type(ball).__name__} {ball.eps}" for name, ball in cases]
    print(f"| schedule | calls | {' | '.join(heads)} |\n|{'---|' * (2 + len(cases))}")
    for run, (_, calls) in columns[0].items():
        shares = " | ".join(f"{found[run][0]:.1f} %" for found in columns)
        print(f"| {run} | {calls:.0f} | {shares} |")


if __name__ == "__main__":
    main()
