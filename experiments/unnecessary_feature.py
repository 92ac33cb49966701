"""Can one feature that the oracle ignores ruin a classifier?

Claims (Wang, Gao and Qi, arXiv 1612.00334): yes, one unnecessary feature is enough,
whatever the accuracy. And robustness depends on the features alone, not on what the
classifier makes of them. The second is not true: the feature has to be used.

    python -m experiments.unnecessary_feature

y = ±1, x₁ ~ N(2y, 1) is useful and all that the oracle sees (d₂' = |x₁ − x₁'|), further
features are N(0, 1). First f₁ = sign(x₁ + c x₂), with c = 0.1 and, its counter-example,
c = 0. Then logistic regression (λ = 1e-3) trained on n samples of x₁ and k noise
features. Worst cases by `metrics.strong_robustness.worst_case_agreement`, on 2,000
fresh samples for each seed. About a minute of CPU time. Numbers: docs/verdicts.md.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro

from experiments import common
from experiments.common import Claim
from robjax.metrics import strong_robustness
from robjax.reporting import figures, tables
from robjax.training import linear

MEAN = 2.0
WEIGHTS = (0.0, 0.1)
RADII = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
IGNORED = (0.0, 1.0, 3.0)
"""Lengths of the part of a random change that the oracle ignores."""
SIZES = (100, 1000, 10_000)
NOISE = (1, 10, 100)
BOUNDS = (-1e4, 1e4)  # no limit
FITTED = 1e-3


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    samples: int = 2000
    """Fresh samples that each seed is measured on."""
    smoke: bool = False
    """Less than a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


class Row(NamedTuple):
    """One classifier on the samples of one seed.

    accuracy: share of right samples.
    worst: [radii] share of samples that are right and do not flip within δ₂.
    agreement: [IGNORED] share of random pairs at d₂' = 0 that agree.
    distance: largest d₂' of a flip at δ₂ = 0.
    length: median Euclidean length of these flips; NaN for none.
    flipped: share of all samples that flip at δ₂ = 0.
    """

    accuracy: float
    worst: np.ndarray
    agreement: np.ndarray
    distance: float
    length: float
    flipped: float


