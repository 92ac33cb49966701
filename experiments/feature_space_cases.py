"""Which features can be robust, which accurate: the four cases, and trained networks.

Claims (Wang, Gao and Qi, arXiv 1612.00334): a classifier on features that the oracle
ignores (cases I and II) is not strong-robust, one on the oracle's features or fewer
(III and IV) is; accurate can be II and III.

    python -m experiments.feature_space_cases [--dataset mnist]

Linear maps: x ~ N(0, I₄), the oracle says sign(x₁ + x₂) and sees (x₁, x₂); logistic
regression on the features of each case. Networks: MLPs 200-100 on all pixels and on the
oracle's components alone, with a PCA oracle (16 components on digits, 50 on MNIST), a
proxy of whoever labelled the images: x and x' with equal components look alike to it,
not to us. Worst cases are found by an attack and verified, d₂' in float64. Numbers:
docs/verdicts.md.
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
from robjax import data, models
from robjax.balls import L2
from robjax.metrics import strong_robustness
from robjax.reporting import figures, tables
from robjax.theory import feature_spaces
from robjax.training import linear

SEEN = np.eye(2, 4)
MAPS = {
    "I": np.eye(4)[[0, 2]],
    "II": np.eye(3, 4),
    "III": np.array([[1.0, 1, 0, 0], [1, -1, 0, 0]]),
    "IV": np.eye(1, 4),
}
ROBUST = ("III", "IV")
ACCURATE = ("II", "III")
WIDE = (-1e4, 1e4)  # no limit
DELTA = 0.1  # of linear maps, besides 0
COMPONENTS = {"digits": 16, "mnist": 50}
DELTAS = {"digits": 0.3, "mnist": 0.5}
TITLES = ("all pixels", "the oracle's components")
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What can be told on the command line."""

    dataset: Literal["digits", "mnist"] = "digits"
    """Digits needs nothing; MNIST must have been prepared with TFDS."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    steps: int = 1000
    """Batches of 100 that each network sees."""
    images: int = 200
    """Test images that are attacked."""
    smoke: bool = False
    """Less than a minute, to see that everything works; under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


class Case(NamedTuple):
    """A trained linear classifier on the features of one case.

    case: as `feature_spaces.case` names it.
    accuracy: on fresh samples.
    worst: at δ₂ = 0 and at DELTA, shares that are right and do not flip.
    flipped: share of all that flip at δ₂ = 0.
    wrong: shares of the samples whose verdict is not that of the exact distance, at 0
      and at DELTA; those within 1 % of δ₂ left out.
    """

    case: str
    accuracy: float
    worst: tuple[float, float]
    flipped: float
    wrong: float


class Network(NamedTuple):
    """A network and the oracle on the test images.

    accuracy: on all test images.
    worst: at δ₂ = 0 and at that of DELTAS, shares that are right and do not flip.
    flipped: share of the attacked images that flip at δ₂ = 0.
    distance: largest d₂' of these flips.
    length: their median Euclidean length; 0 for none.
    agreement: share of random pairs that agree, at d₂' = 0 and of that length.
    ignored: share of the squared gradient of the logits that the oracle ignores.
    shown: arrays for pictures.
    """

    accuracy: float
    worst: tuple[float, float]
    flipped: float
    distance: float
    length: float
    agreement: float
    ignored: float
    shown: dict[str, np.ndarray]


