"""Is what an attack calls a success one, when it is looked at alone?

    python -m benchmarks.confirmed

Every attack in every norm on 200 small random networks (40 each of five kinds), 8
images each. A success counts as confirmed if the image

* is misclassified by the same network written in NumPy, in float64;
* is misclassified in a batch of one, in float32;
* lies in the ball and in the box, measured in float64.

The last column is of minimal-norm attacks: images for which they find nothing, in a
ball without a limit, where another attack finds something.
"""

import argparse
import collections
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L1, L2, Linf
from robjax.evaluation.verdicts import measure
from robjax.model import as_logits_fn
from robjax.traced import TracedCallable

IMAGES = 8
BOUNDS = (0.0, 1.0)
KEY = jax.random.key(0)
Weights = list[tuple[Any, Any]]
"""Kernel and bias of each layer; a kernel of 4 axes is a convolution."""


class Kind(NamedTuple):
    """A family of networks: shape of the images, layers, activation."""

    size: tuple[int, ...]
    kernels: list[tuple[int, ...]]
    tanh: bool = False


KINDS = {
    "6-16-5": Kind((6,), [(6, 16), (16, 5)]),
    "64-60-10": Kind((8, 8, 1), [(64, 60), (60, 10)]),
    "16-24-24-24-24-7": Kind((4, 4, 1), [(16, 24), *3 * [(24, 24)], (24, 7)]),
    "16-32-32-5 tanh": Kind((4, 4, 1), [(16, 32), (32, 32), (32, 5)], tanh=True),
    "3 × 3 conv 4-6-5": Kind(
        (6, 6, 2), [(3, 3, 2, 4), (3, 3, 4, 6), (2 * 2 * 6, 20), (20, 5)]
    ),
}


def draw(kind: Kind, seed: int) -> Weights:
    """Weights of a random network; the gain of its layers is random, too."""
    rng = np.random.default_rng(seed)
    gain = np.exp(rng.uniform(-0.7, 1.1))
    weights = []
    for shape in kind.kernels:
        scale = gain * np.sqrt(2 / np.prod(shape[:-1]))
        kernel = rng.normal(scale=scale, size=shape)
        bias = rng.normal(scale=0.3 * gain, size=shape[-1])
        weights.append((np.float32(kernel), np.float32(bias)))
    return weights


def forward(tanh: bool, weights: Any, x: jax.Array) -> jax.Array:
    """The network in JAX."""
    for number, (kernel, bias) in enumerate(weights):
        if kernel.ndim == 4:
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            x = x.reshape(len(x), -1) @ kernel
        x = x + bias.reshape((x.ndim - 1) * (1,) + (-1,))
        if number < len(weights) - 1:
            x = jnp.tanh(x) if tanh else jax.nn.relu(x)
    return x


def oracle(tanh: bool, weights: Weights, x: np.ndarray) -> np.ndarray:
    """The same network in NumPy and float64."""
    x = x.astype(np.float64)
    for number, (kernel, bias) in enumerate(weights):
        kernel = kernel.astype(np.float64)
        if kernel.ndim == 4:
            view = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
            x = np.einsum("bhwipq,pqio->bhwo", view, kernel)
        else:
            x = x.reshape(len(x), -1) @ kernel
        x = x + bias
        if number < len(weights) - 1:
            x = np.tanh(x) if tanh else np.maximum(x, 0)
    return x


@jax.jit
def alone(model: TracedCallable, x: jax.Array) -> jax.Array:
    """The class of every image in a batch of its own."""
    return lax.map(lambda image: model(image[None])[0].argmax(), x)


MINIMAL: Mapping[str, Callable[..., attacks.AttackResult]] = {
    "deepfool": attacks.deepfool,
    "ddn": attacks.ddn,
    "fmn": attacks.fmn,
    "fab": attacks.fab,
    "carlini_wagner": functools.partial(attacks.carlini_wagner, steps=200, searches=6),
    "minimal_distance": functools.partial(attacks.minimal_distance, starts=3),
}


def kl_pgd(logits_fn, x, y, **options):
    """`attacks.kl_pgd`, which needs no labels: here they are the network's own."""
    del y
    return attacks.kl_pgd(logits_fn, x, **options)


