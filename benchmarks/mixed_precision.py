"""Whether training in bfloat16 reaches the accuracy of training in float32.

    python -m benchmarks.mixed_precision [mnist-mlp digits-cnn digits-resnet]

The same runs from the same seeds, once with ``FitConfig(dtype="bfloat16")``. The
trained weights, which are float32 either way, are attacked in float32, and those
trained in bfloat16 also rounded to it, which is another model. A difference counts if
it is larger than the spread of the float32 runs over their seeds. A CPU emulates
bfloat16: the seconds say what that costs there, not what an accelerator gains.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from robjax import attacks, data, models, training
from robjax.balls import Linf
from robjax.model import rounded_to
from robjax.training import FitConfig, objectives


class Setting(NamedTuple):
    """A network, its data and its threat model; attacks in training take 5 steps."""

    model: Any
    data: str
    eps: float
    step_size: float
    config: FitConfig
    train: int
    test: int


_ADAM = FitConfig(optimizer="adam", learning_rate=3e-3, schedule="cosine")
_DIGITS = dataclasses.replace(_ADAM, epochs=8, batch_size=64, warmup_epochs=2)
_MNIST = dataclasses.replace(_ADAM, epochs=3, warmup_epochs=1)
_NORM = models.ResNet(10, blocks_per_group=1, channels=(8, 16))
SETTINGS = {
    "mnist-mlp": Setting(
        models.MLP(10, widths=(64,)), "mnist", 0.1, 0.04, _MNIST, 6000, 1000
    ),
    "digits-cnn": Setting(
        models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32),
        "digits", 0.15, 0.05, _DIGITS, 1437, 360,
    ),
    "digits-resnet": Setting(_NORM, "digits", 0.15, 0.05, _DIGITS, 1437, 360),
}  # fmt: skip


@jax.jit
def accuracies(logits_fn: Any, x: Any, y: Any, eps: float) -> tuple[Any, Any]:
    """Clean accuracy, and that under PGD-20 in L∞."""
    key = jax.random.key(0)
    found = attacks.pgd(logits_fn, x, y, key=key, ball=Linf(eps), steps=20)
    clean = logits_fn(x).argmax(1) == y
    robust = clean & (logits_fn(found.x_adv).argmax(1) == y)
    return clean.mean(), robust.mean()


@functools.lru_cache
def images(name: str, split: str, count: int) -> data.Dataset:
    """The first images of a data set, loaded once."""
    return data.subset(data.load(name, split), count)


def run(setting: Setting, objective: Any, dtype: str | None, seed: int) -> list[float]:
    """Clean and robust accuracy in float32, the same rounded to bfloat16, seconds."""
    train = images(setting.data, "train", setting.train)
    test = images(setting.data, "test", setting.test)
    config = dataclasses.replace(setting.config, dtype=dtype, seed=seed)
    start = time.process_time()
    state = training.fit(
        setting.model, train, objective=objective, config=config,
        devices=jax.devices()[:1], progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    exact = training.logits_fn(setting.model, state.weights)
    x, y = data.to_float(test.images, test.scale), jnp.asarray(test.labels)
    found = []
    for logits_fn in (exact, rounded_to(jnp.bfloat16, exact)):
        found += map(float, accuracies(logits_fn, x, y, setting.eps))
    return [*found, seconds]


def rows(name: str, objective: str, seeds: int) -> Iterator[str]:
    """The two rows of a setting and an objective."""
    setting = SETTINGS[name]
    chosen = functools.partial(
        getattr(objectives, objective),
        ball=Linf(setting.eps),
        steps=5,
        step_size=setting.step_size,
    )
    for dtype in (None, "bfloat16"):
        runs = [run(setting, chosen, dtype, seed) for seed in range(seeds)]
        *shares, seconds = np.array(runs).T
        cells = [f"{100 * s.mean():.1f} ± {100 * s.std(ddof=1):.1f}" for s in shares]
        if dtype is None:
            cells[2:] = ["", ""]
        yield (
            f"| {name} | {objective} | {dtype or 'float32'} | {' | '.join(cells)} | "
            f"{np.median(seconds):.0f} |"
        )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    both = ["adversarial", "trades"]
    parser.add_argument("--objectives", nargs="+", default=both, choices=both)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")
    print(
        "| network | objective | trained in | clean % | robust % | clean %, bfloat16 | "
        "robust %, bfloat16 | CPU s |\n" + 8 * "|---" + "|"
    )
    for objective in args.objectives:
        for name in args.settings:
            for row in rows(name, objective, args.seeds):
                print(row, flush=True)


if __name__ == "__main__":
    main()
