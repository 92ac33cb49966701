"""When does adversarial training of linear regression use spurious features?

Claims (Moayeri et al., arXiv 2209.07592): y depends on core features only, which are
correlated with spurious ones, all Gaussian. (i) Adversarial training with L1 or L2
attacks uses the spurious features. (ii) With L∞ attacks it does so only where their
scale is larger than that of the core features. (iii) That costs accuracy when the
correlation changes, and (iv) helps robustness as long as it does not.

    python -m experiments.regression_spurious

Nothing is trained: `robjax.theory.linear_regression` has the exact minimisers. Five
core and five spurious features, x_S = κ (A x_C + noise) with random A for each seed,
label noise σ = 0.2; and all problems of two features. The claims are judged as they
stand, by checks of every problem, and so are their counter-examples. Cost: seconds.
Numbers: docs/verdicts.md.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from experiments import common
from experiments.common import Claim
from robjax.reporting import figures, tables
from robjax.theory import linear_regression as lr

NORMS = {"L1": 1, "L2": 2, "L∞": np.inf}
SHARES = np.array([0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
"""Radii, as shares of the one from which on all weights are 0."""
SCALES = (0.3, 3.0)
SIGMA = 0.2
CORE = np.arange(10) < 5
RHO = np.array([0.3, 0.6, 0.9])
KAPPA = np.linspace(0.1, 4, 79)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    seeds: int = 3
    """Random covariances."""
    smoke: bool = False
    """Under results/smoke; it takes seconds in any case."""
    results: Path = Path("results")
    """Folder of all results."""


class Row(NamedTuple):
    """One problem at all radii.

    reliance: ‖w_S‖₂ / ‖w‖₂ of the minimisers.
    price: what the squared error grows by when the correlation is gone.
    flipped: when it has the other sign.
    gain: adversarial risk of the best core-only weights less that of the minimiser,
      of the former.
    condition: ‖Σ_SC Σ_CC⁻¹ sign(w_C)‖_∞ of the best core-only weights at the first
      radius (L∞), at most 1 where spurious features stay unused; else NaN.
    """

    reliance: np.ndarray
    price: np.ndarray
    flipped: np.ndarray
    gain: np.ndarray
    condition: float


def problem_of(seed: int, kappa: float) -> dict[str, Any]:
    """Σ of x_C ~ N(0, I) and x_S = κ (A x_C + 0.5 noise), and w*."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(5, 5)) / np.sqrt(5)
    cross = kappa * mix
    spurious = kappa**2 * (mix @ mix.T + 0.25 * np.eye(5))
    covariance = np.block([[np.eye(5), cross.T], [cross, spurious]])
    w_star = np.concatenate([rng.uniform(0.5, 1.5, 5), np.zeros(5)])
    return {"covariance": covariance, "w_star": w_star}


def row_of(seed: int, kappa: float, norm: float) -> Row:
    """Solves one problem at all radii."""
    problem = problem_of(seed, kappa)
    law = {**problem, "noise": SIGMA, "norm": norm}
    radii = SHARES * lr.collapse_threshold(**law)
    solved = lr.path(radii, **law)
    price, flipped = (
        np.array([lr.shift_price(w, **problem, core=CORE, kept=kept) for w in solved.w])
        for kept in (0.0, -1.0)
    )
    alone = [lr.core_only(**law, eps=eps, core=CORE) for eps in radii]
    with jax.enable_x64(True):
        risks = [
            float(lr.adversarial_risk(w, **law, eps=eps))
            for w, eps in zip(alone, radii, strict=True)
        ]
    condition = np.nan
    if norm == np.inf:
        condition = lr.ignores_spurious_condition(
            alone[0], covariance=problem["covariance"], core=CORE
        )
    size = np.linalg.norm(solved.w, axis=1)
    return Row(
        reliance=np.linalg.norm(solved.w[:, ~CORE], axis=1) / size,
        price=price,
        flipped=flipped,
        gain=1 - solved.risk / np.array(risks),
        condition=condition,
    )


Found = Mapping[tuple[str, float], list[Row]]
"""(attack, κ) -> a row for each seed."""


def judge(found: Found) -> list[Claim]:
    """The claims as they stand, on every problem and radius; counter-examples."""
    rows = [row for problems in found.values() for row in problems]
    claims = []
    for attack in ("L1", "L2"):
        least = min(
            row.reliance.min() for kappa in SCALES for row in found[attack, kappa]
        )
        claims.append(
            Claim(
                f"{attack} attacks: spurious features are used at every radius",
                f"‖w_S‖/‖w‖ at least {least:.2g}",
                common.is_true(least > 0),
            )
        )
    for kappa, words in zip(SCALES, ("not used", "used"), strict=True):
        used = np.array([row.reliance > 0 for row in found["L∞", kappa]])
        condition = [row.condition for row in found["L∞", kappa]]
        claims.append(
            Claim(
                f"L∞ attacks, spurious scale {kappa}: spurious features are {words}",
                f"used in {used.mean():.0%} of problems; the condition for not using "
                f"them, at most 1, is {tables.plus_minus(condition)}",
                common.is_true(used.all() if words == "used" else not used.any()),
            )
        )
    spurious = np.concatenate([row.reliance > 0 for row in rows])
    price, flipped, gain = (
        np.concatenate([getattr(row, name) for row in rows])
        for name in ("price", "flipped", "gain")
    )
    claims += [
        Claim(
            "a lost correlation costs accuracy where spurious features are used",
            f"price up to {price.max():.3g}, {price[~spurious].max(initial=0):.1g} "
            "where they are not",
            common.is_true(np.all((price > 0) == spurious)),
        ),
        Claim(
            "a flipped correlation costs twice as much",
            f"largest deviation {np.abs(flipped - 2 * price).max():.1g}",
            common.is_true(np.allclose(flipped, 2 * price, rtol=1e-9, atol=0)),
        ),
        Claim(
            "a preserved correlation lowers the adversarial risk where it is used",
            f"by up to {gain.max():.0%} of that without spurious features",
            common.is_true(np.all(gain[spurious] > 0) and gain.min() > -1e-9),
        ),
    ]
    return claims + _counter_examples()


