"""Throughput of the attacks against their floor: k steps cost k input gradients.

    python -m benchmarks.attack_throughput [--models cnn resnet20 …] [--peers]
    python -m benchmarks.attack_throughput --every-attack [--batch-sizes 32]

For each network, batch size and step count: seconds of the first call (tracing and
compilation), images/s, milliseconds a step, and the ratio of the whole attack to
k × the standalone jitted input gradient: of the model as it is ("plain"), and of the
fastest form known (the smaller of plain and `lowering.fast`). A ratio below 1 against
"plain" means that the compiled loop is faster than what `jax.grad` gives a user.

With --every-attack: one row for each attack at full strength on images that stay
robust, so that none ends early: compilation, model calls and gradients an image,
images/s, and the time over that of as many gradients and forward passes alone.
`benchmarks.autoattack` races the ensemble against the reference.
"""

import argparse
import time
from functools import partial
from typing import Any, NamedTuple

import jax

from benchmarks import networks, timing
from robjax import attacks, losses, lowering
from robjax.balls import L2, Linf

EPS, STEP = 0.1, 0.01


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

    def pgd():
        ball = Linf(EPS)
        return attacks.pgd(
            logits, x, y, key=key, ball=ball, steps=steps, step_size=STEP
        )

    candidates = {
        "forward": lambda: forward(logits, x),
        "gradient, plain": lambda: plain(logits, x, y),
        "gradient, fast": lambda: fast(logits, x, y),
        f"robjax PGD-{steps}": pgd,
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
        calls = 1 if alone else steps
        rows.append(
            f"| {name} | {size} | {candidate} | {t.first:.1f} | "
            f"{1e3 * t.best / calls:.1f} | {1e3 * t.median / calls:.1f} | "
            f"{size / t.best:.0f} | {t.best / calls / single:.2f} | "
            f"{t.best / calls / fastest:.2f} |"
        )
    return rows


class Candidate(NamedTuple):
    """An attack with its options, and the gradients it takes an image."""

    attack: Any
    gradients: int


TINY = Linf(1e-4)  # where the untrained networks stay robust
EVERY_ATTACK = {
    "fgsm": Candidate(partial(attacks.fgsm, ball=TINY), 1),
    "mi_fgsm, 10 steps": Candidate(partial(attacks.mi_fgsm, ball=TINY), 10),
    "pgd, 40 steps": Candidate(partial(attacks.pgd, ball=TINY, steps=40), 40),
    "apgd (CE), 100 steps": Candidate(partial(attacks.apgd, ball=TINY), 101),
    "apgd_targeted, 9 × 100": Candidate(partial(attacks.apgd_targeted, ball=TINY), 909),
    "fab, 9 targets × 100": Candidate(
        partial(attacks.fab, ball=TINY, targets=9, early_exit=True), 922
    ),
    "square, 5000 queries": Candidate(partial(attacks.square, ball=TINY), 0),
    "deepfool": Candidate(partial(attacks.deepfool, ball=L2(1e-3)), 0),
    "ddn": Candidate(partial(attacks.ddn, ball=L2(1e-3)), 0),
    "fmn": Candidate(partial(attacks.fmn, ball=TINY), 0),
    "carlini_wagner": Candidate(partial(attacks.carlini_wagner, ball=L2(1e-3)), 0),
}


def measure_every_attack(name: str, size: int, rounds: int) -> list[str]:
    """Table rows for one network and batch size."""
    network = networks.build(name)
    x, y = networks.batch(network, size)
    logits, key = network.logits, jax.random.key(1)
    fast = jax.jit(fast_input_gradient)
    forward = jax.jit(lambda fn, v: lowering.fast(fn, forward=True)(v))
    alone = timing.compare(
        {"f": lambda: forward(logits, x), "g": lambda: fast(logits, x, y)}, rounds=20
    )
    rows = []
    for which, (attack, gradients) in EVERY_ATTACK.items():

        def run(attack=attack):
            return attack(logits, x, y, key=key)

        calls = 0.0
        seconds = []
        for _ in range(1 + rounds):
            start = time.perf_counter()
            calls = float(run().queries.mean())  # waits for the result
            seconds.append(time.perf_counter() - start)
        first, best = seconds[0], min(seconds[1:])
        floor = ""
        if gradients or which.startswith("square"):
            least = gradients * alone["g"].best + (calls - gradients) * alone["f"].best
            floor = f"{best / least:.2f}"
        rows.append(
            f"| {name} | {size} | {which} | {first:.1f} | {calls:.0f} | "
            f"{gradients or ''} | {best:.2f} | {size / best:.2f} | {floor} |"
        )
    return rows


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
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")
    if args.every_attack:
        print(
            "| network | batch | attack | first call s | model calls an image | "
            "gradients | s | images/s | ÷ floor |\n" + 9 * "|---" + "|"
        )
        for name in args.models:
            for size in args.batch_sizes:
                for row in measure_every_attack(name, size, args.rounds):
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
