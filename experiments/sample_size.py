"""Does adversarial training help standard accuracy when there is little data?

Claim (Tsipras et al., arXiv 1805.12152, figure 1): with few training images adversarial
training (L2) raises standard accuracy, with many it lowers it; the larger ε, the
earlier it turns.

    python -m experiments.sample_size [--dataset mnist]

MLPs 784-200-100-10, 1000 batches of 100 with Adam whatever the number of images, PGD-7;
all radii and seeds of one size are one vmapped program. Standard accuracy on all test
images, robust accuracy under PGD-40 on 1000. What is done is kept, seed by seed: more
seeds cost only themselves. About 4 minutes of CPU time on digits, 30 on MNIST. Numbers:
docs/verdicts.md.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from experiments import common, mlps
from experiments.common import HELD, Claim
from robjax import attacks, data, models
from robjax.balls import L2
from robjax.reporting import figures, tables
from robjax.runs import files

MODEL = models.MLP(10, widths=(200, 100))


class Plan(NamedTuple):
    """Numbers of training images, which are "few" and "many", and radii in L2."""

    sizes: tuple[int, ...]
    few: int
    many: int
    radii: tuple[float, ...]
    tested: float


PLANS = {
    "digits": Plan((50, 100, 200, 400, 800, 1437), 100, 1437, (0, 0.2, 0.6, 1.0), 0.6),
    "mnist": Plan(
        (100, 300, 1000, 3000, 10_000), 1000, 10_000, (0, 0.5, 1.5, 2.0, 2.5), 1.5
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    dataset: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing; MNIST must have been prepared with TFDS."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    steps: int = 1000
    """Batches of 100 that each network sees."""
    smoke: bool = False
    """Less than a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


