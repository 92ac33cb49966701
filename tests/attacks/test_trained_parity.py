"""Step by step against the reference on the trained networks of `benchmarks.trained`.

MNIST and CIFAR-10 ones are skipped unless `python -m benchmarks.trained` made them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks import trained
from robjax import data, losses
from robjax.balls import L1, L2, Linf
from tests.attacks.stepwise import apgd_path, defined_until, fab_path
from tests.oracles import autoattack as reference

# those networks were trained on one device, and conftest makes eight
pytestmark = pytest.mark.filterwarnings("ignore:resuming with different")
IMAGES = 16
NETWORKS = [f"{name}-{o}" for name in trained.PLANS for o in trained.OBJECTIVES]
RADII = {
    "digits": {"Linf": 0.2, "L2": 0.6, "L1": 2.0},
    "mnist": {"Linf": 0.3, "L2": 1.5, "L1": 10.0},
    "cifar10": {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0},
}
BALLS = {"Linf": Linf, "L2": L2, "L1": L1}


@functools.cache
def load(name):
    """Network and images, in float32."""
    reference.torch_and_apgd()  # skips without them
    on_disk = (trained.FOLDER / name / "checkpoints").exists()
    if not on_disk and not name.startswith("digits"):  # those take seconds
        pytest.skip(f"{name} has not been trained")
    logits_fn, test, _ = trained.load(name)
    return logits_fn, data.to_float(test.images[: 2 * IMAGES], test.scale), test.labels


@pytest.fixture(params=NETWORKS)
def network(request):
    """Network in float64 and its PyTorch twin, images that it gets right, labels, ε."""
    logits_fn, x, labels = load(request.param)
    request.getfixturevalue("float64")
    from benchmarks.peers.torch_models import to_torch

    model, (variables,) = logits_fn.func.__self__, logits_fn.args
    twin: Any = to_torch(model, variables)
    for layers in (twin.convs, twin.dense):
        layers[:] = [tuple(t.double() for t in pair) for pair in layers]
    variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), variables)
    logits_fn = Partial(logits_fn.func, variables)
    x, y = jnp.asarray(x, jnp.float64), np.asarray(labels[: len(x)], np.int64)
    right = np.flatnonzero(np.argmax(logits_fn(x), axis=1) == y)[:IMAGES]
    return logits_fn, twin, x[right], y[right], RADII[request.param.split("-")[0]]


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


def channels_last(x):
    return np.moveaxis(x, -3, -1)


def assert_slopes_agree(ours, theirs):
    """Exactly for most images; the others have pooling windows with equal values."""
    axes = tuple(range(1, ours.ndim))
    size = np.abs(theirs).max(axis=axes, keepdims=True)
    close = np.abs(ours - theirs) <= 1e-6 * size + 1e-12
    assert close.all(axis=axes).mean() > 0.7
    assert close.mean() > 0.97


def uncountable(x, points):
    """[E, B] bool: from the first point on where some pixel changed by rounding."""
    change = np.abs(points - np.asarray(x))
    noise = ((change > 0) & (change < 1e-9)).any(axis=(2, 3, 4))
    return np.cumsum(noise, axis=0) > 0


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_the_reference_step_by_step(network, float64, norm, loss):
    _, base = float64
    logits_fn, twin, x, y, radii = network
    if norm == "L1" and x.shape[1] > 8:
        pytest.skip("the L1 projections agree to the last bits on small images only")
    ball = BALLS[norm](radii[norm])
    shift = np.random.default_rng(0).uniform(-1, 1, size=x.shape)
    shift *= (
        0.9 * ball.eps / np.asarray(ball.norm(jnp.asarray(shift)))[:, None, None, None]
    )
    start = jnp.clip(x + shift, 0, 1)
    attack = base.APGDAttack(None, norm=norm, eps=ball.eps, loss=loss, device="cpu")
    run = reference.run_apgd(attack, twin, channels_first(x), y, channels_first(start))
    theirs = channels_last(reference.apgd_gradients(attack, twin, run, y))
    function = losses.cross_entropy if loss == "ce" else losses.dlr
    points, values, steps, predicted, gradients = apgd_path(
        logits_fn,
        *(x, start, ball, lambda z: function(z, jnp.asarray(y))),
        gradients=jnp.asarray(theirs),
        reference_quirks=True,
    )
    known, reached = defined_until(run, loss), channels_last(run.points)
    if norm == "L1":  # its schedule counts the pixels that are not exactly those of x
        known &= ~uncountable(x, points) & ~uncountable(x, reached)
    same = np.isclose(values, run.losses, rtol=1e-4) & ((predicted == y) == run.correct)
    same &= np.isclose(points, reached, atol=1e-6).all((2, 3, 4))
    same[:-1] &= steps[:-1] == run.step_sizes
    assert len(np.unique(run.step_sizes)) >= 5
    assert known[:5].mean() > 0.5
    assert (same | ~known).all()
    assert_slopes_agree(gradients[known], theirs[known])


@pytest.mark.parametrize("norm", BALLS)
def test_fab_is_the_reference_step_by_step(network, float64, norm):
    torch, _ = float64
    fab_pt = pytest.importorskip("pyautoattack.fab_pt")
    logits_fn, twin, x, y, radii = network
    rank = 2
    attack = fab_pt.FABAttack_PT(
        twin, norm=norm, eps=radii[norm], n_iter=50, device=torch.device("cpu")
    )
    run = reference.run_fab(attack, rank, channels_first(x), y)
    path, slopes = map(channels_last, run)
    classes = np.argsort(-np.asarray(logits_fn(x)), axis=1)[:, rank - 1]
    (single, _), (clear, _) = fab_path(
        logits_fn, x, y, classes, BALLS[norm](1.0), path, slopes
    )
    assert clear.mean() > 0.9
    np.testing.assert_allclose(single[clear], path[1:][clear], atol=1e-6)
    towards = jax.jit(slope_towards(logits_fn, classes, y))
    at = np.stack([towards(jnp.asarray(v)) for v in path[::10]])
    slopes = slopes[::10]
    size = np.abs(at).max(axis=(2, 3, 4), keepdims=True)
    at = np.where(np.abs(at) < 1e-7 * np.maximum(size, 1), 0, at)
    assert_slopes_agree(at.reshape(-1, *x.shape[1:]), slopes.reshape(-1, *x.shape[1:]))


def slope_towards(logits_fn, classes, y):
    """v -> gradient of z_c − z_y, summed over the images."""
    rows = jnp.arange(len(y))

    def total(v):
        logits = logits_fn(v)
        return jnp.sum(logits[rows, classes] - logits[rows, y])

    return jax.grad(total)
