"""Does dropping pixels undo attacks, better than cutting a square out?

Claim (Ren et al., arXiv 2103.07364, table 1): attacks on standard networks need
interactions of high orders. Dropping single pixels destroys these, cutting out a square
leaves all that is outside of it together. So of the adversarial examples of a standard
ResNet-18, dropout of 10, 20, 30 % of the pixels corrects 19.6, 35.6, 44.1 %, cutout of
a quarter of the image 7.1 %; for a robust one 22.5, 33.8, 39.2 and 23.9 %.

    python -m experiments.dropout_cutout [--dataset mnist]

PGD-20 stops at its first success. Dropped pixels become the mean of their surroundings,
the square takes the mean colour of the training images; 10 draws for each image. Beside
it, how many normal images stay right under the same changes. Cost: 1 minute of CPU time
with networks that have been trained. Numbers: docs/verdicts.md.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, networks, study
from experiments.common import Claim
from experiments.games import ROBUST, STANDARD
from experiments.networks import Recipe
from experiments.study import Study
from robjax import data
from robjax.metrics import interactions
from robjax.reporting import figures, tables

SHARES = (0.1, 0.2, 0.3)
DROPOUT = {share: f"dropout {share:.0%}" for share in SHARES}
CUTOUT = "cutout 25%"
NAMES = (CUTOUT, *DROPOUT.values())
DRAWS = 10

Found = Mapping[str, Sequence[Mapping[str, float]]]
"""Title -> for each seed: name -> share corrected; "normal, <name>" -> share right."""


def measure(
    recipe: Recipe, logits_fn: Any, splits: networks.Splits
) -> dict[str, float]:
    """Attacks the tracked images that are right, and changes what comes out."""
    train, _, tracked = splits
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    right = np.asarray(_said(logits_fn, x) == y)
    found = networks.tracked_attack(recipe)(logits_fn, x, y)
    fooled = right & np.asarray(found.success)
    colour = data.to_float(train.images, train.scale).mean((0, 1, 2))
    numbers = {}
    for name, change in _changes(colour).items():
        for prefix, images, which in (
            ("", found.x_adv, fooled),
            ("normal, ", x, right),
        ):
            kept = _right_after(logits_fn, change, images, y)
            # no image, no share
            numbers[prefix + name] = (
                float(kept[which].mean()) if which.any() else np.nan
            )
    return numbers


def _changes(colour: jax.Array) -> dict[str, Callable[..., jax.Array]]:
    cut = functools.partial(interactions.cutout, share=0.25, fill=colour)
    return {CUTOUT: cut} | {
        name: functools.partial(interactions.pixel_dropout, share=share)
        for share, name in DROPOUT.items()
    }


def _right_after(
    logits_fn: Any, change: Callable[..., jax.Array], x: jax.Array, y: jax.Array
) -> np.ndarray:
    """[B] in which share of the draws the changed image is right."""
    draws = [
        _said(logits_fn, change(x, key=key)) == y
        for key in jax.random.split(jax.random.key(0), DRAWS)
    ]
    return np.mean(draws, axis=0)


@jax.jit
def _said(logits_fn: Any, x: jax.Array) -> jax.Array:
    return jnp.argmax(logits_fn(x), axis=1)


def judge(found: Found) -> list[Claim]:
    """More dropout corrects more; dropout against cutout; robust against standard."""
    claims = []
    rates = {
        title: {name: np.array([row[name] for row in rows]) for name in NAMES}
        for title, rows in found.items()
    }
    most = DROPOUT[SHARES[-1]]
    for title, of in rates.items():
        steps = np.diff([of[name] for name in DROPOUT.values()], axis=0).min(0)
        words = ", ".join(
            f"{name} {tables.plus_minus(of[name], unit='%')}" for name in NAMES
        )
        claims.append(
            Claim(
                f"{title}: the more pixels are dropped, the more is corrected (every "
                "step)",
                words,
                common.is_above(steps, 0),
            )
        )
    standard, robust = rates[STANDARD], rates[ROBUST]
    ahead, behind = standard[most] - standard[CUTOUT], robust[most] - robust[CUTOUT]
    claims += [
        Claim(
            f"{STANDARD}: {most} corrects more than {CUTOUT}",
            f"by {tables.plus_minus(100 * ahead)} points",
            common.is_above(ahead, 0),
        ),
        Claim(
            f"{most} is further ahead of {CUTOUT} for the standard network",
            f"by {tables.plus_minus(100 * ahead)} points, robust "
            f"{tables.plus_minus(100 * behind)}",
            common.is_above(ahead - behind, 0),
        ),
    ]
    return claims


def draw(found: Found) -> dict[str, Any]:
    """Adversarial examples corrected and normal images that stay right."""
    panels = {
        words: {
            title: {name: [row[prefix + name] for row in rows] for name in NAMES}
            for title, rows in found.items()
        }
        for words, prefix in (("adversarial", ""), ("normal", "normal, "))
    }
    title = "What dropout and cutout correct"
    bars = figures.bars(panels, title=title, ylabel="right after it [%]", percent=True)
    return {"corrected": bars}


STUDY = Study(
    name="dropout_cutout",
    question="Does dropping pixels undo attacks, better than cutting a square out?",
    claim="Pixel dropout corrects adversarial examples of standard networks, the more "
    "the more it drops, and more than cutout does.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
)

if __name__ == "__main__":
    study.main(STUDY)
