"""Throughput of the attacks against their floor: k steps cost k input gradients.

    python -m benchmarks.attack_throughput [--models cnn resnet20 …] [--peers]
    python -m benchmarks.attack_throughput --every-attack [--dtype bfloat16]

For each network, batch size and step count: seconds of the first call (tracing and
compilation), images/s, milliseconds a step, and the ratio of the whole attack to
k × the standalone jitted input gradient: of the model as it is ("plain"), and of the
fastest form known (the smaller of plain and `lowering.fast`). A ratio below 1 against
"plain" means that the compiled loop is faster than what `jax.grad` gives a user.

With --every-attack: one row for each attack at full strength in each of its balls, all
so small that the images stay robust and none ends early. Compilation is the first call
less the best later one. Model calls (forward passes) and gradients (vector-Jacobian
products, several on one pass where an attack looks at several classes) are those of a
mean image; the floor is the time of as many alone. Where images end their walks one by
one, a batch runs for its slowest: that of `deepfool` and `carlini_wagner` exceeds their
floor. `benchmarks.autoattack` races the ensemble against the reference.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import networks, timing
from robjax import attacks, evaluation, losses, lowering
from robjax.balls import L0, L1, L2, Linf
from robjax.model import rounded_to

EPS, STEP = 0.1, 0.01
BATCHES = 8  # of an evaluation, all of whose images are classified as labelled


def input_gradient(logits_fn, x, y):
    """The gradient of the summed cross-entropy with respect to the images."""
    return jax.grad(lambda v: losses.cross_entropy(logits_fn(v), y).sum())(x)


def fast_input_gradient(logits_fn, x, y):
    """The same, rewritten for the CPU."""
    return lowering.fast(input_gradient)(logits_fn, x, y)


def measure(name: str, size: int, steps: int, rounds: int, peers: bool) -> list[str]:
    """Table rows for one network, batch size and step count."""
    network = networks.build(name)
    x, y = networks.batch(network, size)
    logits, key = network.logits, jax.random.key(1)
    plain, fast = jax.jit(input_gradient), jax.jit(fast_input_gradient)
    forward = jax.jit(lambda fn, v: fn(v))

    images, labels = (np.concatenate([v] * BATCHES) for v in (x, y))
    attack = partial(attacks.pgd, ball=Linf(EPS), steps=steps, step_size=STEP)

    def evaluated():
        data, suite = (images, labels), {"pgd": attack}
        return evaluation.evaluate(logits, data, suite, key=key, batch_size=size)

    candidates = {
        "forward": lambda: forward(logits, x),
        "gradient, plain": lambda: plain(logits, x, y),
        "gradient, fast": lambda: fast(logits, x, y),
        f"robjax PGD-{steps}": lambda: attack(logits, x, y, key=key),
        f"by `evaluate`, {BATCHES} batches": evaluated,
    }
    if peers:
        from benchmarks.peers import pgd as peer_pgd

        candidates |= peer_pgd.candidates(
            network, x, y, eps=EPS, step_size=STEP, steps=steps
        )
    times = timing.compare(candidates, rounds)
    single = times["gradient, plain"].best
    fastest = min(single, times["gradient, fast"].best)
    rows = []
    for candidate, t in times.items():
        alone = "gradient" in candidate or candidate == "forward"
        batches = BATCHES if "evaluate" in candidate else 1
        calls = 1 if alone else steps * batches
        rows.append(
            f"| {name} | {size} | {candidate} | {t.first:.1f} | "
            f"{1e3 * t.best / calls:.1f} | {1e3 * t.median / calls:.1f} | "
            f"{batches * size / t.best:.0f} | {t.best / calls / single:.2f} | "
            f"{t.best / calls / fastest:.2f} |"
        )
    return rows


@jax.jit
def fast_forward(logits_fn, x):
    """Logits, rewritten for the CPU."""
    return lowering.fast(logits_fn, forward=True)(x)


def _kl_pgd(logits_fn, x, y, **options):
    return attacks.kl_pgd(logits_fn, x, **options)


def _square_queries(logits_fn, x, y, **options):
    def predict(images):
        return np.asarray(fast_forward(logits_fn, images))

    return attacks.square_queries(predict, x, y, **options)


class Candidate(NamedTuple):
    """An attack with its options, the balls it is run in, and its gradients an image.

    These follow from the number of model calls where an image may end its walk early.
    """

    attack: Any
    balls: tuple[Any, ...]
    gradients: int | Callable[[float], float]


BALLS = LINF, L2_, L1_ = Linf(1e-4), L2(1e-3), L1(1e-3)
SPARSE = attacks.suite("standard", L1_)  # Auto-PGD of 30 + 30 + 40 steps, three starts
OTHERS = 9  # classes that are not the label
# `minimal_norm.refinement` chooses among them on 1 call, then takes 13 rounds of 2 each
REFINE_CALLS, REFINE = 27, OTHERS + 13
EVERY_ATTACK = {
    "fgsm": Candidate(attacks.fgsm, BALLS, 1),
    "mi_fgsm, 10 steps": Candidate(attacks.mi_fgsm, BALLS, 10),
    "pgd, 40 steps": Candidate(attacks.pgd, BALLS, 40),
    "kl_pgd, 10 steps": Candidate(_kl_pgd, BALLS, 10),
    "apgd (CE), 100 steps": Candidate(attacks.apgd, BALLS, 101),
    "apgd (DLR), 100 steps": Candidate(
        partial(attacks.apgd, loss=losses.dlr), BALLS, 101
    ),
    "apgd (CE), 5 × 100, large_reps": Candidate(SPARSE["apgd-ce"], (L1_,), 5 * 103),
    "apgd_targeted, 9 × 100": Candidate(attacks.apgd_targeted, BALLS, OTHERS * 101),
    "apgd_targeted, 5 × 100, large_reps": Candidate(SPARSE["apgd-t"], (L1_,), 5 * 103),
    "fab, 100 steps": Candidate(attacks.fab, BALLS, 100 * OTHERS + REFINE),
    "fab, 9 targets × 100": Candidate(
        partial(attacks.fab, targets=OTHERS), BALLS, OTHERS * 100 + 10
    ),
    "square, 5000 queries": Candidate(attacks.square, BALLS, 0),
    "square_queries, 5000": Candidate(_square_queries, (LINF,), 0),
    "deepfool": Candidate(
        attacks.deepfool, BALLS, lambda calls: OTHERS * (calls - REFINE_CALLS) + REFINE
    ),
    "ddn, 100 steps": Candidate(attacks.ddn, (L2_,), 100 + REFINE),
    "fmn, 100 steps": Candidate(attacks.fmn, (*BALLS, L0(0.0)), 100 + REFINE),
    "carlini_wagner, 9 × 1000": Candidate(
        attacks.carlini_wagner, (L2_,), lambda calls: calls - 1 - REFINE_CALLS + REFINE
    ),
}
COLUMNS = (
    "network | dtype | batch | attack | ball | compile s | s (best) | s (median) | "
    "images/s | model calls | gradients | ms a model call | ÷ floor"
)


def measure_every_attack(
    name: str, size: int, dtype: str, rounds: int
) -> Iterator[str]:
    """Table rows for one network, batch size and precision."""
    network = networks.build(name)
    logits, key = rounded_to(dtype, network.logits), jax.random.key(1)
    x, _ = networks.batch(network, size)
    y, gradient = fast_forward(logits, x).argmax(axis=1), jax.jit(fast_input_gradient)
    alone = timing.compare(
        {"f": lambda: fast_forward(logits, x), "g": lambda: gradient(logits, x, y)},
        rounds=20,
    )
    forward, backward = alone["f"].best, alone["g"].best - alone["f"].best
    for which, (attack, balls, gradients) in EVERY_ATTACK.items():
        for ball in balls:
            calls, seconds = 0.0, []
            for _ in range(1 + rounds):
                start = time.perf_counter()
                result = attack(logits, x, y, key=key, ball=ball)
                calls = float(result.queries.mean())  # waits for the result
                seconds.append(time.perf_counter() - start)
            first, *later = seconds
            best, median = min(later), statistics.median(later)
            count = gradients(calls) if callable(gradients) else gradients
            yield (
                f"| {name} | {dtype} | {size} | {which} | {type(ball).__name__} | "
                f"{first - best:.1f} | {best:.2f} | "
                f"{f'{median:.2f}' if rounds > 1 else ''} | {size / best:.2f} | "
                f"{calls:.0f} | {count:.0f} | {1e3 * best / calls:.2f} | "
                f"{best / (calls * forward + count * backward):.2f} |"
            )


def main() -> None:
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choices = list(networks.BUILDERS)
    defaults = ["flax_cnn", "cnn", "resnet20"]
    parser.add_argument("--models", nargs="+", choices=choices, default=defaults)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--steps", nargs="+", type=int, default=[40])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="other libraries too")
    parser.add_argument("--every-attack", action="store_true")
    parser.add_argument("--dtype", default="float32", help="with --every-attack")
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")
    if args.every_attack:
        print(f"| {COLUMNS} |\n" + 13 * "|---" + "|")
        for name in args.models:
            for size in args.batch_sizes:
                for row in measure_every_attack(name, size, args.dtype, args.rounds):
                    print(row, flush=True)
        return
    print(
        "| network | batch | what | first call s | ms per call or step (best) |"
        " (median) | images/s | ÷ plain gradient | ÷ fastest gradient |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.models:
        for size in args.batch_sizes:
            for steps in args.steps:
                for row in measure(name, size, steps, args.rounds, args.peers):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
