"""Exact interaction games of the shared networks, on images matched between them.

Attacks on a standard and on a robust network stop at the same utility, see
`robjax.metrics.interactions.utility_attack`. Only images accepted for both networks of
a seed are played, so that both are played on the same ones. Every game has 4×4 players
(MNIST: 7×2). All its sets are played, for the image and its adversarial version.

What was played lies in results/games/, and is found again by the next study.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import networks
from experiments.networks import TITLES, Recipe
from robjax import data
from robjax.balls import Linf
from robjax.metrics import interactions
from robjax.reporting import tables
from robjax.runs import files

STANDARD, ROBUST = TITLES["standard"], TITLES["madry"]
# To be raised with any change of what is played below.
FORMAT = 2


class Setting(NamedTuple):
    """How strong attacks are, and what is played.

    eps: radius in L∞, larger than in training, since robust networks must lose as much.
    utility, tolerance: the window, in logits.
    images: at the most, for each seed.
    fewer: so many for the games besides the first.
    grid: rows and columns of players.
    """

    eps: float
    utility: float
    tolerance: float = 0.5
    images: int = 24
    fewer: int = 24
    grid: tuple[int, int] = (4, 4)


SETTINGS = {
    "digits": Setting(eps=0.3, utility=4.0),
    # 4×4 cells would cost four times as much
    "mnist": Setting(eps=0.4, utility=6.0, images=12, fewer=4, grid=(7, 2)),
    "cifar10": Setting(eps=16 / 255, utility=4.0, images=32),
}
SMOKE = Setting(eps=0.3, utility=0.02, images=2, fewer=1, grid=(2, 4))
# what stands in for absent players: the mean training image, its mean in each channel
# (as in the paper's code), nothing
MEAN_IMAGE, MEAN_COLOUR, BLACK = "mean image", "mean colour", "black"
TARGETED = "mean image, targeted"
GAMES = (MEAN_IMAGE, MEAN_COLOUR, BLACK, TARGETED)

Table = dict[str, np.ndarray]
"""What was played of one network, name -> array; B images, n players.

    accepted                 share of the tracked images, untargeted
    accepted, targeted       the same
    images [2, B, H, W, C]   the images of the first game and their adversarial versions
    grid [2]                 rows and columns of the players
    pairs [2, n − 1, n, n]   the interactions of the first one
    and for each of GAMES, as "<game>/<name>":
    mean [2, B, n − 1]       mean interaction over all pairs, of x and of x_adv
    value, empty, single [B] attack utility, that of ∅, of the players alone
    orders [B, n − 1]        what the interactions of each order add to it
    ratios, means [B, n − 1] D^(m) of x, mean of ratios and ratio of means