FILLING: Mapping[str, Callable[..., attacks.AttackResult]] = {
    "fgsm": attacks.fgsm,
    "mi_fgsm": attacks.mi_fgsm,
    "pgd": functools.partial(attacks.pgd, restarts=2),
    "pgd, first success": functools.partial(attacks.pgd, early_exit=True),
    "kl_pgd": kl_pgd,
    "apgd": attacks.apgd,
    "apgd, DLR": functools.partial(attacks.apgd, loss=losses.dlr),
    "apgd_targeted": functools.partial(attacks.apgd_targeted, targets=4),
    "square": functools.partial(attacks.square, queries=300),
}
NORMS = {"L∞": Linf, "L2": L2, "L1": L1}
ONLY_L2 = ("ddn", "carlini_wagner")


class Case(NamedTuple):
    """A random network and images that it classifies as `y` in float64, too."""

    kind: Kind
    weights: Weights
    model: TracedCallable
    x: jax.Array
    y: jax.Array


def case(kind: Kind, seed: int) -> Case:
    """The network and the images of a seed."""
    weights = draw(kind, seed)
    x = np.random.default_rng([seed, 1]).uniform(size=(IMAGES, *kind.size))
    x = x.astype(np.float32)
    y = oracle(kind.tanh, weights, x).argmax(axis=1)
    model = as_logits_fn(Partial(functools.partial(forward, kind.tanh), weights))
    return Case(kind, weights, model, jnp.asarray(x), jnp.asarray(y))


def count(case: Case, result: attacks.AttackResult, ball: Any) -> dict[str, int]:
    """How many successes a result claims, and what can be said against them."""
    claimed = np.asarray(result.success)
    x_adv = np.asarray(result.x_adv)
    y = np.asarray(case.y)
    classes = oracle(case.kind.tanh, case.weights, x_adv).argmax(axis=1)
    outside, _ = measure(x_adv, np.asarray(case.x), ball, BOUNDS)
    return {
        "claimed": claimed.sum(),
        "not in float64": (claimed & (classes == y)).sum(),
        "not alone": (claimed & (np.asarray(alone(case.model, x_adv)) == y)).sum(),
        "outside": (claimed & outside).sum(),
    }


def look(case: Case, number: int) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Norm, attack and counts, of all attacks on one network."""
    key = jax.random.fold_in(KEY, number)
    for norm, make in NORMS.items():
        minimal = {k: v for k, v in MINIMAL.items() if norm == "L2" or k not in ONLY_L2}
        box = make(float(np.prod(case.kind.size)))
        reached = {
            name: attack(case.model, case.x, case.y, key=key, ball=box)
            for name, attack in minimal.items()
        }
        nearest = np.min([result.distance for result in reached.values()], axis=0)
        known = np.isfinite(nearest)
        for name, result in reached.items():
            missed = known & ~np.isfinite(np.asarray(result.distance))
            yield norm, name, {**count(case, result, box), "missed": missed.sum()}
        # the median distance, so that about half of the images fall
        ball = make(float(np.median(nearest[known])) if known.any() else 0.1)
        for name, attack in FILLING.items():
            result = attack(case.model, case.x, case.y, key=key, ball=ball)
            yield norm, name, count(case, result, ball)


def main(networks: int) -> None:
    """Prints the table."""
    totals = collections.defaultdict(collections.Counter)
    for name, kind in KINDS.items():
        for seed in range(networks):
            for norm, attack, counts in look(case(kind, seed), seed):
                totals[norm, attack].update(images=IMAGES, **counts)
        print(f"{name}: {networks} networks", flush=True)
        jax.clear_caches()  # the programs of the next kind are others
    columns = ("images", "claimed", "not in float64", "not alone", "outside", "missed")
    print(f"| norm | attack | {' | '.join(columns)} |\n|{(len(columns) + 2) * '---|'}")
    for (norm, attack), total in totals.items():
        cells = [str(total[column]) for column in columns]
        print(f"| {norm} | {attack} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Successes of attacks, confirmed.")
    parser.add_argument("--networks", type=int, default=40, help="of each kind")
    main(parser.parse_args().networks)
