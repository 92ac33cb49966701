"""Whether training in bfloat16 reaches the accuracy of training in float32.

    python -m benchmarks.mixed_precision [digits digits-norm mnist]

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
from robjax import attacks, data, evaluation, models, training
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
_DIGITS = dataclasses.replace(_ADAM, epochs=10, batch_size=64, warmup_epochs=3)
SETTINGS = {
    "digits": Setting(
        models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32),
        "digits", 0.15, 0.05, _DIGITS, 1437, 360,
    ),
    "digits-norm": Setting(
        models.ResNet(10, blocks_per_group=1, channels=(8, 16)),
        "digits", 0.15, 0.05, _DIGITS, 1437, 360,
    ),
    "mnist": Setting(
        models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32),
        "mnist", 0.15, 0.05, dataclasses.replace(_ADAM, epochs=4, warmup_epochs=1),
        3000, 500,
    ),
}  # fmt: skip


def run(setting: Setting, objective: Any, dtype: str | None, seed: int) -> list[float]:
    """Clean and robust accuracy in float32, the same rounded to bfloat16, seconds."""
    train = data.subset(data.load(setting.data, "train"), setting.train)
    test = data.subset(data.load(setting.data, "test"), setting.test)
    config = dataclasses.replace(setting.config, dtype=dtype, seed=seed)
    start = time.process_time()
    state = training.fit(
        setting.model, train, objective=objective, config=config,
        devices=jax.devices()[:1], progress=False,
    )  # fmt: skip
    seconds = time.process_time() - start
    exact = training.logits_fn(setting.model, state.weights)
    pgd = functools.partial(attacks.pgd, ball=Linf(setting.eps), steps=20)
    found = []
    for logits_fn in (exact, rounded_to(jnp.bfloat16, exact)):
        table = evaluation.evaluate(
            logits_fn, test, {"PGD-20": pgd}, key=jax.random.key(0), batch_size=180
        )
        found += [table.accuracy.mean, table.robust_accuracy().mean]
    return [*found, seconds]


def rows(name: str, wanted: list[str], seeds: int) -> Iterator[str]:
    """The rows of one setting."""
    setting = SETTINGS[name]
    attack: dict[str, Any] = {
        "ball": Linf(setting.eps), "steps": 5, "step_size": setting.step_size,
    }  # fmt: skip
    tried = {
        "adversarial": functools.partial(objectives.adversarial, **attack),
        "trades": functools.partial(objectives.trades, **attack),
    }
    for what in wanted:
        for dtype in (None, "bfloat16"):
            runs = [run(setting, tried[what], dtype, seed) for seed in range(seeds)]
            *shares, seconds = np.array(runs).T
            cells = [
                f"{100 * s.mean():.1f} ± {100 * s.std(ddof=1):.1f}" for s in shares
            ]
            if dtype is None:
                cells[2:] = ["", ""]
            yield (
                f"| {name} | {what} | {dtype or 'float32'} | {' | '.join(cells)} | "
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
    for name in args.settings:
        for row in rows(name, args.objectives, args.seeds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