"""


def setting_of(recipe: Recipe) -> Setting:
    """The setting of the data set; a linear network means a smoke run."""
    return SMOKE if recipe.model == "linear" else SETTINGS[recipe.dataset]


def collect(
    recipes: Mapping[str, Sequence[Recipe]], results: Path
) -> dict[str, list[Table]]:
    """Title -> what was played of the network of each seed."""
    rows = list(zip(*recipes.values(), strict=True))
    seeds = [_collect_seed(row, results) for row in rows]
    return {title: [seed[i] for seed in seeds] for i, title in enumerate(recipes)}


def _collect_seed(row: Sequence[Recipe], results: Path) -> list[Table]:
    """The tables of the networks of one seed, played if they have not been."""
    folders = [networks.obtain(recipe, results) for recipe in row]
    setting = setting_of(row[0])
    decides = [[folder.name for folder in folders], setting, FORMAT]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:8]
    name = f"{row[0].dataset}-{row[0].fit.seed}-{digest}.npz"
    path = results / "games" / name
    if not path.exists():
        splits = networks.load_splits(row[0])
        logits_fns = [
            networks.train(recipe, folder, splits)
            for recipe, folder in zip(row, folders, strict=True)
        ]
        played = _play(logits_fns, splits, setting)
        path.parent.mkdir(parents=True, exist_ok=True)
        flat = {
            f"{i}/{k}": v for i, table in enumerate(played) for k, v in table.items()
        }
        files.save_npz(path, flat)
        print(f"played {name}", flush=True)
    flat = files.load_npz(path)
    return [
        {k.removeprefix(f"{i}/"): v for k, v in flat.items() if k.startswith(f"{i}/")}
        for i in range(len(row))
    ]


def _play(
    logits_fns: Sequence[Any], splits: networks.Splits, setting: Setting
) -> list[Table]:
    train, _, tracked = splits
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    mean = mean_image(train)
    baselines = {
        MEAN_IMAGE: mean,
        TARGETED: mean,
        MEAN_COLOUR: mean.mean((0, 1)),
        BLACK: "zero",
    }
    attack = {
        "ball": Linf(setting.eps),
        "utility": setting.utility,
        "tolerance": setting.tolerance,
    }
    free = [interactions.utility_attack(f, x, y, **attack) for f in logits_fns]
    # the class that the untargeted attack found; another one where it found none
    aims = [
        _other(f(found.x_adv), y) for f, found in zip(logits_fns, free, strict=True)
    ]
    aimed = [
        interactions.utility_attack(f, x, y, target=aim, **attack)
        for f, aim in zip(logits_fns, aims, strict=True)
    ]
    found: list[Table] = [
        {
            "accepted": np.asarray(jnp.mean(a.accepted)),
            "accepted, targeted": np.asarray(jnp.mean(b.accepted)),
        }
        for a, b in zip(free, aimed, strict=True)
    ]
    for game, baseline in baselines.items():
        attacks = aimed if game == TARGETED else free
        count = setting.images if game == MEAN_IMAGE else setting.fewer
        take = _matched(attacks, count)
        for table, f, attacked in zip(found, logits_fns, attacks, strict=True):
            pair = (x[take], attacked.x_adv[take])
            value_fn = interactions.image_game(
                f, pair, y[take], grid=setting.grid, baseline=baseline, batch_size=512
            )
            played = interactions.exact(value_fn, value_fn.players)
            table |= {f"{game}/{k}": v for k, v in _summarise(played).items()}
            if game == MEAN_IMAGE:
                table["pairs"] = played.interactions[:, 0]
                table["images"] = np.stack(pair)
                table["grid"] = np.asarray(setting.grid)
    return found


def mean_image(train: data.Dataset) -> np.ndarray:
    """[H, W, C] the mean of the training images."""
    return np.asarray(data.to_float(train.images, train.scale)).mean(0)


def attacked(
    recipe: Recipe, logits_fn: Any, splits: networks.Splits
) -> tuple[Any, Any, Any, Any]:
    """The first images that the untargeted attack is accepted for on one network.

    Returns:
      Images, their adversarial versions, labels, and the classes that the network says
      then; `Setting.fewer` at the most.
    """
    tracked, setting = splits[2], setting_of(recipe)
    x, y = data.to_float(tracked.images, tracked.scale), jnp.asarray(tracked.labels)
    found = interactions.utility_attack(
        logits_fn,
        x,
        y,
        ball=Linf(setting.eps),
        utility=setting.utility,
        tolerance=setting.tolerance,
    )
    take = _matched([found], setting.fewer)
    x_adv = found.x_adv[take]
    return x[take], x_adv, y[take], jnp.argmax(logits_fn(x_adv), axis=1)


def _other(logits: Any, y: Any) -> Any:
    """The largest class but the label."""
    own = jnp.arange(logits.shape[1])[None] == y[:, None]
    return jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=1)


def _matched(attacks: Sequence[Any], count: int) -> np.ndarray:
    """The first images that were accepted for every network."""
    every = np.all([np.asarray(attack.accepted) for attack in attacks], axis=0)
    if not every.any():
        raise ValueError("no image was accepted for all networks: lower the utility")
    return np.flatnonzero(every)[:count]


def _summarise(played: interactions.ExactInteractions) -> Table:
    parts = interactions.attack_utility(played)
    agreement = interactions.disentanglement(_of_images(played))
    return {
        "mean": played.mean,
        **parts._asdict(),
        "ratios": agreement.mean_of_ratios.mean,
        "means": agreement.ratio_of_means.mean,
    }


def _of_images(played: interactions.ExactInteractions) -> Any:
    """The games of x alone, without those of x_adv."""
    return type(played)(*(field[0] for field in played))


def high_orders(orders: int) -> np.ndarray:
    """[n − 1] bool, m ≥ 0.7 (n − 2): orders 10 to 14 of 16 players."""
    return np.arange(orders) >= 0.7 * (orders - 1)


def low_orders(orders: int) -> np.ndarray:
    """[n − 1] bool, m ≤ 0.3 (n − 2): orders 0 to 4 of 16 players."""
    return np.arange(orders) <= 0.3 * (orders - 1)


def shares(values: np.ndarray) -> np.ndarray:
    """|values| / Σ |values| over the last axis."""
    return np.abs(values) / np.abs(values).sum(-1, keepdims=True)


def curve(rows: Sequence[Table], game: str, name: str) -> np.ndarray:
    """[seeds, ..., n − 1] a quantity in the mean over the images."""
    return np.stack([row[f"{game}/{name}"].mean(-2) for row in rows])


def change(rows: Sequence[Table], game: str) -> np.ndarray:
    """[seeds, n − 1] ΔI^(m) = I^(m)(x) − I^(m)(x_adv), in the mean over the images."""
    both = curve(rows, game, "mean")
    return both[:, 0] - both[:, 1]


def compare(found: Mapping[str, Sequence[Any]], pick: Any, unit: str = "") -> str:
    """A number for each seed of both networks, in words."""
    return ", ".join(
        f"{title} {tables.plus_minus([pick(row) for row in rows], unit=unit)}"
        for title, rows in found.items()
    )


def described(found: Mapping[str, Sequence[Table]]) -> str:
    """How many images the attacks were accepted for, and how many were played."""
    images = [row[f"{MEAN_IMAGE}/value"].shape[0] for row in found[STANDARD]]
    lines = [
        f"{name}: {compare(found, lambda row, name=name: row[name], '%')} of the images"
        for name in ("accepted", "accepted, targeted")
    ]
    return "; ".join(lines) + f". Accepted for both and played: {images} images."
