"""Robustness against accuracy where both are known: theory, linear models and MLPs.

Claims (Tsipras et al., arXiv 1805.12152, Theorems 2.1 and 2.2): on one feature that is
right with probability p and d weak ones N(ηy, 1), accuracy 1 − δ leaves at most
p/(1 − p) δ under an L∞ attack of ε ≥ 2η. Standard training gets above 99 % and below
1 % under attack, adversarial training p and p. The theorem does not say, but needs,
that the training radius is below 2p − 1; from there on the optimum is a constant.
(And its "from 2η on" can be "from η on", in the population.)

    python -m experiments.gaussian_tradeoff

d = 400, η = 4/√d, p = 0.95, ε = 2η. Linear models are the exact optima of adversarial
training on 20,000 samples (λ = 1e-4), their accuracies closed forms. MLPs (one hidden
layer of 32) are trained by PGD on as many and measured on 20,000 fresh samples for
each seed; robust means right at x, under the shift of the theorem and under PGD-20.
What Theorem 2.1 leaves comes from the table of its proof. That of an MLP holds
frequencies, which obey the theorem as probabilities do: sampling noise cannot look like
a violation. The SVMs of the population are solved, for d = 100 too.

About 3 minutes of CPU time. Numbers: docs/verdicts.md.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from experiments import common, mlps
from experiments.common import Claim
from robjax import attacks, models
from robjax.balls import Linf
from robjax.reporting import figures, tables
from robjax.theory import gaussian, gaussian_svm
from robjax.training import linear

D, P = 400, 0.95
ETA = 4 / D**0.5
EPS = 2 * ETA
RADII = (0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 0.88, 0.92)
LAW: Any = {"p": P, "eta": ETA}
L2_WEIGHT = 1e-4
BOUNDS = (-100.0, 100.0)  # no limit: features of this model are far inside
MLP = models.MLP(2, widths=(32,))


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    samples: int = 20_000
    """Training samples of each model."""
    steps: int = 1500
    """Batches of 100 that an MLP sees."""
    test: int = 20_000
    """Fresh samples that each seed is measured on."""
    smoke: bool = False
    """Less than a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


class Accuracies(NamedTuple):
    """Accuracies of models, and what Theorem 2.1 leaves them: [seeds, radii].

    standard: without an attack.
    erased: the weak features moved by −ηy.
    attacked: under the worst L∞ attack of 2η.
    shifted: the weak features moved by −2ηy, the attack of the theorem.
    slack: p/(1 − p) (1 − standard) − shifted, by `gaussian.shift_slack`.
    """

    standard: np.ndarray
    erased: np.ndarray
    attacked: np.ndarray
    shifted: np.ndarray
    slack: np.ndarray


def linear_models(arguments: Arguments) -> tuple[Accuracies, np.ndarray]:
    """Exact optima; their accuracies in closed form, and how many weights are not 0."""
    rows, weights = [], []
    for seed in range(arguments.seeds):
        x, y = gaussian.sample(jax.random.key(seed), arguments.samples, d=D, **LAW)
        for radius in RADII:
            found = linear.fit(x, y, eps=radius, l2=L2_WEIGHT)
            if found.residual > 1e-6:
                raise RuntimeError(f"no optimum at ε = {radius}: {found.residual:.1e}")
            weights.append(np.count_nonzero(found.w))
            rows.append(_exact(found.w, found.b))
    shape = arguments.seeds, len(RADII)
    columns = np.array(rows).T.reshape(len(rows[0]), *shape)
    return Accuracies(*columns), np.array(weights).reshape(shape)


def _exact(w: np.ndarray, bias: float) -> Accuracies:
    """Accuracies [] of a linear model, in float64."""
    with jax.enable_x64(True):
        table = gaussian.linear_table(w, eta=ETA, bias=bias)
        standard, shifted = gaussian.table_accuracies(table, P)
        erased = gaussian.standard_accuracy(w, p=P, eta=0.0, bias=bias)
        attacked = gaussian.robust_accuracy(w, eps=EPS, bias=bias, **LAW)
        slack = gaussian.shift_slack(table, P)
        return Accuracies(
            *map(np.asarray, (standard, erased, attacked, shifted, slack))
        )


def perceptrons(arguments: Arguments) -> Accuracies:
    """MLPs trained by PGD, all at once; their accuracies on fresh samples."""
    count, seeds, radii = arguments.samples, arguments.seeds, len(RADII)
    key = jax.random.key(1000)
    x, y = gaussian.sample(key, count * seeds, d=D, **LAW)
    own = jnp.arange(count * seeds).reshape(seeds, count)
    weights = mlps.train(
        x,
        (y + 1) // 2,
        jnp.repeat(own, radii, axis=0),
        jnp.full(seeds * radii, count),
        jnp.tile(jnp.array(RADII), seeds),
        jnp.repeat(jnp.arange(seeds), radii),
        model=MLP,
        ball=Linf,
        bounds=BOUNDS,
        steps=arguments.steps,
    )
    measured = []
    for seed in range(seeds):
        own = mlps.select(weights, slice(seed * radii, (seed + 1) * radii))
        measured.append(_measure(own, arguments.test, jax.random.fold_in(key, seed)))
    return Accuracies(*map(np.stack, zip(*measured, strict=True)))