def linear_case(name: str, seed: int, count: int) -> Case:
    """Trains logistic regression on A₁x, and attacks it where the oracle is blind."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1000 + count, 4)).astype(np.float32)
    y = np.where(x[:, 0] + x[:, 1] > 0, 1, -1)
    a1 = MAPS[name]
    fit = linear.fit(x[:1000] @ a1.T, y[:1000], eps=0.0, l2=1e-3)
    w = a1.T @ fit.w
    model = fit._replace(w=w).logits_fn
    x, y = x[1000:], y[1000:]
    right = np.asarray(jnp.argmax(model(jnp.asarray(x)), axis=1)) == (y > 0)
    exact = feature_spaces.minimal_flip_distance(w, fit.b, x, SEEN)
    flips, wrong = [], 0.0
    for delta in (0.0, DELTA):
        found = strong_robustness.worst_case_agreement(
            model,
            x,
            oracle=strong_robustness.linear(SEEN),
            delta=delta,
            key=jax.random.key(seed),
            bounds=WIDE,
            steps=10,
        )
        flips.append(np.asarray(found.success))
        clear = np.abs(exact - delta) >= 0.01 * delta
        wrong = max(wrong, np.mean((flips[-1] != (exact <= delta)) & clear))
    first, second = (float(np.mean(right & ~flip)) for flip in flips)
    return Case(
        case=feature_spaces.case(a1, SEEN),
        accuracy=float(right.mean()),
        worst=(first, second),
        flipped=float(flips[0].mean()),
        wrong=float(wrong),
    )


class _OnComponents(NamedTuple):
    """A model that sees the oracle's components alone."""

    model: Any

    def __call__(self, oracle: Any, weights: Any, x: jax.Array) -> jax.Array:
        return self.model.apply(weights, oracle.project(x))


def networks(arguments: Arguments) -> dict[str, list[Network]]:
    """Trains and measures the networks of all seeds."""
    name = arguments.dataset
    train, test = (data.load(name, split) for split in ("train", "test"))
    if arguments.smoke:
        train, test = data.subset(train, 200), data.subset(test, 40)
    x, y = data.to_float(train.images, train.scale), jnp.asarray(train.labels)
    oracle = strong_robustness.pca(x, COMPONENTS[name])
    model = models.MLP(10, widths=(8,) if arguments.smoke else (200, 100))
    fitted = functools.partial(
        mlps.train,
        y=y,
        rows=jnp.tile(jnp.arange(len(y))[None], (arguments.seeds, 1)),
        counts=jnp.full(arguments.seeds, len(y)),
        eps=jnp.zeros(arguments.seeds),
        seeds=jnp.arange(arguments.seeds),
        model=model,
        ball=L2,
        bounds=(-9.0, 9.0),  # components alone leave those of images
        steps=arguments.steps,
        attack_steps=1,
    )
    found = {}
    for title, images in zip(TITLES, (x, oracle.project(x)), strict=True):
        weights = fitted(x=images)
        each = [mlps.select(weights, seed) for seed in range(arguments.seeds)]
        fns = (
            [Partial(model.apply, w) for w in each]
            if title == TITLES[0]
            else [Partial(_OnComponents(model), oracle, w) for w in each]
        )
        found[title] = [measure(fn, oracle, test, arguments, seed)
                        for seed, fn in enumerate(fns)]  # fmt: skip
        print(f"{title}: {found[title][0].flipped:.1%} flipped", flush=True)
    return found


def measure(
    fn: Any, oracle: Any, test: data.Dataset, arguments: Arguments, seed: int
) -> Network:
    """Worst cases, the average and unnecessary directions of one network."""
    every = data.to_float(test.images, test.scale)
    right = np.asarray(jnp.argmax(fn(every), axis=1)) == test.labels
    count = min(arguments.images, len(every))
    x = every[:count]
    near: Any = {"oracle": oracle, "key": jax.random.key(seed)}
    found = [
        strong_robustness.worst_case_agreement(fn, x, delta=delta, steps=20, **near)
        for delta in (0.0, DELTAS[arguments.dataset])
    ]
    first = jax.device_get(found[0])
    flips = np.asarray(first.success)
    moved = np.sqrt(np.sum((first.x_adv - np.asarray(x)) ** 2, axis=(1, 2, 3)))[flips]
    length = float(np.median(moved)) if len(moved) else 0.0
    agreement = strong_robustness.pair_agreement(
        fn, x, delta=0.0, ignored=length, pairs=20, **near
    )
    used = strong_robustness.unnecessary_directions(fn, x, oracle=oracle, count=SHOWN)
    rows = np.flatnonzero(flips)[:SHOWN]
    shown = {
        "image": np.asarray(x)[rows],
        "flip": first.x_adv[rows],
        "projection": np.asarray(oracle.project(found[0].x_adv))[rows],
        "says": np.stack([test.labels[:count][rows], first.label[rows]]),
        "directions": used.directions,
        "shares": used.share,
    }
    here, there = (
        float(np.mean(right[:count] & ~np.asarray(each.success))) for each in found
    )
    return Network(
        accuracy=float(right.mean()),
        worst=(here, there),
        flipped=float(flips.mean()),
        distance=float(first.distance.max()),
        length=length,
        agreement=float(agreement.estimate),
        ignored=used.ignored,
        shown=shown,
    )


