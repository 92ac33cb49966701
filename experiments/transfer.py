"""Do adversarial examples fool networks that saw none of the same training samples?

Claim (Tsipras et al., arXiv 1805.12152, section 2.2): since they move every weak
feature towards the other class, examples made against one classifier fool another one
that was trained on independent samples.

    python -m experiments.transfer [--dataset mnist]

Four standard networks for each seed, on disjoint samples: linear models and MLPs on the
Gaussian model of `gaussian_tradeoff` (L∞ of 2η), and MLPs on the images. Of the test
examples that PGD-40 turns against the network it was made for, the share that also
fools another network; random signs of the same size are the control. About 2 minutes of
CPU time. Numbers: experiments/README.md.
"""

import dataclasses
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
from robjax.inputs import Bounds
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
    """A few seconds, to see that everything works."""
    results: Path = Path("results")
    """Folder of all results."""


class Task(NamedTuple):
    """Training and test examples of one kind of network, and how it is attacked."""

    model: Any
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    eps: float
    bounds: Bounds


class Transfer(NamedTuple):
    """What became of the examples.

    rates: [seeds] of those that turn A, for which they were made, and that B has right
        without the attack, the share that turns B too; the mean over all A ≠ B.
    control: [seeds] share of what is right that random signs turn.
    accuracy: [seeds] of the networks in the mean.
    """

    rates: np.ndarray
    control: np.ndarray
    accuracy: np.ndarray


def tasks(arguments: Arguments) -> dict[str, Task]:
    """Linear and MLP on the Gaussian model, MLP on images."""
    count = arguments.samples * NETWORKS
    key = jax.random.key(2000)
    x, y = gaussian.sample(key, count + arguments.test, d=D, **LAW)
    y = (y + 1) // 2
    known = (x[:count], y[:count]), (x[count:], y[count:]), EPS, BOUNDS
    images = {}
    for split in ("train", "test"):
        found = data.load(arguments.dataset, split)
        pixels = data.to_float(found.images, found.scale)
        images[split] = pixels, jnp.asarray(found.labels)
    test = tuple(part[: arguments.test] for part in images["test"])
    radius = RADIUS[arguments.dataset]
    return {
        "Gaussian, linear": Task(models.MLP(2, widths=()), *known),
        "Gaussian, MLP": Task(models.MLP(2, widths=(32,)), *known),
        f"{arguments.dataset}, MLP": Task(
            models.MLP(10, widths=(200, 100)), images["train"], test, radius, (0, 1)
        ),
    }


def measure(task: Task, arguments: Arguments) -> Transfer:
    """Trains the networks on disjoint samples and tries their examples on all."""
    seeds = arguments.seeds
    (x, y), (images, labels) = task.train, task.test
    share = len(y) // NETWORKS
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(y))[: share * NETWORKS] for _ in range(seeds)]
    weights = mlps.train(
        x,
        y,
        jnp.asarray(np.stack(rows).reshape(seeds * NETWORKS, share)),
        jnp.full(seeds * NETWORKS, share),
        jnp.zeros(seeds * NETWORKS),
        jnp.arange(seeds * NETWORKS),
        model=task.model,
        ball=Linf,
        bounds=task.bounds,
        steps=arguments.steps,
        attack_steps=1,
    )

    @jax.jit
    @jax.vmap
    def attack(weights: Any) -> jax.Array:
        return attacks.pgd(
            Partial(task.model.apply, weights),
            images,
            labels,
            key=jax.random.key(0),
            ball=Linf(task.eps),
            bounds=task.bounds,
        ).x_adv

    def right(weights: Any, images: jax.Array) -> np.ndarray:
        found = mlps.predictions(weights, images, model=task.model)
        return np.asarray(found == labels[None])

    signs = jax.random.rademacher(jax.random.key(1), images.shape, images.dtype)
    noisy = jnp.clip(images + task.eps * signs, *task.bounds)
    clean, shaken = right(weights, images), right(weights, noisy)
    rates = np.zeros((seeds, NETWORKS, NETWORKS))
    for index, moved in enumerate(attack(weights)):
        seed, source = divmod(index, NETWORKS)
        team = slice(seed * NETWORKS, (seed + 1) * NETWORKS)
        own = jax.tree.map(lambda leaf, team=team: leaf[team], weights)
        fooled, able = ~right(own, moved) & clean[team], clean[team]
        counted = fooled[source] & able
        rates[seed, source] = (fooled & counted).sum(1) / counted.sum(1)
    others = ~np.eye(NETWORKS, dtype=bool)
    by_seed = (seeds, NETWORKS, -1)
    turned = (clean & ~shaken).reshape(by_seed).sum(2) / clean.reshape(by_seed).sum(2)
    accuracy = clean.reshape(by_seed).mean((1, 2))
    return Transfer(rates[:, others].mean(1), turned.mean(1), accuracy)


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
    return claims


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    if arguments.smoke:
        small = {"seeds": 1, "samples": 200, "test": 60, "steps": 60}
        arguments = dataclasses.replace(arguments, **small)
    question = "Do adversarial examples transfer between independent training sets?"
    claim = "What fools one classifier fools others that saw other samples."
    print(f"{question}\nClaim: {claim}\nCost: about 2 minutes of CPU time.", flush=True)
    found = {name: measure(task, arguments) for name, task in tasks(arguments).items()}
    rates = {name: transfer.rates for name, transfer in found.items()}
    noise = {name: transfer.control for name, transfer in found.items()}
    drawn = figures.bars(
        {"": {"made for another network": rates, "random signs, same ε": noise}},
        title="What fools one network fools another",
        ylabel="examples that fool [%]",
        percent=True,
    )
    folder = arguments.results / "transfer" / arguments.dataset
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=f"{NETWORKS} networks on disjoint samples, {arguments.test} test "
        f"examples, {arguments.seeds} seeds; L∞ ε = {EPS:g} (Gaussian), "
        f"{RADIUS[arguments.dataset]:g} ({arguments.dataset}).",
        claims=judge(found),
        drawn={"transfer": drawn},
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.transfer"))