def _measure(weights: Any, count: int, key: jax.Array) -> Accuracies:
    """Accuracies [radii] of the networks of one seed, on samples of their own."""
    x, y = gaussian.sample(key, count, d=D, **LAW)
    truth = np.asarray(y > 0)
    weak = ETA * y[:, None] * (jnp.arange(D + 1) > 0)[None]

    def positive(x: jax.Array) -> np.ndarray:
        return np.asarray(mlps.predictions(weights, x, model=MLP) == 1)

    seen, moved = positive(x), positive(x - 2 * weak)
    right, shifted = seen == truth, moved == truth
    survives = np.asarray(_survives(weights, x, truth.astype(int), key))
    table = frequencies(
        np.concatenate([seen, moved], axis=1),
        np.tile(x[:, 0] > 0, 2),
        np.concatenate([truth, ~truth]),
    )
    return Accuracies(
        standard=right.mean(axis=1),
        erased=(positive(x - weak) == truth).mean(axis=1),
        attacked=(right & shifted & survives).mean(axis=1),
        shifted=shifted.mean(axis=1),
        slack=np.asarray(gaussian.shift_slack(table, P)),
    )


def frequencies(positive: np.ndarray, strong: np.ndarray, law: np.ndarray) -> Any:
    """Shares of f = +1 as a table [M, 2, 2] for `gaussian.table_accuracies`.

    Args:
        positive: [M, N] whether f = +1.
        strong: [N] whether x_1 = +1.
        law: [N] whether the weak features come from N(η, 1), not N(−η, 1).
    """
    cells = np.eye(4)[2 * ~strong + ~law]
    return (positive @ cells / cells.sum(axis=0)).reshape(-1, 2, 2)


@jax.jit
def _survives(weights: Any, x: jax.Array, labels: jax.Array, key: jax.Array):
    def one(weights):
        network, ball = Partial(MLP.apply, weights), Linf(EPS)
        return ~attacks.pgd(
            network, x, labels, key=key, ball=ball, bounds=BOUNDS, steps=20
        ).success

    return jax.vmap(one)(weights)


def judge(
    exact: Accuracies,
    weights: np.ndarray,
    trained: Accuracies,
    test: int = Arguments.test,
) -> list[Claim]:
    """Both theorems on both kinds of models."""
    m = ETA * D**0.5
    with jax.enable_x64(True):
        standard, shifted = gaussian.frontier(np.linspace(m, 10, 601), p=P, m=m)
        gap = np.max(np.abs(gaussian.theorem_bound(standard, P) - shifted))
    noise = 4 * np.sqrt(P * (1 - P) / test)
    erased = exact.erased.max(), trained.erased.max()
    claims = [
        *(
            Claim(
                f"Theorem 2.1 binds every {name} (an identity of its four frequencies)",
                f"smallest slack {table.slack.min():.1e}, {table.slack.size} models",
                common.is_true(table.slack.min() >= 0),
            )
            for name, table in (("linear model", exact), ("MLP", trained))
        ),
        Claim(
            "Theorem 2.1 is tight along the frontier (to 1e-4 from τ = m on)",
            f"largest gap {gap:.0e}",
            common.is_true(gap < 1e-4),
        ),
        Claim(
            "No model beats p once ε ≥ η erases the weak features",
            f"at most {100 * erased[0]:.2f} % (linear), {100 * erased[1]:.2f} % (MLP, "
            f"4 s.e. = {100 * noise:.2f} %)",
            common.is_true(erased[0] <= P + 1e-9 and erased[1] <= P + noise),
        ),
    ]
    for name, table in (("linear", exact), ("MLP", trained)):
        claims += [
            Claim(
                f"{name}, standard training: accuracy above 99 %",
                tables.plus_minus(table.standard[:, 0], unit="%", digits=4),
                common.is_above(table.standard[:, 0], 0.99),
            ),
            Claim(
                f"{name}, standard training: below 1 % under L∞ of 2η",
                tables.plus_minus(table.attacked[:, 0], unit="%"),
                common.is_below(table.attacked[:, 0], 0.01),
            ),
        ]
        for low, high, given in (
            (EPS, 2 * P - 1, "2η ≤ ε < 2p − 1 (Theorem 2.2)"),
            (ETA, EPS, "η ≤ ε < 2η (sharper)"),
        ):
            kept = [i for i, r in enumerate(RADII) if low <= r < high]
            off = np.stack([table.standard, table.attacked])[:, :, kept] - P
            measured = (
                f"ε {RADII[i]:g}: {tables.plus_minus(table.standard[:, i], unit='%')}, "
                f"{tables.plus_minus(table.attacked[:, i], unit='%')}"
                for i in kept
            )
            claims.append(
                Claim(
                    f"{name}, trained with {given}: standard and robust accuracy are "
                    "p to 0.5 %",
                    "; ".join(measured),
                    common.is_below(np.abs(off).max(axis=(0, 2)), 0.005),
                )
            )
    constant = weights[:, -1] == 0
    claims.append(
        Claim(
            f"linear, trained with ε = {RADII[-1]:g} ≥ 2p − 1: all weights are 0",
            f"{constant.sum()} of {constant.size} models, accuracy "
            + tables.plus_minus(exact.standard[:, -1], unit="%"),
            common.is_true(constant.all()),
        )
    )
    return claims + theorem_2_2()


