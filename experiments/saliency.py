"""Do robust networks look at what people look at?

Claims (Tsipras et al., arXiv 1805.12152, section 3, figures 2 to 4): the input
gradients of robust networks align with the image; their adversarial examples of large ε
look like another class, those of standard networks like noise; and on the straight way
there the image turns gradually from one class into the other.

    python -m experiments.saliency [--dataset mnist]

Two families: MLPs 784-200-100-10, standard and trained with L2 (ε of 1.5 on MNIST, 0.6
on digits; 1000 batches of 100, PGD-7), and the CNNs of `kl_metric`, standard and
trained with L∞, found again if they have been trained. What pictures claim is measured
by `robjax.metrics.saliency`: energy of the gradient at the border, its cosine with the
image, its autocorrelation, and what 3-nearest neighbours among the training images say
of the adversarial examples (L2 ε of 6 on MNIST, 1.6 on digits; L∞ ε of 0.5 and 0.3).
About 1 minute of CPU time on digits, 6 on MNIST, with CNNs that have been trained.
Numbers: docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments import common, mlps, networks, study
from experiments.common import Claim
from experiments.networks import Recipe, Splits
from experiments.study import Study
from robjax import data, models
from robjax.balls import L2, Ball, Linf
from robjax.metrics import saliency
from robjax.reporting import figures, tables

BORDER = {"digits": 1, "mnist": 4, "cifar10": 4}
TRAINED = {"digits": 0.6, "mnist": 1.5, "cifar10": 80 / 255}
LARGE = {"digits": 1.6, "mnist": 6.0, "cifar10": 4.7}
LARGE_LINF = {"digits": 0.3, "mnist": 0.5, "cifar10": 0.125}
MLP = models.MLP(10, widths=(200, 100))
STEPS = 1000
POINTS = 20
SHOWN = 8
NUMBERS = ("border energy", "alignment", "autocorrelation")
NORMS = {"L2": "L2", "Linf": "L∞"}
# family -> titles of its standard and of its robust networks
FAMILIES = {
    "MLP": ("MLP, standard", "MLP, trained with L2"),
    "CNN": ("CNN, standard", "CNN, trained with L∞"),
}


class Examples(NamedTuple):
    """Adversarial examples of one large ε.

    eps: the radius.
    images: [B, H, W, C].
    reached: [B] class that the network gives them.
    judged: [B] class that the judge gives them.
    """

    eps: float
    images: np.ndarray
    reached: np.ndarray
    judged: np.ndarray


class Measured(NamedTuple):
    """Of one network on the tracked images that it has right.

    numbers: name of NUMBERS -> mean.
    agreement: "L2" and "Linf" -> share of the images whose adversarial example has left
        the label for the network, and is what the network says for the judge too.
    votes: [POINTS] the judge's votes for that class on the way to it (L2), in the mean
        over the images that have left the label; NaN where none has.
    rise: rank correlation of these votes with the way, image by image, in the mean; 0
        where they never change, NaN as the votes.
    shown: arrays of the first SHOWN images, for figures.
    examples: "L2" and "Linf" -> those made of the same images, for figures.
    """

    numbers: dict[str, float]
    agreement: dict[str, float]
    votes: np.ndarray
    rise: float
    shown: dict[str, np.ndarray]
    examples: dict[str, Examples]


def measure(logits_fn: Any, name: str, splits: Splits) -> Measured:
    """Gradients and adversarial examples of large ε of one network."""
    train, _, tracked = splits
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    right = np.asarray(jnp.argmax(logits_fn(x), axis=1) == y)
    found = saliency.saliency(logits_fn, x, y, width=BORDER[name])
    numbers = {
        number: float(np.mean(values, where=right))
        for number, values in zip(NUMBERS, map(np.asarray, found[1:]), strict=True)
    }

    judge = {
        "reference": data.to_float(train.images, train.scale),
        "labels": train.labels,
        "num_classes": train.num_classes,
    }
    balls = {"L2": L2(LARGE[name]), "Linf": Linf(LARGE_LINF[name])}
    examples = {
        norm: _examples(logits_fn, x, y, ball, judge) for norm, ball in balls.items()
    }
    agreement = {
        norm: float(np.mean((m.judged == m.reached) & (m.reached != y), where=right))
        for norm, m in examples.items()
    }
    made = examples["L2"]
    end = jnp.asarray(made.images)
    votes = saliency.votes_along(x, end, made.reached, points=POINTS, **judge)
    # the votes for a label that is not left start at their highest
    votes = np.asarray(votes)[:, right & np.asarray(made.reached != y)].T
    along = np.broadcast_to(np.arange(POINTS), votes.shape)
    rises = np.nan_to_num(common.rank_correlation(along, votes))
    first = slice(SHOWN)
    shown = {
        "image": x[first],
        "gradient": found.gradient[first],
        "label": y[first],
        "way": saliency.interpolate(x[first], end[first], points=POINTS),
    }
    return Measured(
        numbers,
        agreement,
        _mean(votes),
        float(_mean(rises)),
        {what: np.asarray(values) for what, values in shown.items()},
        {
            norm: Examples(m.eps, m.images[first], m.reached[first], m.judged[first])
            for norm, m in examples.items()
        },
    )


def _examples(logits_fn: Any, x, y, ball: Ball, judge: dict[str, Any]) -> Examples:
    images = saliency.large_perturbation(logits_fn, x, y, ball=ball).x_adv
    reached = jnp.argmax(logits_fn(images), axis=1)
    judged = jnp.argmax(saliency.neighbour_votes(images, **judge), axis=1)
    return Examples(float(ball.eps), *map(np.asarray, (images, reached, judged)))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over images [B, ...]; NaN for none, without a warning."""
    return values.mean(axis=0) if len(values) else np.full(values.shape[1:], np.nan)


