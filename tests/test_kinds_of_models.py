"""Eleven kinds of models that people have, under all that robjax says of a model.

Every one of them computes an affine function of its images, z = W x + b. So its minimal
L∞ distances have a closed form,

    d(x) = min_j (z_y − z_j) / ‖w_y − w_j‖₁,

as long as the box is farther away. W and b are read off the model by calling it with
no image and with single pixels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from robjax import attacks, masking
from robjax.balls import Linf
from robjax.evaluation import evaluate, robust_accuracy_curve

KEY = jax.random.key(0)
ONE_DEVICE = jax.local_devices()[:1]
SIZE = (4, 4, 1)
COUNT = 8


class Kind(NamedTuple):
    """A model, and what its images are like."""

    model: Callable[..., Any]
    size: tuple[int, ...] = SIZE
    bounds: tuple[float, float] = (0.0, 1.0)
    eot: int | None = None


def draw(*shape, scale=1.0, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(scale=scale, size=shape)
    return jnp.asarray(values, jnp.float32)


def flat(x):
    return x.reshape(x.shape[0], -1)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), kernel_init=nn.initializers.normal(1.0))(x)
        return nn.Dense(5, kernel_init=nn.initializers.normal(1.0))(flat(x))


def linen():
    model = LinenNet()
    return Kind(Partial(model.apply, jax.jit(model.init)(KEY, jnp.zeros((1, *SIZE)))))


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(flat(x))))


def nnx_with_batch_norm_and_dropout():
    module = NnxNet()
    for seed in range(3):  # running statistics that are not those of a new module
        module(0.5 + 0.2 * draw(16, *SIZE, seed=seed))
    module.eval()
    return Kind(module)


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self):
        self.conv = eqx.nn.Conv2d(2, 3, 3, key=KEY)
        self.dense = eqx.nn.Linear(12, 5, key=KEY)

    def __call__(self, x):
        return self.dense(self.conv(x).ravel())


def equinox_with_channels_first():
    return Kind(jax.vmap(EquinoxNet()), size=(2, 4, 4))


def haiku_with_state():
    """As `hk.transform_with_state` makes it: apply(params, state, rng, images)."""

    def apply(params, state, rng, x):
        assert rng is None
        rows = (flat(x) - state["mean"]) / state["deviation"]
        return rows @ params["linear"]["w"] + params["linear"]["b"], state

    params = {"linear": {"w": draw(16, 5), "b": draw(1, 5)}}
    state = {"mean": draw(1, 16), "deviation": jnp.full((1, 16), 0.5)}
    return Kind(lambda x: apply(params, state, None, x)[0])


def pure_function():
    w = draw(16, 5)
    return Kind(lambda x: flat(x) @ w)


def tabular():
    w = draw(6, 3)
    return Kind(lambda x: x @ w, size=(6,), bounds=(-3.0, 3.0))


def two_classes():
    return Kind(functools.partial(lambda w, x: flat(x) @ w, draw(16, 2)))


def single_logit():
    """One logit z as the two logits [0, z]."""
    w = draw(16, 1)

    def model(x):
        z = flat(x) @ w
        return jnp.concatenate([jnp.zeros_like(z), z], axis=1)

    return Kind(model)


def hundred_classes():
    return Kind(Partial(lambda w, x: flat(x) @ w, draw(16, 100)))


def pixels_to_255():
    return Kind(
        Partial(lambda w, x: flat(x / 255) @ w, draw(16, 5)), bounds=(0.0, 255.0)
    )


def randomised():
    def model(w, x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,)))(keys)
        return flat(x) @ w + 3e-4 * noise

    return Kind(Partial(model, draw(16, 5)), eot=4)


KINDS = [
    linen,
    nnx_with_batch_norm_and_dropout,
    equinox_with_channels_first,
    haiku_with_state,
    tabular,
    randomised,
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in (
            pure_function,
            two_classes,
            single_logit,
            hundred_classes,
            pixels_to_255,
        )
    ),
]


class Known(NamedTuple):
    """Images, labels and the distances [B] to the nearest error, in closed form."""

    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray


def solve(model, kind):
    """Eight images of several classes, far from the box; the first is mislabelled."""
    rng = np.random.default_rng(1)
    pixels = int(np.prod(kind.size))
    low, high = kind.bounds
    zero = jnp.zeros((1, *kind.size))
    units = jnp.eye(pixels, dtype=jnp.float32).reshape(pixels, *kind.size)
    bias = np.asarray(model(zero), np.float64)
    w = np.asarray(model(units), np.float64) - bias

    # grey images, made brighter where one class wants it, darker where others do
    wanted = np.sign(w - w.mean(axis=1, keepdims=True)).T[
        rng.integers(w.shape[1], size=400)
    ]
    scale = rng.uniform(0, 0.3, (400, 1))
    rows = 0.5 + scale * wanted + rng.uniform(-0.1, 0.1, (400, pixels))
    rows = np.float32(low + (high - low) * rows)
    z = rows.astype(np.float64) @ w + bias
    y = z.argmax(axis=1)
    gap = z.max(axis=1, keepdims=True) - z
    slope = np.abs(w[:, y].T[:, :, None] - w[None]).sum(axis=1)
    distance = np.where(slope > 0, gap / np.where(slope > 0, slope, 1), np.inf).min(1)

    room = np.minimum(rows - low, high - rows).min(axis=1)
    fit = np.flatnonzero((distance < 0.9 * room) & (distance > 0.01 * (high - low)))
    # one of each class, then a second one
    rank = [np.count_nonzero(y[fit[:i]] == y[n]) for i, n in enumerate(fit)]
    chosen = fit[np.argsort(rank, kind="stable")[:COUNT]]
    y = y[chosen]
    distance = distance[chosen]
    y[0] = z[chosen[0]].argmin()
    distance[0] = 0
    return Known(rows[chosen].reshape(COUNT, *kind.size), y, distance)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_number_is_that_of_the_closed_form(make):
    kind = make()
    model = kind.model
    fixed = model
    if kind.eot is not None:  # one draw of the noise, which is small
        fixed = lambda x: model(x, jax.random.split(KEY, len(x)))  # noqa: E731
    x, y, distance = solve(fixed, kind)
    # a radius in the widest gap between two distances
    ranked = np.sort(distance)
    widest = 1 + np.diff(ranked[1:-1]).argmax()
    eps = float(ranked[widest : widest + 2].mean())
    robust = distance > eps
    draws: dict[str, Any] = {} if kind.eot is None else {"eot": kind.eot}
    pgd = functools.partial(attacks.pgd, steps=20, **draws)
    setting: dict[str, Any] = {"key": KEY, "bounds": kind.bounds, **draws}

    attack = functools.partial(pgd, ball=Linf(eps))
    table = evaluate(model, (x, y), {"pgd": attack}, devices=ONE_DEVICE, **setting)
    np.testing.assert_array_equal(table.attacks["pgd"].robust, robust)
    np.testing.assert_array_equal(table.predictions[1:], y[1:])
    assert table.predictions[0] != y[0]
    assert table.warnings == ()

    curve = robust_accuracy_curve(
        model, x, y, pgd, epsilons=[0, eps], devices=ONE_DEVICE, **setting
    )
    np.testing.assert_allclose(curve.accuracy, [7 / 8, robust.mean()])

    # without refinement, which takes long to compile, it ends 2 % beyond
    nearest = attacks.deepfool(
        fixed,
        x,
        y,
        ball=Linf(1e3),
        bounds=kind.bounds,
        classes=100,
        reference_quirks=True,
    )
    assert nearest.success.all()
    tolerance = 1e-3 if kind.eot is None else 2e-2
    np.testing.assert_allclose(nearest.distance, 1.02 * distance, rtol=tolerance)

    report = masking.check(model, x, y, ball=Linf(eps), queries=20, **setting)
    assert report.raised == (), report