def theorem_2_2() -> list[Claim]:
    """Both halves of Theorem 2.2 for the SVMs of the population, in closed form."""
    claims = []
    for d, eta in ((100, 0.4), (400, 0.2)):
        plain = gaussian_svm.unit_svm(p=P, m=eta * d**0.5)
        radii = np.array([0, 0.25, 0.5, 0.75, 0.9, 0.99])
        with jax.enable_x64(True):
            under = functools.partial(gaussian.robust_accuracy, p=P, eta=eta)
            w = np.append(plain.w1, np.full(d, plain.v / d**0.5))
            standard, attacked = np.asarray(under(w, eps=np.array([0, 2 * eta])))
            w1 = gaussian_svm.adversarial_svm(p=P, eta=eta, eps=2 * eta, lam=0.1)
            robust = np.asarray(under(np.append(w1, np.zeros(d)), eps=radii))
        name = f"population, d = {d}, η = {eta:g}"
        claims += [
            Claim(
                f"{name}, SVM of norm 1: above 99 %, and below 1 % under L∞ of 2η",
                f"{100 * standard:.4f} %, {100 * attacked:.4f} %",
                common.is_true(standard > 0.99 and attacked < 0.01),
            ),
            Claim(
                f"{name}, SVM trained with ε = 2η: p under every ε < 1",
                f"{100 * robust.min():.4f} to {100 * robust.max():.4f} % at six ε from "
                f"0 to {radii[-1]:g}",
                common.is_true(np.abs(robust - P).max() < 1e-12),
            ),
        ]
    return claims


def draw(exact: Accuracies, trained: Accuracies) -> dict[str, Any]:
    """The frontier with the models on it, and accuracies against the radius."""
    tau = np.linspace(0, 9, 400)
    standard, shifted = gaussian.frontier(tau, p=P, m=ETA * D**0.5)
    above = np.linspace(P, 1, 100)
    plane = figures.plane(
        {
            "best linear rules sign(τ x₁ + t)": (standard, shifted),
            "Theorem 2.1: p/(1 − p) · (1 − accuracy)": (
                above,
                gaussian.theorem_bound(above, P),
            ),
        },
        {
            "MLP, trained": (trained.standard, trained.shifted),
            "linear, trained": (exact.standard, exact.shifted),
        },
        title="No classifier is accurate and robust here",
        xlabel="standard accuracy [%]",
        ylabel="accuracy, weak features shifted [%]",
    )
    panels = [
        figures.Panel(
            {"standard": table.standard, "under L∞ of 2η": table.attacked},
            name,
            "accuracy [%]",
            "percent",
        )
        for name, table in (("linear, exact optimum", exact), ("MLP, PGD", trained))
    ]
    radius = figures.curves(
        [panels],
        title="Adversarial training finds the robust feature",
        x=RADII,
        xlabel=f"training radius ε  (η = {ETA:g}, 2p − 1 = {2 * P - 1:g})",
    )
    return {"frontier": plane, "radius": radius}


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    if arguments.smoke:
        small = {"seeds": 1, "samples": 500, "steps": 20, "test": 2000}
        arguments = dataclasses.replace(arguments, **small)
    question = "Can a classifier be accurate and robust on the Gaussian model?"
    claim = (
        "Accuracy 1 − δ leaves at most p/(1 − p) δ under attack; standard training "
        "chooses accuracy, adversarial training robustness."
    )
    common.announce(question, claim, minutes=3, seeds=arguments.seeds)
    exact, weights = linear_models(arguments)
    trained = perceptrons(arguments)
    folder = common.results_of(arguments) / "gaussian_tradeoff"
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"d = {D}, p = {P}, η = {ETA:g}, {arguments.samples} samples, "
        f"{arguments.seeds} seeds.",
        claims=judge(exact, weights, trained, arguments.test),
        drawn=draw(exact, trained),
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.gaussian_tradeoff"))
