"""Saliency against loops in NumPy, hand-made gradients and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.neighbors import KNeighborsClassifier

from robjax import data, models
from robjax.balls import L1, L2, Linf
from robjax.metrics import saliency

MODEL = models.MLP(10)
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
NETWORK = Partial(MODEL.apply, VARIABLES)
TEST = data.load("digits", "test")
X = data.to_float(TEST.images[:20], TEST.scale)
Y = jnp.asarray(TEST.labels[:20])


def noise(shape=(5, 9, 7, 2), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_numbers_against_loops():
    g, x = noise(), noise(seed=1)
    for b in range(len(g)):
        border = [
            g[b, i, j, c] ** 2
            for i, j, c in np.ndindex(9, 7, 2)
            if min(i, j, 8 - i, 6 - j) < 2
        ]
        energy = saliency.border_energy(g, width=2)[b]
        assert energy == pytest.approx(sum(border) / (g[b] ** 2).sum(), rel=1e-5)
        cosine = -(g[b] * x[b]).sum() / np.linalg.norm(g[b]) / np.linalg.norm(x[b])
        assert saliency.alignment(g, x)[b] == pytest.approx(cosine, rel=1e-4)
        c = g[b].astype(float) - g[b].astype(float).mean((0, 1))
        pairs = [
            c[i, j, k] * c[i + di, j + dj, k]
            for i, j, k in np.ndindex(9, 7, 2)
            for di, dj in ((0, 1), (1, 0))
            if i + di < 9 and j + dj < 7
        ]
        moran = np.mean(pairs) / np.mean(c**2)
        assert saliency.autocorrelation(g)[b] == pytest.approx(moran, abs=1e-5)


def test_autocorrelation_of_what_is_known():
    checks = (np.indices((8, 8)).sum(0) % 2 * 2.0 - 1)[None, :, :, None]
    ramp = np.broadcast_to(np.arange(1000.0), (1, 1000, 1000))[..., None]
    assert saliency.autocorrelation(checks)[0] == pytest.approx(-1, abs=1e-6)
    assert saliency.autocorrelation(ramp)[0] == pytest.approx(1, abs=1e-2)
    white = saliency.autocorrelation(noise((50, 28, 28, 1)))
    # E[I] = −1/(n − 1), variance about 1/(number of pairs)
    assert abs(white.mean() + 1 / 783) < 4 / np.sqrt(50 * 2 * 28 * 27)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e20])
def test_no_number_or_view_depends_on_the_scale(factor):
    g, x = noise((3, 8, 8, 1)), noise((3, 8, 8, 1), 1)
    for measure in (
        lambda g: saliency.border_energy(g, width=2),
        lambda g: saliency.alignment(g, x),
        saliency.autocorrelation,
        saliency.sigma_view,
        saliency.signed_view,
    ):
        scaled = measure(np.float32(factor) * g)
        np.testing.assert_allclose(scaled, measure(g), atol=1e-6)


def test_a_zero_or_constant_gradient_says_nothing():
    zero, x = jnp.zeros((2, 8, 8, 1)), noise((2, 8, 8, 1))
    for values in (
        saliency.border_energy(zero, width=1),
        saliency.alignment(zero, x),
        saliency.autocorrelation(zero),
        saliency.autocorrelation(zero + 0.3),
    ):
        np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(saliency.sigma_view(zero), 0.5)
    np.testing.assert_array_equal(saliency.sigma_view(zero + 0.3), 0.5)
    np.testing.assert_array_equal(saliency.signed_view(zero), 1)


def test_views():
    g = noise((4, 8, 8, 1))
    view = np.asarray(saliency.sigma_view(g))
    scale = 3 * g.std((1, 2, 3), keepdims=True)
    expected = (1 + np.clip(g, -scale, scale) / scale) / 2
    np.testing.assert_allclose(view, expected, atol=1e-6)
    np.testing.assert_allclose(saliency.sigma_view(-g), 1 - view, atol=1e-6)
    g[0, 0, 0], g[0, 0, 1] = 100, -100
    colours = np.asarray(saliency.signed_view(g))
    assert colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_allclose(colours[0, 0, 0], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(colours[0, 0, 1], [1, 0, 0], atol=1e-6)
    blue = (colours[..., 2] >= colours[..., 0] - 1e-6)[g[..., 0] > 0]
    assert blue.all()


def test_the_gradient_is_that_of_the_cross_entropy_also_when_confident():
    found = saliency.saliency(NETWORK, X, Y, width=1, batch_size=7)

    def loss(x):
        return -jnp.sum(jax.nn.log_softmax(NETWORK(x))[jnp.arange(20), Y])

    np.testing.assert_allclose(found.gradient, jax.grad(loss)(X), atol=1e-6)
    cosine = saliency.alignment(found.gradient, X)
    np.testing.assert_allclose(found.alignment, cosine, rtol=1e-5)
    # the direction is there where the cross-entropy itself is 0 in float32
    says = jnp.argmax(NETWORK(X), axis=1)
    sure = saliency.saliency(lambda x: 1e4 * NETWORK(x), X, says, width=1)
    lost = np.abs(sure.gradient).max((1, 2, 3)) == 0
    assert lost.any()

    def exact(x):
        z = 1e4 * NETWORK(x)
        others = jnp.where(jax.nn.one_hot(says, 10, dtype=bool), -jnp.inf, z)
        return jnp.sum(jax.nn.logsumexp(others, axis=1) - z[jnp.arange(20), says])

    expected = saliency.alignment(jax.grad(exact)(X), X)
    np.testing.assert_allclose(sure.alignment, expected, atol=1e-5)
    assert (sure.border_energy > 0).all()


@pytest.mark.parametrize(
    ("ball", "path"), [(L2(3.0), 1.5 * 3.0), (Linf(0.5), 1.44 * 0.5)]
)
def test_large_perturbations_follow_the_authors_rule(ball, path):
    result = saliency.large_perturbation(NETWORK, X, Y, ball=ball)
    again = saliency.large_perturbation(NETWORK, X, Y, ball=ball)
    np.testing.assert_array_equal(result.x_adv, again.x_adv)
    assert (ball.norm(result.x_adv - X) <= ball.eps * (1 + 1e-6)).all()
    # a constant gradient moves an image by steps × step, as far as the ball allows
    up = saliency.large_perturbation(
        lambda x: jnp.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1),
        0.5 * jnp.ones((1, 20, 20, 1)),
        jnp.array([1]),
        ball=type(ball)(0.1),
    )
    assert ball.norm(up.x_adv - 0.5)[0] == pytest.approx(0.1, rel=1e-5)
    steps, share = saliency._RULES[type(ball)]
    assert steps * share * ball.eps == pytest.approx(path)


def test_interpolation_goes_straight_from_end_to_end():
    end = jnp.clip(X + 0.3 * noise(X.shape), 0, 1)
    way = np.asarray(saliency.interpolate(X, end, points=5))
    np.testing.assert_array_equal(way[0], X)
    np.testing.assert_array_equal(way[-1], end)
    lengths = np.linalg.norm((way[1:] - way[:-1]).reshape(4, 20, -1), axis=2)
    np.testing.assert_allclose(
        lengths, np.broadcast_to(lengths[:1], (4, 20)), rtol=1e-4
    )
    with pytest.raises(ValueError, match="x_adv must lie inside bounds"):
        saliency.interpolate(X, X + 2, points=3)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_judge_against_scikit_learn(k):
    train = data.load("digits", "train")
    reference = data.to_float(train.images, train.scale)
    x = jnp.clip(X + 0.01 * jnp.abs(noise(X.shape)), 0, 1)
    votes = saliency.neighbour_votes(
        x, reference, train.labels, num_classes=10, k=k, batch_size=6
    )
    judge = KNeighborsClassifier(k, algorithm="brute")
    judge.fit(np.asarray(reference, float).reshape(len(reference), -1), train.labels)
    expected = judge.predict_proba(np.asarray(x, float).reshape(len(x), -1))
    np.testing.assert_allclose(votes, expected, atol=1e-6)
    moved = saliency.neighbour_votes(
        x + 1000, reference + 1000, train.labels, num_classes=10, k=k
    )
    assert np.mean(moved == votes) > 0.97


def test_votes_turn_half_way_between_two_references():
    """On the segment from r₀ to r₁ the nearest one changes in the middle."""
    ends = jnp.stack([jnp.full((3, 3, 1), 0.2), jnp.full((3, 3, 1), 0.8)])
    order = jnp.array([0, 1, 1])
    votes = saliency.votes_along(
        ends[order],
        ends[1 - order],
        jnp.array([4, 2, 4]),  # the third reaches what it leaves
        ends,
        jnp.array([2, 4]),
        num_classes=5,
        k=1,
        points=8,
    )
    after = np.repeat([0.0, 1.0], 4)
    np.testing.assert_array_equal(votes, np.stack([after, after, 1 - after], axis=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: saliency.saliency(NETWORK, X, Y, width=4), "width must leave"),
        (lambda: saliency.saliency(NETWORK, X, Y, width=0), "width must be a whole"),
        (lambda: saliency.saliency(NETWORK, X, Y[:3], width=1), "y must have shape"),
        (lambda: saliency.saliency(NETWORK, X, Y + 9, width=1), "y must hold labels"),
        (lambda: saliency.saliency(NETWORK, X[..., 0], Y, width=1), "x must be images"),
        (lambda: saliency.saliency(NETWORK, X * jnp.nan, Y, width=1), "x must be fin"),
        (lambda: saliency.signed_view(noise()), "g must have one channel"),
        (lambda: saliency.alignment(noise(), noise()[:1]), "g must have the shape"),
        (lambda: saliency.autocorrelation(noise()[0]), "g must be images"),
        (lambda: saliency.border_energy(np.nan * noise(), width=1), "g must be finite"),
        (lambda: saliency.sigma_view(noise(), sigmas=0), "sigmas must be finite"),
        (lambda: saliency.interpolate(X, X, bounds=(1, 0)), "bounds must be finite"),
        (
            lambda: saliency.neighbour_votes(X, X, Y, num_classes=10.0),
            "num_classes must be a whole",
        ),
        (
            lambda: saliency.large_perturbation(NETWORK, X, Y, ball=L1(1.0)),
            "ball must be L2 or Linf",
        ),
        (lambda: saliency.interpolate(X, X, points=1), "points must be a whole"),
        (lambda: saliency.interpolate(X, X[:2]), "x_adv must have the shape"),
        (
            lambda: saliency.neighbour_votes(X, X, Y, num_classes=10, k=21),
            "k must be 1 to 20",
        ),
        (
            lambda: saliency.neighbour_votes(X, X[:, :4], Y, num_classes=10),
            "reference must hold images",
        ),
        (
            lambda: saliency.votes_along(X, X, Y + 9, X, Y, num_classes=10),
            "reached must hold labels",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