def measure(arguments: Arguments, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Standard and robust accuracy, each [seeds, radii, sizes]."""
    plan, seeds = PLANS[arguments.dataset], arguments.seeds
    train, test = (data.load(arguments.dataset, split) for split in ("train", "test"))
    x, y = data.to_float(train.images, train.scale), jnp.asarray(train.labels)
    images, labels = data.to_float(test.images, test.scale), jnp.asarray(test.labels)
    folder.mkdir(parents=True, exist_ok=True)
    radii = "_".join(f"{radius:g}" for radius in plan.radii)
    accuracies = []
    for size in plan.sizes:
        # all that decides the numbers; what was kept for another plan is not theirs
        plain = f"{arguments.steps}-{radii}-{plan.tested:g}.npz"
        paths = [folder / f"{size}-{seed}-{plain}" for seed in range(seeds)]
        missing = [seed for seed, file in enumerate(paths) if not file.exists()]
        if missing:
            found = _of_size(size, missing, arguments, x, y, images, labels)
            for seed, pair in zip(missing, found, strict=True):
                files.save_npz(paths[seed], {"standard": pair[0], "robust": pair[1]})
        found = [files.load_npz(file) for file in paths]
        accuracies.append([(f["standard"], f["robust"]) for f in found])
        shares = np.mean([f["standard"] for f in found], axis=0)
        print(f"{size} images: {np.round(100 * shares, 1)} %", flush=True)
    standard, robust = np.moveaxis(np.array(accuracies), (2, 0), (0, -1))
    return standard, robust


def _of_size(
    size: int, seeds: list[int], arguments: Arguments, x, y, images, labels
) -> np.ndarray:
    """Standard and robust accuracy, [seeds, 2, radii]."""
    plan = PLANS[arguments.dataset]
    most = max(plan.sizes)
    drawn = [np.random.default_rng(s).permutation(len(y))[:most] for s in seeds]
    radii = jnp.array(plan.radii, jnp.float32)
    weights = mlps.train(
        x,
        y,
        jnp.repeat(jnp.asarray(np.stack(drawn)), len(radii), axis=0),
        jnp.full(len(seeds) * len(radii), size),
        jnp.tile(radii, len(seeds)),
        jnp.repeat(jnp.asarray(seeds), len(radii)),
        model=MODEL,
        ball=L2,
        steps=arguments.steps,
    )
    right = mlps.predictions(weights, images, model=MODEL) == labels[None]
    robust = _robust(weights, images[:1000], labels[:1000], plan.tested)
    shape = len(seeds), len(radii), -1
    shares = [np.reshape(hits, shape).mean(axis=2) for hits in (right, robust)]
    return np.stack(shares, axis=1)


@jax.jit
def _robust(weights: Any, images: jax.Array, labels: jax.Array, eps: float):
    def one(weights):
        network = Partial(MODEL.apply, weights)
        key = jax.random.key(0)
        return ~attacks.pgd(network, images, labels, key=key, ball=L2(eps)).success

    return jax.lax.map(one, weights)


def judge(plan: Plan, standard: np.ndarray, robust: np.ndarray) -> list[Claim]:
    """Each radius against standard training, with few and with many images."""
    few, many = plan.sizes.index(plan.few), plan.sizes.index(plan.many)
    gain = standard[:, 1:] - standard[:, :1]
    # for "some ε" as many radii are tried as there are
    strict = 1 - 0.05 / gain.shape[1]
    claims, both = [], []
    for index, radius in enumerate(plan.radii[1:]):
        pair = gain[:, index, few], gain[:, index, many]
        both.append(
            common.is_above(pair[0], 0, strict) == HELD
            and common.is_below(pair[1], 0, strict) == HELD
        )
        for values, count, words, judged in (
            (pair[0], plan.few, "helps", common.is_above),
            (pair[1], plan.many, "hurts", common.is_below),
        ):
            claims.append(
                Claim(
                    f"ε = {radius:g} {words} standard accuracy with {count} images",
                    f"{tables.plus_minus(100 * values)} points",
                    judged(values, 0),
                )
            )
    turns = np.array([[_turn(plan.sizes, g) for g in row] for row in gain])
    testable = len(standard) > 1
    words = (
        f"ε = {radius:g}: {'yes' if b else 'no'}"
        for radius, b in zip(plan.radii[1:], both, strict=True)
    )
    claims += [
        Claim(
            "for some ε adversarial training helps with few images and hurts with many "
            f"(each at {100 * strict:.4g} %, for the number of radii)",
            ", ".join(words),
            common.is_true(any(both)) if testable else common.UNTESTABLE,
        ),
        Claim(
            "the larger ε, the earlier it turns, in every seed",
            "; ".join(
                f"ε = {radius:g}: {_words(column)}"
                for radius, column in zip(plan.radii[1:], turns.T, strict=True)
            ),
            common.is_true(all(map(_falling, turns)))
            if testable
            else common.UNTESTABLE,
        ),
    ]
    at = plan.radii.index(plan.tested)
    rise = robust[:, at, many] - robust[:, at, few]
    claims.append(
        Claim(
            f"robust accuracy of ε = {plan.tested:g} rises with the number of images",
            f"{tables.plus_minus(robust[:, at, few], unit='%')} to "
            f"{tables.plus_minus(robust[:, at, many], unit='%')}",
            common.is_above(rise, 0),
        )
    )
    return claims


def _turn(sizes: tuple[int, ...], gain: np.ndarray) -> float:
    """Where a gain [sizes] falls below 0 for good, on a logarithmic scale; or inf."""
    if gain[-1] >= 0:
        return np.inf
    last = np.flatnonzero(gain >= 0)
    if last.size == 0:
        return float(sizes[0])
    i = last[-1]
    share = gain[i] / (gain[i] - gain[i + 1])
    return float(np.exp((1 - share) * np.log(sizes[i]) + share * np.log(sizes[i + 1])))


def _falling(turns: np.ndarray) -> bool:
    """Whether they fall with the radius; those that never turn may stand first."""
    earlier = all(a >= b for a, b in itertools.pairwise(turns))
    return bool(earlier and turns[-1] < turns[0])


def _words(turns: np.ndarray) -> str:
    return ", ".join("never" if np.isinf(t) else f"{t:.0f} images" for t in turns)


def draw(plan: Plan, standard: np.ndarray, robust: np.ndarray) -> dict[str, Any]:
    """Both accuracies against the number of training images, a line for each radius."""
    rows = []
    for rates, words in (
        (standard, "standard accuracy [%]"),
        (robust, f"accuracy [%], L2 ε = {plan.tested:g}"),
    ):
        series = {
            f"trained at L2 ε = {radius:g}": 100 * rates[:, index]
            for index, radius in enumerate(plan.radii)
        }
        rows.append([figures.Panel(series, "", words)])
    figure = figures.curves(
        rows,
        title="Accuracy against the number of training images",
        x=plan.sizes,
        xlabel="number of training images",
        xscale="log",
    )
    return {"sample_size": figure}


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, seeds=1, steps=20)
    question = "Does adversarial training help standard accuracy with little data?"
    claim = (
        "With few training images adversarial training raises standard accuracy, with "
        "many it lowers it."
    )
    minutes = 30 if arguments.dataset == "mnist" else 4
    common.announce(question, claim, minutes=minutes, seeds=arguments.seeds)
    plan = PLANS[arguments.dataset]
    folder = common.results_of(arguments) / "sample_size" / arguments.dataset
    standard, robust = measure(arguments, folder)
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"MLP on {arguments.dataset}, {arguments.steps} batches of 100, "
        f"{arguments.seeds} seeds.",
        claims=judge(plan, standard, robust),
        drawn=draw(plan, standard, robust),
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.sample_size"))
