"""What a step of training costs against its floor.

    python -m benchmarks.training_throughput [--models cnn] [--batch 128] [--rounds 7]

The floor of a PGD-k adversarial step is k input gradients and one gradient for the
weights, each measured alone, compiled in the form that the trainer uses. The other
objectives stand beside it, each with its own floor in passes of these two kinds.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, timing
from benchmarks.attack_throughput import fast_input_gradient
from robjax import losses, lowering
from robjax.balls import Linf
from robjax.training import FitConfig, objectives, parallel
from robjax.training.state import create_state, make_optimizer
from robjax.training.step import make_step

STEPS = 10
ATTACK: dict[str, Any] = {"ball": Linf(8 / 255), "steps": STEPS, "step_size": 2 / 255}
# objective, input gradients, full gradients of its floor
OBJECTIVES: dict[str, tuple[Callable, int, int]] = {
    "standard": (objectives.standard, 0, 1),
    f"PGD-{STEPS}": (functools.partial(objectives.adversarial, **ATTACK), STEPS, 1),
    "N-FGSM": (functools.partial(objectives.n_fgsm, ball=ATTACK["ball"]), 1, 1),
    f"TRADES-{STEPS}": (functools.partial(objectives.trades, **ATTACK), STEPS, 2),
    f"MART-{STEPS}": (functools.partial(objectives.mart, **ATTACK), STEPS, 2),
    f"AWP-{STEPS}": (functools.partial(objectives.awp, **ATTACK), STEPS, 2),
}


def measure(name: str, size: int, rounds: int) -> list[str]:
    """The rows of one network."""
    network = networks.build(name)
    model, variables = network.model, network.variables
    x, y = networks.batch(network, size)
    images = np.asarray(255 * x, np.uint8)
    config = FitConfig(batch_size=size, optimizer="adam", learning_rate=1e-3)
    optimizer = make_optimizer(config, 100)
    trained = parallel.join_batch_norm(model)
    start = create_state(trained, x[:1], optimizer, config)
    devices = jax.devices()[:1]

    def candidate(objective: Callable) -> Callable[[], Any]:
        step = make_step(
            trained, objective, optimizer, config, steps_per_epoch=100, scale=255.0
        )
        step = parallel.data_parallel(step, devices)
        # the step takes its state's buffers, so each call goes on from the last one
        box = [parallel.replicate(jax.tree.map(jnp.copy, start), devices)]
        rows = images, np.asarray(y), np.arange(size, dtype=np.int32)
        rows = tuple(array[None] for array in rows)

        def run():
            box[0], seen = step(box[0], *rows)
            return seen

        return run

    def full(params, x, y):
        # in train mode, as the trainer has it: batch norm by the batch
        state = {**variables, "params": params}
        logits, _ = model.apply(state, x, train=True, mutable=["batch_stats"])
        return jnp.mean(losses.cross_entropy(jnp.asarray(logits), y))

    gradient = jax.jit(lambda *a: lowering.fast(jax.grad(full))(*a))
    of_input = jax.jit(fast_input_gradient)
    candidates: dict[str, Callable[[], Any]] = {
        "input gradient": lambda: of_input(network.logits, x, y),
        "full gradient": lambda: gradient(variables["params"], x, y),
    }
    candidates |= {name: candidate(o[0]) for name, o in OBJECTIVES.items()}
    times = timing.compare(candidates, rounds)
    inner, outer = times["input gradient"], times["full gradient"]
    rows = []
    for what, taken in times.items():
        floor = ""
        if what in OBJECTIVES:
            _, inputs, fulls = OBJECTIVES[what]
            best = inputs * inner.best + fulls * outer.best
            median = inputs * inner.median + fulls * outer.median
            floor = f"{taken.best / best:.2f} | {taken.median / median:.2f}"
        rows.append(
            f"| {name} | {size} | {what} | {taken.first:.1f} | {1e3 * taken.best:.1f} |"
            f" {1e3 * taken.median:.1f} | {size / taken.best:.0f} | {floor or ' | '} |"
        )
    return rows


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    models = [name for name in networks.BUILDERS if name != "flax_cnn"]  # no training
    parser.add_argument("--models", nargs="+", default=["cnn"], choices=models)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")
    print(
        "| network | batch | what | first call s | ms a step (best) | (median) | "
        "images/s | ÷ floor (best) | ÷ floor (median) |\n" + 9 * "|---" + "|"
    )
    for name in args.models:
        print("\n".join(measure(name, args.batch, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