def judge(found: dict[str, list[Measured]]) -> list[Claim]:
    """Robust against standard networks of each family, seed by seed."""
    return [
        claim
        for family, titles in FAMILIES.items()
        for claim in _judge(family, *(found[title] for title in titles))
    ]


def _judge(
    family: str, standard: list[Measured], robust: list[Measured]
) -> list[Claim]:
    claims = []

    def compare(statement: str, pick: Any, sign: int, unit: str = "") -> None:
        before, after = (np.array([pick(m) for m in row]) for row in (standard, robust))
        claims.append(
            Claim(
                f"{family}: {statement}",
                f"standard {tables.plus_minus(before, unit=unit)}, robust "
                f"{tables.plus_minus(after, unit=unit)}",
                common.is_above(sign * (after - before), 0),
            )
        )

    words = ("less energy at the border", "better aligned with the image", "smoother")
    for name, claim, sign in zip(NUMBERS, words, (-1, 1, 1), strict=True):
        compare(
            f"robust gradients: {claim}", lambda m, name=name: m.numbers[name], sign
        )
    for norm, words in NORMS.items():
        statement = f"robust examples look more like the class reached ({words})"
        compare(statement, lambda m, norm=norm: m.agreement[norm], 1, "%")
    compare(
        "on the way to robust examples the judge's votes for it rise more steadily "
        "(rank correlation, image by image)",
        lambda m: m.rise,
        1,
    )
    return claims


def draw(found: dict[str, list[Measured]]) -> dict[str, Any]:
    """Gradients, adversarial examples and the ways to them; numbers."""
    first = {title: rows[0] for title, rows in found.items()}
    radii = {
        norm: f"{words} ε = {next(iter(first.values())).examples[norm].eps:.3g}"
        for norm, words in NORMS.items()
    }
    return _pictures(first, radii) | _charts(found, radii)


