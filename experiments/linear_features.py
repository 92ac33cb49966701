"""Which pixels does a robust linear classifier look at?

Claims (Tsipras et al., arXiv 1805.12152, section 2.2 and appendix E): a standard linear
classifier puts weight on weakly correlated pixels, an adversarially trained one only on
strongly correlated ones, since pixel j pays only if |E[y x_j]| exceeds ε. A standard
classifier that sees the best pixels only is robust without adversarial training, even
more robust; every further pixel adds accuracy and costs robustness.

    python -m experiments.linear_features [--dataset mnist]

Digit 5 (y = −1) against 7. Every classifier is the certified optimum of a convex
problem (`robjax.training.linear`, λ = 1e-4, KKT residual below 1e-6). Table and
figures: all training images; verdicts: disjoint parts of them, one for each seed.
Attacked by the exact worst case in L∞, outside [0, 1] too unless it says "box". About
3 minutes of CPU time on MNIST, a few seconds on digits. Numbers: docs/verdicts.md.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import common
from experiments.common import Claim
from robjax import attacks, data
from robjax.balls import Linf
from robjax.reporting import figures, tables
from robjax.training import linear
from robjax.training.linear import LinearClassifier

# ε, relative to the radius from which on the optimum is a constant
SHARES = (0.16, 0.33, 0.65, 0.97)
TESTED = 2  # which of them is the ε of the tests
COUNTS = (1, 2, 5, 10, 20, 30, 50, 100, 200, 784)
L2_WEIGHT = 1e-4
BOX = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    dataset: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing; MNIST must have been prepared with TFDS."""
    seeds: int = 3
    """Disjoint parts of the training set, at least 2 for verdicts."""
    smoke: bool = False
    """Less than a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


class Pair(NamedTuple):
    """Images [N, H, W, 1] in [0, 1] and labels −1 (digit 5), 1 (digit 7)."""

    x: np.ndarray
    y: np.ndarray


class Fits(NamedTuple):
    """Classifiers of one training set, and what the tests say.

    radii: ε in training, without a box.
    robust: the optimum at each of them; 0.0 is the standard classifier.
    boxed: the optimum at the ε of the tests inside the box.
    few: number of best pixels -> standard classifier that sees no others.
    correlation: |E[y x_j]| [H, W, 1].
    """

    radii: tuple[float, ...]
    robust: dict[float, LinearClassifier]
    boxed: LinearClassifier
    few: dict[int, LinearClassifier]
    correlation: np.ndarray


def load(dataset: str, split: str) -> Pair:
    """The fives and sevens of a split."""
    found = data.load(dataset, split)
    rows = np.isin(found.labels, (5, 7))
    y = np.where(found.labels[rows] == 7, 1, -1)
    return Pair(found.images[rows] / found.scale, y)


def train(pair: Pair, radii: tuple[float, ...], smoke: bool = False) -> Fits:
    """All classifiers of a training set."""
    x, y = pair

    def optimum(x: np.ndarray, **problem: Any) -> LinearClassifier:
        return linear.fit(x, y, l2=L2_WEIGHT, **problem)

    standard = optimum(x, eps=0.0)
    robust = {0.0: standard} | {eps: optimum(x, eps=eps) for eps in radii}
    boxed = optimum(x, eps=radii[TESTED], bounds=BOX)
    correlation = np.abs(np.mean(y[:, None, None, None] * x, axis=0))
    order, few = np.argsort(-correlation, axis=None, kind="stable"), {}
    counts = sorted({min(count, correlation.size) for count in COUNTS})
    for count in counts[:2] if smoke else counts:
        seen = np.zeros(correlation.size)
        seen[order[:count]] = 1
        few[count] = optimum(x * seen.reshape(correlation.shape), eps=0.0)
    return Fits(radii, robust, boxed, few, correlation)


def accuracy(
    fit: LinearClassifier, test: Pair, eps: float = 0.0, bounds: Any = None
) -> float:
    """Share of the test images that are right, at the worst in the ball."""
    margins = linear.worst_margins(fit.w, fit.b, *test, eps=eps, bounds=bounds)
    return float(np.mean(margins > 0))


def support(fit: LinearClassifier, correlation: np.ndarray) -> float:
    """The smallest correlation that has a weight; infinite if all weights are 0."""
    return float(np.min(correlation, where=fit.w != 0, initial=np.inf))


def judge(parts: list[Fits], test: Pair, collapsed: list[bool]) -> list[Claim]:
    """The claims, on the fits of each seed."""
    eps = parts[0].radii[TESTED]
    standard = [fits.robust[0.0] for fits in parts]
    robust = [fits.robust[fits.radii[TESTED]] for fits in parts]

    def each(fits: list[LinearClassifier], radius: float = 0.0) -> np.ndarray:
        return np.array([accuracy(fit, test, radius) for fit in fits])

    def mass(fit: LinearClassifier, fits: Fits) -> float:
        weight = np.abs(fit.w)
        return float(weight[fits.correlation < eps].sum() / weight.sum())

    weak = np.array([mass(f, fits) for f, fits in zip(standard, parts, strict=True)])
    lowest = np.array(
        [support(f, fits.correlation) for f, fits in zip(robust, parts, strict=True)]
    )
    norm = np.array([[np.abs(f.w).sum() for f in fs] for fs in (standard, robust)])
    pixels = np.array(
        [[np.count_nonzero(f.robust[r].w) for r in f.radii] for f in parts]
    )
    clean, attacked = each(standard) - each(robust), each(robust, eps)
    counts = list(parts[0].few)
    rising = np.array([[accuracy(f, test) for f in p.few.values()] for p in parts])
    falling = np.array(
        [[accuracy(f, test, eps) for f in p.few.values()] for p in parts]
    )
    order = np.broadcast_to(np.arange(len(counts)), rising.shape)
    up, down = (common.rank_correlation(order, rates) for rates in (rising, falling))
    best = falling[:, 0]
    percent = functools.partial(tables.plus_minus, unit="%")
    return [
        Claim(
            f"standard: most of ‖w‖₁ is on pixels of |E[y x]| < ε = {eps:.3g}",
            percent(weak),
            common.is_above(weak, 0.5),
        ),
        Claim(
            "adversarial: no pixel of |E[y x]| < ε/2 has a weight",
            f"smallest {lowest.min():.3f}",
            common.is_true(lowest.min() >= eps / 2),
        ),
        Claim(
            "‖w‖₁ falls to less than a third",
            f"{tables.plus_minus(norm[0])} to {tables.plus_minus(norm[1])}",
            common.is_above(norm[0] / norm[1], 3),
        ),
        Claim(
            "the larger ε, the fewer pixels have a weight",
            "; ".join(str(list(map(int, row))) for row in pixels),
            common.is_true((np.diff(pixels, axis=1) <= 0).all()),
        ),
        Claim(
            "adversarial training costs standard accuracy",
            f"{percent(each(standard))} to {percent(each(robust))}",
            common.is_above(clean, 0),
        ),
        Claim(
            f"and gives robust accuracy at ε = {eps:.3g}",
            f"{percent(each(standard, eps))} to {percent(attacked)}",
            common.is_above(attacked - each(standard, eps), 0),
        ),
        Claim(
            "standard training: more pixels, more accuracy",
            f"rank correlation {tables.plus_minus(up)}",
            common.is_above(up, 0),
        ),
        Claim(
            "standard training: more pixels, less robust accuracy",
            f"rank correlation {tables.plus_minus(down)}",
            common.is_below(down, 0),
        ),
        Claim(
            "standard training on the one best pixel is more robust than adversarial "
            "training on all",
            f"{percent(best)} against {percent(attacked)}",
            common.is_above(best - attacked, 0),
        ),
        Claim(
            "w = 0 is the optimum from ½ max|difference of the class means| on, and "
            "not before",
            f"{sum(collapsed)} of {len(collapsed)} training sets",
            common.is_true(all(collapsed)),
        ),
    ]


def certify(trained: list[Fits], against: dict[str, float]) -> list[Claim]:
    """Whether optima and worst cases are exact; `against` is of `against_pgd`."""
    every = [
        fit
        for fits in trained
        for fit in (*fits.robust.values(), fits.boxed, *fits.few.values())
    ]
    residual, gap = max(fit.residual for fit in every), max(against.values())
    return [
        Claim(
            "every classifier is the optimum (KKT residual below 1e-6)",
            f"largest {residual:.0e}, {len(every)} classifiers",
            common.is_true(residual < 1e-6),
        ),
        Claim(
            "the exact worst case in the box is what PGD-1000 finds (margins to 1e-5)",
            f"largest difference {gap:.0e}, {len(against)} classifiers",
            common.is_true(gap < 1e-5),
        ),
    ]


def collapses(pair: Pair) -> bool:
    """Whether the optimum is 0 just above the radius, and not just below."""
    radius = linear.collapse_radius(*pair)
    above, below = (linear.fit(*pair, eps=f * radius).w for f in (1.001, 0.999))
    return bool(not above.any() and below.any())


def against_pgd(fit: LinearClassifier, test: Pair, eps: float) -> float:
    """The largest difference of margins between PGD-1000 in the box and the formula."""
    found = attacks.pgd(
        fit.logits_fn,
        jnp.asarray(test.x, jnp.float32),
        jnp.asarray(test.y > 0, jnp.int32),
        key=jax.random.key(0),
        ball=Linf(eps),
        steps=1000,
        keep_best=False,
    )
    score = np.asarray(found.x_adv, float).reshape(len(test.y), -1) @ fit.w.ravel()
    exact = linear.worst_margins(fit.w, fit.b, *test, eps=eps, bounds=BOX)
    return float(np.abs(test.y * (score + fit.b) - exact).max())


def on_all_pixels(fits: Fits) -> dict[str, LinearClassifier]:
    """The classifiers that see all pixels, by their names."""
    names = {f"adversarial, ε = {r:.3g}": fits.robust[r] for r in fits.radii}
    boxed = f"adversarial in the box, ε = {eps_of(fits):.3g}"
    return {"standard": fits.robust[0.0], **names, boxed: fits.boxed}


def table(fits: Fits, test: Pair, against: dict[str, float]) -> str:
    """Markdown: a row for each classifier of the whole training set."""
    eps, rows = eps_of(fits), on_all_pixels(fits)
    rows |= {f"standard on the best {k}": fit for k, fit in fits.few.items()}
    header = [
        *("classifier", "standard", f"ε = {eps:.3g}", "in the box", "‖w‖₁", "pixels"),
        *("smallest |E[y x]|", "KKT residual", "PGD-1000 less exact, in the box"),
    ]
    cells = []
    for name, fit in rows.items():
        rates = [accuracy(fit, test)]
        rates += [accuracy(fit, test, eps, bounds) for bounds in (None, BOX)]
        cells.append(
            [
                name,
                *(f"{rate:.3f}" for rate in rates),
                f"{np.abs(fit.w).sum():.3g}",
                np.count_nonzero(fit.w),
                f"{support(fit, fits.correlation):.3f}",
                f"{fit.residual:.0e}",
                f"{against[name]:.0e}" if name in against else "",
            ]
        )
    return tables.markdown(header, cells)


def draw(whole: Fits, parts: list[Fits], test: Pair) -> dict[str, Any]:
    """Weights as images, |weight| against correlation, accuracy against pixels."""
    eps = whole.radii[TESTED]
    shown = {
        "standard": whole.robust[0.0],
        f"adversarial, ε = {eps:.3g}": whole.robust[eps],
        "adversarial in the box": whole.boxed,
    }
    peaks = {name: np.abs(fit.w).max() for name, fit in shown.items()}
    images = figures.pictures(
        {"weights": [colours(fit.w / peaks[name]) for name, fit in shown.items()]},
        title="What a linear classifier looks at: 7 (blue) or 5 (red)",
        columns=[
            f"{name}\nfull colour: |w| = {peak:.3g}" for name, peak in peaks.items()
        ],
    )
    scatter = figures.points(
        {
            name: (whole.correlation.ravel(), np.abs(fit.w).ravel())
            for name, fit in shown.items()
        },
        title="Robust classifiers use strongly correlated pixels only",
        xlabel="|E[y x]| of a pixel",
        ylabel="|weight|",
        xscale="linear",
    )
    few = {
        name: np.array([[accuracy(f, test, r) for f in p.few.values()] for p in parts])
        for name, r in (("standard accuracy", 0.0), (f"under L∞ ε = {eps:.3g}", eps))
    }
    trained = [[accuracy(p.robust[eps_of(p)], test, eps)] for p in parts]
    count = len(whole.few)
    few["adversarially trained, under attack"] = np.repeat(trained, count, axis=1)
    panel = figures.Panel(few, "standard training", "accuracy [%]", "percent")
    curve = figures.curves(
        [[panel]],
        title="Every pixel adds accuracy and costs robustness",
        x=list(whole.few),
        xlabel="number of best correlated pixels that it sees",
        xscale="log",
    )
    return {"weights": images, "correlation": scatter, "few_pixels": curve}


def colours(share: np.ndarray) -> np.ndarray:
    """[H, W, 1] in [−1, 1] as [H, W, 3]: 1 is blue, −1 red, 0 white."""
    positive, negative = np.maximum(share, 0), np.maximum(-share, 0)
    return 1 - np.concatenate([positive, positive + negative, negative], axis=-1)


def eps_of(fits: Fits) -> float:
    """The ε of the tests."""
    return fits.radii[TESTED]


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    seeds = 1 if arguments.smoke else arguments.seeds
    question = "Which pixels does a robust linear classifier look at?"
    claim = (
        "Standard training uses weakly correlated pixels, adversarial training only "
        "strongly correlated ones; fewer pixels make standard training robust."
    )
    minutes = 3 if arguments.dataset == "mnist" else 0.1
    common.announce(question, claim, minutes=minutes, seeds=seeds)
    whole, test = (load(arguments.dataset, split) for split in ("train", "test"))
    radius = linear.collapse_radius(*whole)
    radii = tuple(round(share * radius, 3) for share in SHARES)
    parts = [Pair(whole.x[s::seeds], whole.y[s::seeds]) for s in range(seeds)]
    found = [train(part, radii, arguments.smoke) for part in parts]
    everything = train(whole, radii, arguments.smoke)
    collapsed = [collapses(pair) for pair in (whole, *parts)]
    against = {
        name: against_pgd(fit, test, radii[TESTED])
        for name, fit in on_all_pixels(everything).items()
    }
    folder = common.results_of(arguments) / "linear_features" / arguments.dataset
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"5 against 7 of {arguments.dataset}: {len(whole.y)} training images "
        f"({seeds} parts), {len(test.y)} test images; collapse at ε = {radius:.3f}.",
        claims=judge(found, test, collapsed) + certify([everything, *found], against),
        drawn=draw(everything, found, test),
        rest=table(everything, test, against),
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.linear_features"))
