"""Does `robjax.diagnose` say what is true of models whose truth is known?

    python -m benchmarks.diagnosed

Twelve models: undefended, adversarially trained, the same at a radius where it is
nearly robust, three defences that hide the gradient in front of each network,
untrained, constant, and one that looks at the background alone. Prints the verdict on
each and whether it is one of those that are true.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import robjax
from benchmarks import masked, trained
from robjax import data
from robjax.balls import Linf
from robjax.data import backgrounds

HIDDEN = ("hidden gradient", "not robust")  # a success is a fact, whatever hides
RELIES = "relies on backgrounds"
DEFENCES = ("quantised input", "rounded logits", "noise from the image")


def constant(x: jax.Array) -> jax.Array:
    """Always class 3."""
    return jnp.broadcast_to(10.0 * jax.nn.one_hot(3, 10), (len(x), 10))


def by_background(scenery: jax.Array, x: jax.Array) -> jax.Array:
    """The likeness of an image to the background of each class [K, H, W, C]."""
    return -10 * jnp.mean((x[:, None] - scenery[None]) ** 2, axis=(2, 3, 4))


def main() -> None:
    """Prints a row for each model; the exit status is the number of false verdicts."""
    standard, test, eps = trained.load("digits-standard")
    madry, _, _ = trained.load("digits-madry")
    fresh = jax.tree.map(
        lambda w: jnp.asarray(np.random.default_rng(0).normal(size=w.shape), w.dtype),
        standard,
    )
    digits = {"data": test}
    rows: list[tuple[str, Any, dict[str, Any], float, tuple[str, ...]]] = [
        ("undefended", masked.mask(standard, None), digits, eps, ("not robust",)),
        ("Madry", masked.mask(madry, None), digits, eps, ("weakly robust",)),
        (
            "Madry at ε/8",
            masked.mask(madry, None),
            digits,
            eps / 8,
            ("robust", "partly robust"),
        ),
        ("untrained", masked.mask(fresh, None), digits, eps, ("no classifier",)),
        ("constant", constant, digits, eps, ("no classifier",)),
    ]
    rows += [
        (f"{name}: {kind}", masked.mask(network, kind), digits, eps, HIDDEN)
        for name, network in (("undefended", standard), ("Madry", madry))
        for kind in DEFENCES
    ]
    split = backgrounds.make("in_domain", correlation=1.0, amplitude=0.7, classes=4)
    x = np.asarray(data.to_float(split.images, 255.0))
    assert split.masks is not None
    hole = split.masks[..., None]
    scenery = [
        ((1 - hole) * x)[split.labels == k].sum(0)
        / np.maximum((1 - hole)[split.labels == k].sum(0), 1e-6)
        for k in range(4)
    ]
    rows.append(
        (
            "background alone",
            Partial(by_background, jnp.asarray(np.stack(scenery), jnp.float32)),
            {"data": (x, split.labels), "masks": split.masks},
            0.02,
            (RELIES,),
        )
    )
    wrong = 0
    for name, model, given, radius, true in rows:
        start = time.perf_counter()
        options = {"logits_fn": model, "ball": Linf(radius), "budget": "quick"} | given
        verdict = robjax.diagnose(**options).models["model"].verdict
        said = {verdict.kind}
        if RELIES in verdict.sentence:
            said.add(RELIES)
        right = bool(said & set(true))
        wrong += not right
        print(
            f"{'true ' if right else 'FALSE'} {time.perf_counter() - start:5.0f} s  "
            f"{name}: {verdict.sentence}",
            flush=True,
        )
    sys.exit(wrong)


if __name__ == "__main__":
    main()
