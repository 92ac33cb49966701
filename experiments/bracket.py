"""How much of what attacks leave can be proven, and do explanations tell?

Claims: networks trained on proven logits are proven nearly as far as they resist
attacks (Gowal et al., arXiv 1810.12715; Zhang et al., arXiv 1906.06316, who find that
CROWN-IBP proves more than IBP); networks trained on attacks are not. What the five
explanations measure goes with what can be proven.

    python -m experiments.bracket [--dataset mnist]

Strided CNNs, five trainings at ε = 0.1 in L∞. Attacked by the suite "fast" and, on what
it leaves, proven by the cheapest method that can, up to α-CROWN, at a half, once, one
and a half times and twice the ε of training, on the first test images. An image counts
as attacked if a smaller ε broke it, and as proven if a larger ε was proven.

The explanations, each one number of a network: the spectral norm of the Fisher matrix;
the alignment of the input gradient with the image; the average distance to a changed
prediction (ARC/δ₂, δ₂ = 2ε); the relative sensitivity to noise on the digit against
noise around it; how much an attack changes interactions, the mean of |ΔI| over the
orders. 15 minutes of CPU time on digits, over an hour on MNIST. Numbers:
docs/verdicts.md.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common, networks, study
from experiments.common import Claim
from experiments.networks import TITLES, Recipe, Splits
from experiments.study import Arguments, Study, Variants
from robjax import attacks, certification, data, evaluation, metrics
from robjax.balls import Linf
from robjax.metrics import interactions, saliency, spurious, strong_robustness
from robjax.reporting import figures, tables

EPS = 0.1
TIMES = np.array([0.5, 1.0, 1.5, 2.0])  # radii, in units of EPS
TRAINED = 1  # index of the ε of training
IMAGES = {"digits": 200}  # of other data sets:
FEWER = 100
BATCH = 50  # images that are proven at a time
PLAYED = 10  # images whose interactions are measured
INK = 0.1  # a digit's pixels are brighter
NAMES = TITLES | {"fisher": "TRADES", "ibp": "IBP", "crown_ibp": "CROWN-IBP"}
CERTIFIED = (NAMES["ibp"], NAMES["crown_ibp"])
# explanation -> the sign that goes with robustness
EXPLANATIONS = {
    "Fisher spectral norm": -1,
    "alignment of the input gradient": 1,
    "ARC/δ₂": 1,
    "relative foreground sensitivity": 1,
    "mean |ΔI|": -1,
}
EPOCHS = {"digits": 60, "mnist": 12}
WARMUP = {"digits": 20, "mnist": 3}

Found = Mapping[str, Sequence[Mapping[str, Any]]]
"""Training -> what was measured of the network of each seed."""


def variants(arguments: Arguments) -> Variants:
    """One network for each training; the same schedule for all."""
    known = arguments.dataset in EPOCHS
    base = networks.RECIPES[arguments.dataset].fit
    fit = dataclasses.replace(
        base,
        epochs=EPOCHS[arguments.dataset] if known else base.epochs,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_epochs=WARMUP[arguments.dataset] if known else base.warmup_epochs,
        weight_decay=0.0,
    )
    shared = {
        "model": "strided_cnn",
        "eps": EPS,
        "step_size": 2.5 * EPS / 7,
        "steps": 7,
        "explained": False,
        "fit": fit,
    }
    return {NAMES[name]: shared | {"objective": name} for name in NAMES}


def measure(recipe: Recipe, network: Any, splits: Splits) -> dict[str, Any]:
    """Both sides of the bracket over ε, and the explanations."""
    images = IMAGES.get(recipe.dataset, FEWER)
    test = data.subset(splits[1], min(images, len(splits[1].labels)))
    x, y = data.to_float(test.images, test.scale), jnp.asarray(test.labels)
    clean = np.asarray(jnp.argmax(network(x), axis=1) == y)
    robust, attacked, proven = clean, [], []
    for eps in recipe.eps * TIMES:
        ball = Linf(jnp.float32(eps))
        robust = _survivors(network, x, y, robust, ball)
        attacked.append(robust)
        proven.append(_proven(network, x, y, robust, ball))
    # what is proven at an ε is proven at all smaller ones
    proven = np.maximum.accumulate(proven[::-1])[::-1]
    return {
        "clean": np.mean(clean),
        "attacked": np.mean(attacked, axis=1),
        "proven": np.mean(proven, axis=1),
        "contradictions": np.count_nonzero(proven & ~np.asarray(attacked)),
        **explain(recipe, network, x, y),
    }


def _survivors(
    network: Any, x: jax.Array, y: jax.Array, left: np.ndarray, ball: Linf
) -> np.ndarray:
    """[N] of the images that are `left`, those that no attack of "fast" fools."""
    index, found = np.flatnonzero(left), left.copy()
    if index.size:
        some = x[index], y[index]
        suite, key = attacks.suite("fast", ball), jax.random.key(3)
        judged = evaluation.evaluate(network, some, suite, key=key, cascade=True)
        found[index] = judged.robust
    return found


def _proven(
    network: Any, x: jax.Array, y: jax.Array, left: np.ndarray, ball: Linf
) -> np.ndarray:
    """[N] of the images that are `left`, those that some method proves."""
    index, found = np.flatnonzero(left), np.zeros(len(left), bool)
    if index.size:
        # `certify` compiles anew for fewer images than a batch has
        some = np.resize(index, max(len(index), BATCH))
        certificate = certification.certify(
            network, x[some], y[some], ball=ball, batch_size=BATCH
        )
        found[some] = certificate.proven
    return found


def explain(
    recipe: Recipe, network: Any, x: jax.Array, y: jax.Array
) -> dict[str, float]:
    """One number of each explanation, by its name in `EXPLANATIONS`."""
    key, delta = jax.random.key(4), 2 * recipe.eps
    spectral = metrics.fisher_spectrum(network, x).spectral
    look = saliency.saliency(network, x, y, width=1)
    predicted = jnp.argmax(network(x), axis=1)
    nearest = attacks.fmn(network, x, predicted, ball=Linf(1.0)).distance
    noisy = spurious.noise_sensitivity(
        *(network, x, y, (x > INK).any(axis=-1)),
        key=key,
        linf_levels=[2 * recipe.eps],
        l2_levels=[],
        trials=4,
    )
    moved = attacks.pgd(network, x, y, key=key, ball=Linf(recipe.eps), steps=20).x_adv
    changes = []
    for image, other, label in zip(x[:PLAYED], moved[:PLAYED], y[:PLAYED], strict=True):
        game = interactions.image_game(network, (image, other), label, grid=(4, 2))
        before, after = interactions.exact(game, game.players).mean
        changes.append(np.mean(np.abs(before - after)))
    numbers = (
        np.mean(spectral),
        np.mean(look.alignment),
        strong_robustness.arc(nearest, delta).value / delta,
        noisy.relative.value[0],
        np.mean(changes),
    )
    return dict(zip(EXPLANATIONS, map(float, numbers), strict=True))


def column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """[seeds, …] what was measured."""
    return np.stack([np.asarray(row[name], float) for row in rows])


def at_training(found: Found, name: str) -> dict[str, np.ndarray]:
    """Training -> attacked or proven accuracy [seeds] at the ε of training."""
    return {title: column(rows, name)[:, TRAINED] for title, rows in found.items()}


def judge(found: Found) -> list[Claim]:
    """Certified training against the others; explanations against both sides."""
    attacked, proven = (at_training(found, name) for name in ("attacked", "proven"))
    count = sum(row["contradictions"] for rows in found.values() for row in rows)
    claims = [
        Claim(
            "No image is proven and broken",
            f"{count} images of {sum(map(len, found.values()))} networks",
            common.is_true(count == 0),
        )
    ]
    for title in CERTIFIED:
        gap = attacked[title] - proven[title]
        claims.append(
            Claim(
                f"{title}: at most 5 points lie between attacked and proven",
                f"{tables.plus_minus(gap, unit='%')}",
                common.is_below(gap, 0.05),
            )
        )
        claims += [
            _above(f"{title} proves more than {other}", proven[title], proven[other])
            for other in found
            if other not in CERTIFIED
        ]
    ibp, crown_ibp = CERTIFIED
    claims.append(
        _above("CROWN-IBP proves more than IBP", proven[crown_ibp], proven[ibp])
    )
    clean = {title: column(rows, "clean") for title, rows in found.items()}
    claims += [
        _above(
            f"{title} costs accuracy without attack",
            clean[NAMES["standard"]],
            clean[title],
        )
        for title in CERTIFIED
    ]
    for name, sign in EXPLANATIONS.items():
        said = sign * np.stack([column(rows, name) for rows in found.values()], axis=1)
        for side, values in (("proven", proven), ("attacked", attacked)):
            rank = common.rank_correlation(said, np.stack([*values.values()], axis=1))
            claims.append(
                Claim(
                    f"{name} goes with {side} accuracy over the trainings",
                    f"rank correlation {tables.plus_minus(rank)}, signed",
                    common.is_above(rank, 0.5),
                )
            )
    return claims


def _above(words: str, ours: np.ndarray, theirs: np.ndarray) -> Claim:
    measured = (tables.plus_minus(values, unit="%") for values in (ours, theirs))
    return Claim(words, " against ".join(measured), common.is_above(ours - theirs, 0))


def describe(found: Found) -> str:
    """Every number at the ε of training, a line for each training."""
    rows = [
        [
            title,
            tables.plus_minus(column(measured, "clean"), unit="%"),
            tables.plus_minus(column(measured, "attacked")[:, TRAINED], unit="%"),
            tables.plus_minus(column(measured, "proven")[:, TRAINED], unit="%"),
            *(tables.plus_minus(column(measured, name)) for name in EXPLANATIONS),
        ]
        for title, measured in found.items()
    ]
    return tables.markdown(
        ["training", "clean", "attacked", "proven", *EXPLANATIONS], rows
    )


def draw(found: Found) -> Mapping[str, Figure]:
    """The bracket over ε, a panel for each training."""
    panels = [
        figures.Panel(
            {name: column(rows, name) for name in ("attacked", "proven")},
            title,
            "robust accuracy [%]",
            "percent",
        )
        for title, rows in found.items()
    ]
    figure = figures.curves(
        [panels],
        title="Robust accuracy, from above by attacks and from below by proofs",
        x=EPS * TIMES,
        xlabel="ε (L∞)",
    )
    return {"bracket": figure}


STUDY = Study(
    name="bracket",
    question="How much of what attacks leave can be proven, and do explanations tell?",
    claim="Networks trained on proven logits are proven nearly as far as they resist "
    "attacks; those trained on attacks are not. The explanations go with the proofs.",
    variants=variants,
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
    describe=describe,
    note=f"Attacks and proofs on the first {FEWER} test images, "
    f"of digits {IMAGES['digits']}.",
)


if __name__ == "__main__":
    study.main(STUDY)
