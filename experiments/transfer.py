"""Do adversarial examples fool networks that saw none of the same training samples?

Claim (Tsipras et al., arXiv 1805.12152, section 2.2): since they move every weak
feature towards the other class, examples made against one classifier fool another one
that was trained on independent samples.

    python -m experiments.transfer [--dataset mnist]

Four standard networks for each seed, on disjoint samples: linear models and MLPs on the
Gaussian model of `gaussian_tradeoff` (L∞ of 2η), and MLPs on the images. Of the test
examples that PGD-40 turns against the network it was made for, the share that also
fools another network; random signs of the same size are the control
(`robjax.evaluation.transfer` has that share for models of any kind). The Gaussian
examples are also shifted without any model, as Theorem 2.1 does. About 1 minute of CPU
time with digits, 3 with MNIST. Numbers: docs/verdicts.md.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from experiments import common, mlps
from experiments.common import Claim
from experiments.gaussian_tradeoff import BOUNDS, EPS, LAW, D
from robjax import attacks, data, models
from robjax.balls import Linf
from robjax.checks import Bounds
from robjax.reporting import figures, tables
from robjax.theory import gaussian

NETWORKS = 4
RADIUS = {"digits": 0.2, "mnist": 0.2}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    dataset: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing; MNIST must have been prepared with TFDS."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    samples: int = 5000
    """Gaussian training samples of each network."""
    test: int = 1000
    """Test examples that are attacked."""
    steps: int = 1000
    """Batches of 100 that each network sees."""
    smoke: bool = False
    """Less than a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


class Task(NamedTuple):
    """Training and test examples of one kind of network, and how it is attacked.

    shifted: the test examples as they fool without a model, where that is known.
    """

    model: Any
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    eps: float
    bounds: Bounds
    shifted: jax.Array | None = None


class Transfer(NamedTuple):
    """What became of the examples.

    rates: [seeds] of those that turn A, for which they were made, and that B has right
        without the attack, the share that turns B too; the mean over all A ≠ B.
    control: [seeds] of the same examples, the share that random signs turn in B.
    accuracy: [seeds] of the networks in the mean.
    shifted: [seeds] of those that a network has right, the share that the shift made
        without a model turns, in the mean over networks; NaN for images.
    """

    rates: np.ndarray
    control: np.ndarray
    accuracy: np.ndarray
    shifted: np.ndarray


def tasks(arguments: Arguments) -> dict[str, list[Task]]:
    """For each seed: linear and MLP on the Gaussian model, MLP on images."""
    count, name = arguments.samples * NETWORKS, arguments.dataset
    images = {}
    for split in ("train", "test"):
        found = data.load(name, split)
        pixels = data.to_float(found.images, found.scale)
        images[split] = pixels, jnp.asarray(found.labels)
    test = tuple(part[: arguments.test] for part in images["test"])
    chosen: dict[str, list[Task]] = {}
    for seed in range(arguments.seeds):
        key = jax.random.key(2000 + seed)
        x, signs = gaussian.sample(key, count + arguments.test, d=D, **LAW)
        y, moved = (signs + 1) // 2, shift(x[count:], signs[count:])
        known = (x[:count], y[:count]), (x[count:], y[count:]), EPS, BOUNDS, moved
        of_seed = {
            "Gaussian, linear": Task(models.MLP(2, widths=()), *known),
            "Gaussian, MLP": Task(models.MLP(2, widths=(32,)), *known),
            f"{name}, MLP": Task(
                models.MLP(10, widths=(200, 100)),
                images["train"],
                test,
                RADIUS[name],
                (0, 1),
            ),
        }
        for title, task in of_seed.items():
            chosen.setdefault(title, []).append(task)
    return chosen


def shift(x: jax.Array, signs: jax.Array) -> jax.Array:
    """The attack in the proof of Theorem 2.1: every weak feature moved by −2ηy."""
    return x.at[:, 1:].add(-EPS * signs[:, None])


def measure(rows: list[Task], arguments: Arguments) -> Transfer:
    """Trains networks on disjoint samples and tries their examples on all others."""
    found = [_of_seed(task, seed, arguments) for seed, task in enumerate(rows)]
    return Transfer(*map(np.array, zip(*found, strict=True)))


