"""Do more iterations of an attack change interactions of high orders more?

Claim (Ren et al., arXiv 2103.07364, supplement, table 2): ΔI^(m) at high orders grows
with the iterations of PGD, 4, 8, 16, 32, for a standard ResNet-18 at 0.9 n as .194,
.312, .416, .548. Its Pearson correlation with their number is .96 to .98.

    python -m experiments.attack_iterations [--dataset mnist]

The standard networks of `kl_metric`, exact, 4×4 players, mean training image as
baseline; ε and step ε/16 as in experiments/games.py. On images that are right, and
wrong after 32 iterations. Cost: 2 minutes of CPU time on digits with networks that have
been trained. Numbers: docs/verdicts.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import common, games, networks, study
from experiments.common import Claim
from experiments.networks import Recipe
from experiments.study import Study
from robjax import attacks, data
from robjax.balls import Linf
from robjax.metrics import interactions
from robjax.reporting import figures, tables

ITERATIONS = (4, 8, 16, 32)

Found = Mapping[str, Sequence[np.ndarray]]
"""Title -> for each seed ΔI^(m) [iterations, n − 1], in the mean over images, nats."""


def measure(recipe: Recipe, logits_fn: Any, splits: networks.Splits) -> np.ndarray:
    """ΔI^(m) after each number of iterations, on the same images."""
    train, _, tracked = splits
    setting = games.setting_of(recipe)
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    versions = [
        attacks.pgd(
            logits_fn,
            x,
            y,
            ball=Linf(setting.eps),
            steps=steps,
            step_size=setting.eps / 16,
            random_start=False,
            keep_best=False,
        )
        for steps in ITERATIONS
    ]
    right = jnp.argmax(logits_fn(x), axis=1) == y
    take = np.flatnonzero(right & versions[-1].success)[: setting.fewer]
    stack = jnp.concatenate([x[take], *(found.x_adv[take] for found in versions)])
    game = interactions.image_game(
        logits_fn,
        stack,
        jnp.tile(y[take], 1 + len(ITERATIONS)),
        grid=setting.grid,
        baseline=games.mean_image(train),
        batch_size=512,
    )
    mean = interactions.exact(game, game.players).mean
    mean = mean.reshape(1 + len(ITERATIONS), len(take), -1).mean(1)
    return mean[:1] - mean[1:]


def judge(found: Found) -> list[Claim]:
    """The growth of ΔI at high orders, and the correlation order by order."""
    (rows,) = found.values()
    change = np.stack(rows)
    high = np.flatnonzero(games.high_orders(change.shape[2]))
    mean = change[:, :, high].mean(2)
    steps = np.diff(mean, axis=1).min(1)
    words = ", ".join(
        f"{count} iterations {tables.plus_minus(mean[:, i])}"
        for i, count in enumerate(ITERATIONS)
    )
    claims = [
        Claim(
            "ΔI at high orders grows with every doubling of the iterations",
            f"{words} nats",
            common.is_above(steps, 0),
        )
    ]
    for order in high:
        rho = np.array([_pearson(seed[:, order]) for seed in change])
        claims.append(
            Claim(
                f"order {order}: ΔI is correlated with the iterations (above 0.9)",
                f"Pearson {tables.plus_minus(rho)}",
                common.is_above(rho, 0.9),
            )
        )
    return claims


def _pearson(values: np.ndarray) -> float:
    if np.ptp(values) == 0:
        return float("nan")
    return float(np.corrcoef(ITERATIONS, values)[0, 1])


def draw(found: Found) -> dict[str, Any]:
    """ΔI over the orders, for each number of iterations."""
    (rows,) = found.values()
    series = {
        f"{count} iterations": np.stack([seed[i] for seed in rows])
        for i, count in enumerate(ITERATIONS)
    }
    panel = figures.Panel(series, "", "ΔI [nats]")
    title = "What more iterations change"
    return {"change": figures.curves([[panel]], title=title, xlabel="order m")}


STUDY = Study(
    name="attack_iterations",
    question="Do more iterations of an attack change interactions of high orders more?",
    claim="ΔI at high orders grows with the iterations of PGD, and is correlated with "
    "their number.",
    variants=study.by_objective("standard"),
    judge=judge,
    draw=draw,
    collect=study.each_network(measure),
)

if __name__ == "__main__":
    study.main(STUDY)