def judge(
    cases: dict[str, list[Case]], found: dict[str, list[Network]], delta: float
) -> list[Claim]:
    """The table of cases, its counter-example, and the networks."""
    claims = []
    for name, rows in cases.items():
        robust, accurate = name in ROBUST, name in ACCURATE
        flipped = np.array([row.flipped for row in rows])
        accuracy = np.array([row.accuracy for row in rows])
        as_said = (flipped == 0) if robust else (flipped == 1)
        right = (accuracy > 0.99) if accurate else (accuracy < 0.95)
        named = all(row.case == name for row in rows)
        claims.append(
            Claim(
                f"case {name}: {'no' if robust else 'every'} sample flips at d₂' = 0; "
                f"accuracy {'above 99' if accurate else 'below 95'} %",
                f"{tables.plus_minus(flipped, unit='%')} flip; accuracy "
                f"{tables.plus_minus(accuracy, unit='%')}",
                common.is_true(as_said.all() and right.all() and named),
            )
        )
    wrong = max(row.wrong for rows in cases.values() for row in rows)
    x = np.random.default_rng(0).normal(size=(100, 4))
    constant = feature_spaces.constant_classifier(MAPS["II"], SEEN, x)
    every, seen = (found[title] for title in TITLES)
    flipped = [row.flipped for row in every]
    loss = [a.accuracy - b.accuracy for a, b in zip(every, seen, strict=True)]
    far = [row.distance for row in every]
    pairs = [row.agreement for row in every]
    ignored = [row.ignored for row in every]
    behind = [b.worst[1] - b.accuracy for b in seen]
    return [
        *claims,
        Claim(
            "the attack flips what the exact distances say, at δ₂ = 0 and "
            f"{DELTA} (but for 1 % of δ₂)",
            f"{wrong:.1%} of the samples of a classifier differ at most",
            common.is_true(wrong == 0),
        ),
        Claim(
            "in cases I and II no classifier is strong-robust",
            f"the constant classifier, case {constant.spaces.case}, flips "
            f"{np.isfinite(constant.distance).mean():.0%} of its samples",
            common.is_true(np.isfinite(constant.distance).all()),
        ),
        Claim(
            "network on all pixels: most images flip at d₂' = 0 (above 50 %)",
            f"{tables.plus_minus(flipped, unit='%')}; accuracy "
            f"{tables.plus_minus([row.accuracy for row in every], unit='%')}",
            common.is_above(flipped, 0.5),
        ),
        Claim(
            "d₂' of these flips is 0 to 1e-6",
            f"at most {max(far):.1g}; median length "
            f"{tables.plus_minus([row.length for row in every])}",
            common.is_true(max(far) <= 1e-6 and min(flipped) > 0),
        ),
        Claim(
            "random pairs show it: of pairs at d₂' = 0 with changes as long, less "
            "than 99 % agree",
            tables.plus_minus(pairs, unit="%"),
            common.is_below(pairs, 0.99),
        ),
        Claim(
            "the logits' gradient lies mostly where the oracle does not look (above "
            "50 % of its square)",
            tables.plus_minus(ignored, unit="%"),
            common.is_above(ignored, 0.5),
        ),
        Claim(
            "network on the oracle's components: no image flips at d₂' = 0",
            f"{tables.plus_minus([row.flipped for row in seen], unit='%')}",
            common.is_true(max(row.flipped for row in seen) == 0),
        ),
        Claim(
            "and it is as accurate, to 2 points",
            f"{tables.plus_minus(loss, unit='%')} less",
            common.is_below(loss, 0.02),
        ),
        Claim(
            f"but at δ₂ = {delta} it is not robust either: worst-case accuracy is at "
            "least 10 points below accuracy",
            f"{tables.plus_minus([row.worst[1] for row in seen], unit='%')}",
            common.is_below(behind, -0.1),
        ),
    ]