def _of_seed(task: Task, seed: int, arguments: Arguments) -> tuple[float, ...]:
    (x, y), (images, labels) = task.train, task.test
    share = len(y) // NETWORKS
    rows = np.random.default_rng(seed).permutation(len(y))[: share * NETWORKS]
    weights = mlps.train(
        x,
        y,
        jnp.asarray(rows.reshape(NETWORKS, share)),
        jnp.full(NETWORKS, share),
        jnp.zeros(NETWORKS),
        seed * NETWORKS + jnp.arange(NETWORKS),
        model=task.model,
        ball=Linf,
        bounds=task.bounds,
        steps=arguments.steps,
        attack_steps=1,
    )
    key = jax.random.key(seed)
    moved = _attack(weights, images, labels, key, task.eps, task.model, task.bounds)
    signs = jax.random.rademacher(key, images.shape, images.dtype)
    noisy = jnp.clip(images + task.eps * signs, *task.bounds)

    def right(images: jax.Array) -> np.ndarray:
        found = mlps.predictions(weights, images, model=task.model)
        return np.asarray(found == labels[None])

    clean, shaken = right(images), ~right(noisy)
    rates, controls = [], []
    for source, examples in enumerate(moved):
        fooled = ~right(examples)
        for target in range(NETWORKS):
            counted = clean[source] & fooled[source] & clean[target]
            if target != source:
                rates.append(fooled[target][counted].mean())
                controls.append(shaken[target][counted].mean())
    turned = np.nan
    if task.shifted is not None:
        turned = np.mean(~right(task.shifted), axis=1, where=clean).mean()
    means = np.mean(rates), np.mean(controls), clean.mean(), turned
    return tuple(map(float, means))


@functools.partial(jax.jit, static_argnames=("model", "bounds"))
def _attack(weights: Any, x, labels, key, eps, model: Any, bounds: Bounds):
    def one(weights):
        network, ball = Partial(model.apply, weights), Linf(eps)
        return attacks.pgd(network, x, labels, key=key, ball=ball, bounds=bounds).x_adv

    return jax.vmap(one)(weights)


def judge(found: dict[str, Transfer]) -> list[Claim]:
    """Whether examples transfer, and more than noise of their size."""
    claims = []
    for name, transfer in found.items():
        rate = transfer.rates
        rates = f"transfer {tables.plus_minus(rate, unit='%')}"
        noise = f"noise turns {tables.plus_minus(transfer.control, unit='%')}"
        accuracy = f"accuracy {tables.plus_minus(transfer.accuracy, unit='%')}"
        if name.startswith("Gaussian"):
            claim = "nearly all examples transfer (above 99 %)"
            verdict = common.is_above(rate, 0.99)
        else:
            claim = "most examples transfer (above 50 %)"
            verdict = common.is_above(rate, 0.5)
        claims += [
            Claim(f"{name}: {claim}", f"{rates}; {accuracy}", verdict),
            Claim(
                f"{name}: examples transfer more than noise of their size",
                f"{rates}, {noise}",
                common.is_above(rate - transfer.control, 0),
            ),
        ]
        if name.startswith("Gaussian"):
            claims.append(
                Claim(
                    f"{name}: the shift made without a model turns nearly all (above "
                    "99 % of what was right)",
                    tables.plus_minus(transfer.shifted, unit="%"),
                    common.is_above(transfer.shifted, 0.99),
                )
            )
    return claims


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    if arguments.smoke:
        small = {"seeds": 1, "samples": 200, "test": 60, "steps": 60}
        arguments = dataclasses.replace(arguments, **small)
    question = "Do adversarial examples transfer between independent training sets?"
    claim = "What fools one classifier fools others that saw other samples."
    minutes = 3 if arguments.dataset == "mnist" else 1
    common.announce(question, claim, minutes=minutes, seeds=arguments.seeds)
    chosen = tasks(arguments)
    found = {name: measure(rows, arguments) for name, rows in chosen.items()}
    images = len(chosen[f"{arguments.dataset}, MLP"][0].test[1])
    rates = {name: transfer.rates for name, transfer in found.items()}
    noise = {name: transfer.control for name, transfer in found.items()}
    shifted = {name: transfer.shifted for name, transfer in found.items()}
    series = {
        "made for another network": rates,
        "random signs, same ε": noise,
        "shift without a model": shifted,
    }
    drawn = figures.bars(
        {"": series},
        title="What fools one network fools another",
        ylabel="examples that fool [%]",
        percent=True,
    )
    folder = common.results_of(arguments) / "transfer" / arguments.dataset
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"{NETWORKS} networks on disjoint samples, {arguments.seeds} seeds; "
        f"{arguments.test} Gaussian test examples, {images} images; L∞ ε = {EPS:g} "
        f"(Gaussian), {RADIUS[arguments.dataset]:g} ({arguments.dataset}).",
        claims=judge(found),
        drawn={"transfer": drawn},
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.transfer"))