def _pictures(first: dict[str, Measured], radii: dict[str, str]) -> dict[str, Any]:
    """Of the networks of one seed; norm -> its radius in words."""
    images, labels = (
        next(iter(first.values())).shown[what] for what in ("image", "label")
    )
    columns = [f"label {label}" for label in labels]
    grey = images.shape[-1] == 1
    view = saliency.signed_view if grey else saliency.sigma_view
    colours = "blue raises, red lowers the loss" if grey else "±3σ"
    gradients = {title: view(m.shown["gradient"]) for title, m in first.items()}
    drawn = {
        "gradients": figures.pictures(
            {"image": images, **gradients},
            title=f"Gradients of the loss ({colours})",
            columns=columns,
        )
    }
    for norm, radius in radii.items():
        made = {title: m.examples[norm] for title, m in first.items()}
        captions = {
            title: [
                f"says {a}, judge {b}" for a, b in zip(m.reached, m.judged, strict=True)
            ]
            for title, m in made.items()
        }
        drawn[f"large_eps_{norm.lower()}"] = figures.pictures(
            {"image": images} | {title: m.images for title, m in made.items()},
            title=f"Adversarial examples of large ε ({radius})",
            columns=columns,
            captions=captions,
        )
    at = np.linspace(0, POINTS - 1, SHOWN).round().astype(int)
    drawn["interpolation"] = figures.pictures(
        {title: m.shown["way"][at, 1] for title, m in first.items()},
        title=f"On the way to the adversarial example ({radii['L2']})",
        columns=[f"t/‖δ‖ = {t:.2f}" for t in np.linspace(0, 1, POINTS)[at]],
    )
    return drawn


def _charts(found: dict[str, list[Measured]], radii: dict[str, str]) -> dict[str, Any]:
    """Of all seeds; norm -> its radius in words."""
    votes = {title: np.stack([m.votes for m in rows]) for title, rows in found.items()}
    bars = {
        title: {name: [m.numbers[name] for m in rows] for name in NUMBERS}
        for title, rows in found.items()
    }
    agreement = {
        title: {
            words: [m.agreement[norm] for m in rows] for norm, words in radii.items()
        }
        for title, rows in found.items()
    }
    panel = figures.Panel(votes, "", "votes for the class reached [%]", "percent")
    return {
        "path": figures.curves(
            [[panel]],
            title=f"What a 3-NN judge sees on the way ({radii['L2']})",
            x=np.linspace(0, 1, POINTS),
            xlabel="share of the way, t / ‖δ‖",
        ),
        "numbers": figures.bars(
            {"": bars}, title="What the gradients look like", ylabel="mean over images"
        ),
        "agreement": figures.bars(
            {"": agreement},
            title="A 3-NN judge agrees with the network",
            ylabel="adversarial examples [%]",
            percent=True,
        ),
    }


def collect(
    recipes: Mapping[str, Sequence[Recipe]], results: Path
) -> dict[str, list[Measured]]:
    """Title -> what is measured of the network of each seed."""
    rows = list(recipes.values())
    name, seeds = rows[0][0].dataset, len(rows[0])
    splits = networks.load_splits(rows[0][0])
    weights = mlps.train(
        data.to_float(splits[0].images, splits[0].scale),
        jnp.asarray(splits[0].labels),
        jnp.tile(jnp.arange(len(splits[0].labels)), (2 * seeds, 1)),
        jnp.full(2 * seeds, len(splits[0].labels)),
        jnp.repeat(jnp.array([0.0, TRAINED[name]]), seeds),
        jnp.tile(jnp.arange(seeds), 2),
        model=MLP,
        ball=L2,
        steps=20 if rows[0][0].model == "linear" else STEPS,  # linear: a smoke run
    )
    perceptrons = [
        Partial(MLP.apply, mlps.select(weights, i)) for i in range(2 * seeds)
    ]
    trained = [
        networks.train(recipe, networks.obtain(recipe, results), splits)
        for row in rows
        for recipe in row
    ]
    found = [measure(fn, name, splits) for fn in perceptrons + trained]
    titles = [title for family in FAMILIES.values() for title in family]
    return {title: found[i * seeds : (i + 1) * seeds] for i, title in enumerate(titles)}


STUDY = Study(
    name="saliency",
    question="Do robust networks look at what people look at?",
    claim="Gradients of robust networks align with the image, and their adversarial "
    "examples of large ε look like another class.",
    variants=study.by_objective("standard", "madry"),
    judge=judge,
    draw=draw,
    collect=collect,
    note="MLPs trained with L2 on the same images, 1000 batches of 100.",
)

if __name__ == "__main__":
    study.main(STUDY)