def draw(found: dict[str, list[Network]]) -> dict[str, Any]:
    """Flips at d₂' = 0, and the directions that the network uses for them."""
    shown = found[TITLES[0]][0].shown
    drawn = {}
    if len(shown["image"]):
        change = shown["flip"] - shown["image"]
        captions = [f"{a} → {b}" for a, b in shown["says"].T]
        drawn["flips"] = figures.pictures(
            {
                "image": shown["image"],
                "flipped at d₂' = 0": shown["flip"],
                "change (½ is 0)": (1 + change) / 2,
                "the oracle sees\nof both": np.clip(shown["projection"], 0, 1),
            },
            title="Flips that a PCA oracle does not see",
            columns=captions,
        )
    directions = shown["directions"]
    largest = np.abs(directions).max(axis=(1, 2, 3), keepdims=True)
    drawn["directions"] = figures.pictures(
        {
            "direction\n(½ is 0)": (1 + directions / np.where(largest > 0, largest, 1))
            / 2
        },
        title="Directions that the network uses and the oracle ignores",
        columns=[f"{share:.1%}" for share in shown["shares"]],
    )
    accuracies = {
        title: {
            "accuracy": [row.accuracy for row in rows],
            "worst case, δ₂ = 0": [row.worst[0] for row in rows],
            "worst case, δ₂ > 0": [row.worst[1] for row in rows],
        }
        for title, rows in found.items()
    }
    drawn["accuracies"] = figures.bars(
        {"": accuracies},
        title="Networks, and an oracle of principal components",
        ylabel="right [%]",
        percent=True,
    )
    return drawn


def main(arguments: Arguments) -> Path:
    """Runs the experiment and returns the folder of its results."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, images=20, steps=20)
    question = "Which features can be robust, and which accurate?"
    claim = (
        "A classifier on features that the oracle ignores is not strong-robust, one on "
        "the oracle's features or fewer is; accurate can be those on the oracle's or "
        "more."
    )
    minutes = {"digits": 2, "mnist": 7}[arguments.dataset]
    common.announce(question, claim, minutes=minutes, seeds=arguments.seeds)
    count = 100 if arguments.smoke else 2000
    cases = {
        name: [linear_case(name, seed, count) for seed in range(arguments.seeds)]
        for name in MAPS
    }
    found = networks(arguments)
    delta = DELTAS[arguments.dataset]

    def cells(rows: Any, pick: Any) -> str:
        return tables.plus_minus([pick(row) for row in rows], unit="%")

    header = ["classifier", "accuracy", "worst case, δ₂ = 0", "worst case, δ₂ > 0"]
    table = tables.markdown(
        header,
        [
            (name, cells(rows, lambda r: r.accuracy), *(
                cells(rows, lambda r, i=i: r.worst[i]) for i in range(2)))
            for name, rows in {**{f"case {n}": r for n, r in cases.items()},
                               **found}.items()
        ],
    )  # fmt: skip
    folder = common.results_of(arguments) / "feature_space_cases" / arguments.dataset
    common.write_report(
        folder,
        question=question,
        claim=claim,
        setting=arguments.smoke
        * common.SMOKE
        + f"{arguments.dataset}, PCA oracle of {COMPONENTS[arguments.dataset]} "
        f"components, {arguments.seeds} seeds, {arguments.images} images attacked.",
        claims=judge(cases, found, delta),
        drawn=draw(found),
        rest=f"δ₂ > 0 is {DELTA} for the cases, {delta} for the networks.\n\n{table}",
    )
    return folder


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="python -m experiments.feature_space_cases"))
