"""Draws are the same bits in every batch, and so is all else in batches of one shape.

To see where a real attack starts, it is run against a model that any move fools, so
that it returns its first random point. The model of the evaluation is never fooled: so
every attack is given every image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.evaluation import evaluate
from robjax.runs import files

KEY = jax.random.key(1)
RNG = np.random.default_rng(0)
COUNT = 64
GRID = RNG.choice([0.25, 0.5, 0.75], size=(COUNT, 5, 5, 1)).astype(np.float32)
ZEROS = np.zeros(COUNT, int)


def never_fooled(x):
    return jnp.zeros((len(x), 2)).at[:, 0].set(1)


def fooled_off_the_grid(x):
    """Class 1 for all but multiples of ¼, where no gradient leads away."""
    far = jnp.max(((4 * x - jnp.round(4 * x)) ** 2).reshape(len(x), -1), axis=1)
    return jnp.stack([jnp.full(len(x), 1e-6), far], axis=1)


def noise(logits_fn, x, y, *, key, ball, bounds):
    """Returns what it draws."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(key)
    zero = jnp.zeros(len(x), jnp.int32)
    return attacks.AttackResult(drawn, zero > 0, x[:, 0, 0, 0], zero, zero, zero)


def start(logits_fn, x, y, *, attack, key, ball, bounds):
    return attack(fooled_off_the_grid, x, y, key=key, ball=ball, bounds=bounds)


STARTS = {
    "pgd": functools.partial(attacks.pgd, steps=1, early_exit=True),
    "apgd": functools.partial(attacks.apgd, steps=1),
    "square": functools.partial(attacks.square, queries=1),
    # from x it goes nowhere; its second start is a random one
    "fab": functools.partial(
        attacks.fab, steps=1, restarts=2, early_exit=True, reference_quirks=True
    ),
}
STARTS = {name: functools.partial(start, attack=a) for name, a in STARTS.items()}


@pytest.fixture
def images_of(tmp_path, monkeypatch):
    """A run's images by attack, all [COUNT, *S], as they are on disk."""
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: None)

    def images_of(named, ball, *, batch_size, devices, how):
        folder = tmp_path / f"{how}-{batch_size}-{devices}"
        options = {"key": KEY, "batch_size": batch_size, "run_dir": folder,
                   "devices": jax.devices()[:devices]}  # fmt: skip
        if how == "autoattack":
            options |= {"version": "custom", "attacks": named, "ball": ball}
            attacks.autoattack(never_fooled, GRID, ZEROS, **options)
        else:
            bound = {k: functools.partial(a, ball=ball) for k, a in named.items()}
            options["cascade"] = how == "cascade"
            evaluate(never_fooled, (GRID, ZEROS), bound, **options)
        found = {}
        for column in sorted(folder.glob("*-*"))[1:]:
            batches = [files.load_npz(path) for path in sorted(column.iterdir())]
            index, images = (
                np.concatenate([batch[field] for batch in batches])
                for field in ("index", "x_adv")
            )
            np.testing.assert_array_equal(index, np.arange(COUNT))
            found[column.name[3:]] = images
        return found

    return images_of


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("how", ["cascade", "each alone", "autoattack"])
def test_a_sample_draws_the_same_bits_in_any_batch(images_of, how):
    run = functools.partial(images_of, {"a": noise, "b": noise}, Linf(1.0))
    whole = run(batch_size=64, devices=1, how=how)
    for batch_size, devices in [(1, 1), (7, 1), (1, 8), (7, 8), (64, 8)]:
        split = run(batch_size=batch_size, devices=devices, how=how)
        assert_same_bits(whole, split)
    if how == "autoattack":
        assert_same_bits(whole, run(batch_size=64, devices=1, how="cascade"))
    # each sample has draws of its own, and in a cascade each attack
    drawn = np.stack(list(whole.values())).reshape(2 * COUNT, -1)
    alone = how == "each alone"
    assert len(np.unique(drawn, axis=0)) == (COUNT if alone else 2 * COUNT)


@pytest.mark.usefixtures("usual_compilation")
@pytest.mark.parametrize(
    "ball",
    [
        Linf(0.05),
        pytest.param(L2(0.3), marks=pytest.mark.slow),
        pytest.param(L1(0.7), marks=pytest.mark.slow),
    ],
    ids=["Linf", "L2", "L1"],
)
def test_attacks_start_from_the_same_bits_in_any_batch(images_of, ball):
    run = functools.partial(images_of, STARTS, ball, how="cascade")
    whole = run(batch_size=64, devices=8)
    for name, images in whole.items():
        moved = (images - GRID).reshape(COUNT, -1)
        # square draws one of 2⁵ patterns of stripes in L∞
        assert len(np.unique(moved, axis=0)) > 20 and moved.any(axis=1).all(), name
    # in L∞, which compiles faster, also a batch of seven
    for batch_size in (1, 7) if isinstance(ball, Linf) else (1,):
        assert_same_bits(whole, run(batch_size=batch_size, devices=1))


# ------------------------------------------------------------------ identical shapes

W = RNG.normal(size=(12, 4)).astype(np.float32)
MODEL = Partial(lambda w, x: 3 * jnp.tanh((x.reshape(len(x), -1) - 0.5) @ w), W)
BALL = Linf(0.025)
CASCADE = {
    "pgd": functools.partial(attacks.pgd, steps=2, step_size=0.006),
    "apgd": functools.partial(attacks.apgd, steps=1),
    "fab": functools.partial(attacks.fab, steps=1, restarts=2, reference_quirks=True),
    "square": functools.partial(attacks.square, queries=30),
}


@pytest.mark.slow
def test_what_else_is_in_a_batch_of_the_same_shape_changes_no_bit(tmp_path):
    """29 samples in batches of 32: beside robust ones, fragile ones and padding."""
    x = np.random.default_rng(3).uniform(size=(200, 3, 4, 1)).astype(np.float32)
    logits = np.asarray(MODEL(x))
    y, (second, first) = logits.argmax(axis=1), np.sort(logits, axis=1).T[-2:]
    keys = jax.random.split(KEY, 200)
    own, others = np.arange(29), 29 + np.argsort((first - second)[29:])

    def run(name, index, labels):
        """All that was recorded of the 29, by attack and field, and the result."""
        out = attacks.autoattack(
            MODEL, x[index], labels, key=keys[index], ball=BALL, version="custom",
            attacks=CASCADE, batch_size=32, devices=jax.devices()[:1],
            run_dir=tmp_path / name,
        )  # fmt: skip
        rows = np.isin(index, own)
        found = {"fooled_by": out.fooled_by[rows], "x_adv": out.x_adv[rows]}
        for path in sorted((tmp_path / name).glob("*/*.npz")):
            batch = files.load_npz(path)
            real = rows[batch.pop("index")]
            if real.any():
                attack = path.parent.name
                found |= {f"{attack} {k}": v[real] for k, v in batch.items()}
        return found

    index = np.concatenate([own, others[-3:]])
    robust = run("robust", index, y[index])
    assert set(robust["fooled_by"]) >= {-1, 1, 2, 3}
    assert (robust["fooled_by"] < 0).sum() > 16  # or the last batch would be smaller
    index = np.concatenate([own, others[:3]])
    assert_same_bits(robust, run("fragile", index, y[index]))
    # a batch of misclassified images that no attack is given, and one with padding
    index = np.concatenate([others[:32], own])
    wrong = np.where(np.arange(len(index)) < 32, (y[index] + 1) % 4, y[index])
    assert_same_bits(robust, run("padded", index, wrong))