def sample(seed: int, count: int, noise: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [count, 1 + noise] and labels ±1."""
    rng = np.random.default_rng(seed)
    y = rng.choice([-1, 1], count)
    x = rng.normal(size=(count, 1 + noise))
    x[:, 0] += MEAN * y
    return x.astype(np.float32), y


def measure(
    w: np.ndarray, b: float, seed: int, count: int, radii: Any, ignored: Any
) -> Row:
    """Worst cases and averages of sign(⟨w, x⟩ + b)."""
    x, y = sample(1000 + seed, count, len(w) - 1)
    model = linear.LinearClassifier(w, b, 0.0, 0.0, 0).logits_fn
    sees = np.zeros((1, len(w)))
    sees[0, 0] = 1
    near: Any = {
        "oracle": strong_robustness.linear(sees),
        "key": jax.random.key(seed),
    }
    right = np.asarray(jnp.argmax(model(jnp.asarray(x)), axis=1)) == (y > 0)
    found = [
        strong_robustness.worst_case_agreement(
            model, x, delta=radius, bounds=BOUNDS, steps=10, **near
        )
        for radius in radii
    ]
    first = jax.device_get(found[0])
    moved = np.linalg.norm(first.x_adv - x, axis=1)[first.success]
    agreement = [
        float(
            strong_robustness.pair_agreement(
                model, x, delta=0.0, ignored=size, **near
            ).estimate
        )
        for size in ignored
    ]
    return Row(
        accuracy=float(right.mean()),
        worst=np.array([np.mean(right & ~np.asarray(f.success)) for f in found]),
        agreement=np.array(agreement),
        distance=float(first.distance.max()),
        length=float(np.median(moved)) if len(moved) else np.nan,
        flipped=float(first.success.mean()),
    )


Toy = dict[float, list[Row]]
"""c -> a row for each seed."""
Trained = dict[tuple[int, int], list[Row]]
"""(n, k) -> a row for each seed."""


def judge(toy: Toy, trained: Trained, samples: int) -> list[Claim]:
    """The claims, and where they are wrong."""
    unused, used = (toy[c] for c in WEIGHTS)
    cost = [a.accuracy - b.accuracy for a, b in zip(unused, used, strict=True)]
    worst = np.stack([row.worst for row in used])
    kept = np.stack([row.worst for row in unused])
    exact = scipy.stats.norm.cdf(MEAN - np.array(RADII))
    error = 4 * np.sqrt(exact * (1 - exact) / samples)
    pairs = [row.agreement[IGNORED.index(1.0)] for row in used]
    everywhere = [row for rows in trained.values() for row in rows]
    claims = [
        Claim(
            "an unnecessary feature of weight 0.1 costs less than 0.3 points of "
            "accuracy",
            f"{tables.plus_minus(cost, unit='%')}, of "
            f"{tables.plus_minus([row.accuracy for row in unused], unit='%')}",
            common.is_below(cost, 0.003),
        ),
        Claim(
            "with it the worst-case accuracy is 0 at every δ₂, from 0 on",
            f"at most {worst.max():.1%}; d₂' of the flips at δ₂ = 0 at most "
            f"{max(row.distance for row in used):.1g}",
            common.is_true(worst.max() == 0),
        ),
        Claim(
            "with the feature there but its weight 0, nothing flips at d₂' = 0",
            f"{max(row.flipped for row in unused):.1%} flipped",
            common.is_true(max(row.flipped for row in unused) == 0),
        ),
        Claim(
            "then the worst-case accuracy is Φ(2 − δ₂) (4 s.e. of each seed)",
            f"largest deviation {np.abs(kept - exact).max():.3f}",
            common.is_true((np.abs(kept - exact) <= error).all()),
        ),
        Claim(
            "the features alone decide: weight 0 or 0.1 is the same at δ₂ = 0",
            f"worst-case accuracy {tables.plus_minus(kept[:, 0], unit='%')} and "
            f"{tables.plus_minus(worst[:, 0], unit='%')}",
            common.is_true(kept[:, 0].max() == worst[:, 0].max()),
        ),
        Claim(
            "random pairs show it: with an ignored part as long as the feature's "
            "deviation, less than 99 % agree",
            tables.plus_minus(pairs, unit="%"),
            common.is_below(pairs, 0.99),
        ),
        Claim(
            "logistic regression: every sample flips at d₂' = 0, for all n and k",
            f"at least {min(row.flipped for row in everywhere):.1%} of "
            f"{len(everywhere)} classifiers' samples, d₂' at most "
            f"{max(row.distance for row in everywhere):.1g}",
            common.is_true(min(row.flipped for row in everywhere) == 1),
        ),
    ]
    few, many = min(SIZES), max(SIZES)
    for noise in sorted({k for _, k in trained}):
        lengths = [[row.length for row in trained[n, noise]] for n in (few, many)]
        ratio = np.array(lengths[1]) / np.array(lengths[0])
        claims.append(
            Claim(
                f"with {noise} noise features, more samples make the flips longer",
                f"{few} samples {tables.plus_minus(lengths[0])}, {many} "
                f"{tables.plus_minus(lengths[1])}",
                common.is_above(np.log(ratio), 0),
            )
        )
    return claims


def draw(toy: Toy, trained: Trained) -> dict[str, Any]:
    """Worst-case accuracy over δ₂; lengths of flips over n."""
    curves = {}
    for c, rows in toy.items():
        standard = np.array([row.accuracy for row in rows])[:, None]
        curves[f"c = {c}, accuracy"] = np.tile(standard, len(RADII))
        curves[f"c = {c}, worst case"] = np.stack([row.worst for row in rows])
    sizes, noises = (sorted({key[i] for key in trained}) for i in range(2))
    lengths = {
        f"{k} noise features": np.array(
            [[row.length for row in trained[n, k]] for n in sizes]
        ).T
        for k in noises
    }
    worst = figures.Panel(curves, "", "right [%]", "percent")
    length = figures.Panel(lengths, "", "median length of a flip", "log")
    return {
        "worst_case": figures.curves(
            [[worst]],
            title="sign(x₁ + c x₂), the oracle sees x₁",
            x=RADII,
            xlabel="δ₂, change of x₁",
        ),
        "length": figures.curves(
            [[length]],
            title="Logistic regression: flips that the oracle does not see",
            x=sizes,
            xlabel="training samples n",
            xscale="log",
        ),
    }


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    noises = NOISE
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, samples=100)
        noises = NOISE[:1]
    question = "Can one feature that the oracle ignores ruin a classifier?"
    claim = (
        "One unnecessary feature takes worst-case accuracy from 1 to 0 and leaves "
        "accuracy as it is; the features alone decide."
    )
    common.announce(question, claim, minutes=1, seeds=arguments.seeds)
    seeds, count = range(arguments.seeds), arguments.samples
    toy = {
        c: [measure(np.array([1.0, c]), 0.0, s, count, RADII, IGNORED) for s in seeds]
        for c in WEIGHTS
    }

    def trained(n: int, k: int, seed: int) -> Row:
        fit = linear.fit(*sample(seed, n, k), eps=0.0, l2=FITTED)
        return measure(fit.w, fit.b, seed, count, RADII[:1], ())

    rows = {(n, k): [trained(n, k, s) for s in seeds] for n in SIZES for k in noises}
    table = tables.markdown(
        ["training samples", "noise features", "accuracy", "flipped", "median length"],
        [
            (
                *key,
                tables.plus_minus([row.accuracy for row in found], unit="%"),
                tables.plus_minus([row.flipped for row in found], unit="%"),
                tables.plus_minus([row.length for row in found]),
            )
            for key, found in rows.items()
        ],
    )
    folder = common.results_of(arguments) / "unnecessary_feature"
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=arguments.smoke * common.SMOKE
        + f"{arguments.seeds} seeds, {count} fresh samples each.",
        claims=judge(toy, rows, count),
        drawn=draw(toy, rows),
        rest=f"Logistic regression at δ₂ = 0:\n\n{table}",
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.unnecessary_feature"))