def _counter_examples() -> list[Claim]:
    """Where the claims are not true as they stand."""
    # two core features, of which spurious ones are correlated with the weaker alone
    covariance = np.eye(3)
    covariance[1, 2] = covariance[2, 1] = 0.5
    weak = {"covariance": covariance, "w_star": np.array([2.0, 0.5, 0.0])}
    law = {**weak, "noise": SIGMA, "norm": 1}
    top = lr.collapse_threshold(**law)
    unused, used = (lr.solve(**law, eps=share * top)[2] for share in (0.5, 0.8))
    # one spurious feature of a smaller scale, correlated with two core features
    small = np.eye(3)
    small[2, :2] = small[:2, 2] = 0.8 * 0.69
    small[2, 2] = 0.8**2
    several = {"covariance": small, "w_star": np.array([1.0, 1.0, 0.0])}
    law = {**several, "noise": SIGMA, "norm": np.inf}
    smaller = lr.solve(**law, eps=0.1 * lr.collapse_threshold(**law))[2]
    # no noise
    pair = {"covariance": np.array([[1.0, 0.5], [0.5, 1.0]]), "w_star": [1.0, 0.0]}
    flat = lr.plateau(**pair, norm=2)
    inside = lr.solve(**pair, noise=0.0, eps=0.97 * flat, norm=2)
    # the switch of L∞ attacks
    rho, kappa = np.meshgrid(RHO, KAPPA, indexing="ij")
    phase = lr.phase_diagram(rho=rho, kappa=kappa, eps=0.3, noise=SIGMA, norm=np.inf)
    clear = np.abs(rho * kappa - 1) > 1e-3
    right = (phase.spurious != 0) == (rho * kappa > 1)
    return [
        Claim(
            "L1 attacks: there is no radius at which they are not used",
            f"w_S = {unused:.2g} at ε = 0.5 ε_max, {used:.2g} at 0.8 ε_max",
            common.is_true(abs(unused) > 1e-12),
        ),
        Claim(
            "L∞ attacks use no spurious feature of a smaller scale (0.8)",
            f"w_S = {smaller:.3g} with two core features",
            common.is_true(smaller == 0),
        ),
        Claim(
            "any radius above 0 changes the weights, also without noise",
            f"w = w* up to ε = {flat:.4g}; at 0.97 of it off by "
            f"{np.abs(inside - [1, 0]).max():.1g}",
            common.is_true(not np.allclose(inside, [1, 0], atol=1e-9)),
        ),
        Claim(
            "L∞ attacks, two features: used if and only if |ρ|κ > 1",
            f"{right[clear].mean():.0%} of {clear.sum()} problems",
            common.is_true(right[clear].all()),
        ),
    ]


def draw(found: Found) -> dict[str, Any]:
    """Reliance over the radius; the spurious weight over its scale."""
    reliance = [
        figures.Panel(
            {f"{a} attack": np.stack([row.reliance for row in found[a, kappa]])
             for a in NORMS},
            f"spurious scale {kappa}",
            "‖w_S‖ / ‖w‖",
        )
        for kappa in SCALES
    ]  # fmt: skip
    rho, kappa = np.meshgrid(RHO, KAPPA, indexing="ij")
    phases = []
    for attack, norm in NORMS.items():
        spurious = lr.phase_diagram(
            rho=rho, kappa=kappa, eps=0.3, noise=SIGMA, norm=norm
        ).spurious
        series = {f"ρ = {r}": row[None] for r, row in zip(RHO, spurious, strict=True)}
        phases.append(figures.Panel(series, f"{attack} attack", "weight of x_S"))
    return {
        "reliance": figures.curves(
            [reliance],
            title=f"Reliance on spurious features, {len(next(iter(found.values())))} "
            "covariances",
            x=SHARES,
            xlabel="ε / ε_max",
        ),
        "scale": figures.curves(
            [phases],
            title="One core and one spurious feature, ε = 0.3",
            x=KAPPA,
            xlabel="scale κ of the spurious feature",
        ),
    }


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, solves, judges and writes the report."""
    question = "When does adversarial linear regression use spurious features?"
    claim = (
        "With L1 and L2 attacks always, with L∞ attacks where their scale is larger; "
        "it costs accuracy when the correlation changes, and helps robustness before."
    )
    common.announce(question, claim, minutes=0.2, seeds=arguments.seeds)
    found = {
        (attack, kappa): [row_of(s, kappa, norm) for s in range(arguments.seeds)]
        for attack, norm in NORMS.items()
        for kappa in SCALES
    }
    common.write_report(
        common.results_of(arguments) / "regression_spurious",
        question=question,
        claim=claim,
        setting=f"5 core and 5 spurious features, σ = {SIGMA}, {arguments.seeds} "
        f"random covariances, {len(SHARES)} radii.",
        claims=judge(found),
        drawn=draw(found),
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.regression_spurious"))
