"""Exact linear adversarial training against brute force, scikit-learn and theory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from robjax import attacks, data
from robjax.balls import Linf
from robjax.theory import gaussian
from robjax.training import linear


def problem(seed=0, count=60, d=3):
    rng = np.random.default_rng(seed)
    y = rng.choice([-1, 1], size=count)
    x = np.clip(0.5 + 0.15 * y[:, None] + 0.3 * rng.normal(size=(count, d)), 0, 1)
    return x, y


@functools.cache
def sevens_against_fives(split, name="mnist"):
    try:
        images = data.load(name, split)
    except data.NotPreparedError as missing:
        pytest.skip(str(missing))
    rows = np.isin(images.labels, (5, 7))
    y = np.where(images.labels[rows] == 7, 1, -1)
    return images.images[rows] / images.scale, y


def risk(theta, x, y, eps, bounds, l2=0.0):
    """J by trying every corner of the (clipped) ball: the definition."""
    *w, b = theta
    worst = np.full(len(x), np.inf)
    for corner in itertools.product([-eps, eps], repeat=x.shape[1]):
        moved = x + np.array(corner)
        moved = moved if bounds is None else np.clip(moved, *bounds)
        worst = np.minimum(worst, y * (moved @ np.array(w) + b))
    return np.logaddexp(0, -worst).mean() + l2 / 2 * np.dot(w, w)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_worst_images_and_the_optimum_against_brute_force(eps, bounds):
    x, y = problem()
    found = linear.fit(x, y, eps=eps, bounds=bounds)
    theta = np.append(found.w, found.b)
    assert found.residual < 1e-8
    assert found.objective == pytest.approx(risk(theta, x, y, eps, bounds), abs=1e-12)
    margins = linear.worst_margins(found.w, found.b, x, y, eps=eps, bounds=bounds)
    moved = linear.worst_case(found.w, x, y, eps=eps, bounds=bounds)
    assert np.abs(moved - x).max() <= eps + 1e-15
    np.testing.assert_allclose(margins, y * (moved @ found.w + found.b))
    assert np.logaddexp(0, -margins).mean() == pytest.approx(found.objective)
    # a minimum of a convex function: nothing near is lower, nor is another method
    rng = np.random.default_rng(1)
    for _ in range(200):
        near = theta + 10.0 ** rng.uniform(-6, 0) * rng.normal(size=4)
        assert risk(near, x, y, eps, bounds) >= found.objective - 1e-13
    other = optimize.minimize(
        risk, np.zeros(4), (x, y, eps, bounds), "Powell", options={"ftol": 1e-13}
    )
    assert found.objective <= other.fun + 1e-12
    assert other.fun == pytest.approx(found.objective, abs=1e-5)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_the_residual_is_the_steepest_descent_there_is(bounds):
    x, y = problem(2)
    # stopped early: not at the optimum
    found = linear.fit(x, y, eps=0.1, bounds=bounds, max_iterations=3)
    theta, h = np.append(found.w, found.b), 1e-7
    slopes = [
        (risk(theta + h * side * unit, x, y, 0.1, bounds) - found.objective) / h
        for unit in np.eye(4)
        for side in (-1, 1)
    ]
    assert found.residual > 1e-5
    assert found.residual == pytest.approx(-min(slopes), rel=1e-2)


def test_without_an_adversary_it_is_logistic_regression():
    x, y = problem(3)
    found = linear.fit(x, y, eps=0.0, l2=0.02)
    theirs = LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-10, max_iter=1000)
    theirs.fit(x, y)
    np.testing.assert_allclose(found.w, theirs.coef_[0], atol=1e-6)
    assert found.b == pytest.approx(theirs.intercept_[0], abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_it_collapses_exactly_at_half_the_largest_difference_of_the_means(share):
    x, y = problem(4)
    keep = (y > 0) | (np.cumsum(y < 0) <= share * np.sum(y < 0))
    x, y = x[keep], y[keep]
    radius = linear.collapse_radius(x, y)
    assert (linear.fit(x, y, eps=1.001 * radius).w == 0).all()
    below = linear.fit(x, y, eps=0.999 * radius)
    assert np.count_nonzero(below.w) == 1
    odds = np.mean(y > 0) / np.mean(y < 0)
    assert linear.fit(x, y, eps=1.0).b == pytest.approx(np.log(odds), abs=1e-6)


@pytest.mark.parametrize("eps", [0.5, 0.92])
def test_samples_of_the_gaussian_model_give_its_population_optimum(eps):
    with jax.enable_x64(True):
        x, y = gaussian.sample(jax.random.key(0), 20_000, d=50, p=0.95, eta=0.4)
        found = linear.fit(x, y, eps=eps)
        if eps > 2 * 0.95 - 1:
            assert (found.w == 0).all()
            return
        assert np.abs(found.w[1:]).max() < 0.01 * found.w[0]
        run = {"p": 0.95, "eta": 0.4}
        assert gaussian.standard_accuracy(found.w, **run) == pytest.approx(
            0.95, abs=5e-3
        )
        robust = gaussian.robust_accuracy(found.w, eps=0.8, bias=found.b, **run)
        assert robust == pytest.approx(0.95, abs=5e-3)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_pgd_1000_reaches_the_worst_case_in_the_box(name):
    x, y = sevens_against_fives("test", name)
    x, y = x[:64], y[:64]
    eps = 0.6 * linear.collapse_radius(x, y)
    found = linear.fit(x, y, eps=eps, bounds=(0, 1), l2=1e-4)
    result = attacks.pgd(
        found.logits_fn,
        jnp.asarray(x, jnp.float32),
        jnp.asarray(y > 0, jnp.int32),
        ball=Linf(eps),
        steps=1000,
        key=jax.random.key(0),
    )
    worst = linear.worst_case(found.w, x, y, eps=eps, bounds=(0, 1))
    changes = (found.w != 0).reshape(-1)
    np.testing.assert_allclose(
        np.asarray(result.x_adv).reshape(64, -1)[:, changes],
        worst.reshape(64, -1)[:, changes],
        atol=1e-6,
    )
    margins = linear.worst_margins(found.w, found.b, x, y, eps=eps, bounds=(0, 1))
    np.testing.assert_array_equal(result.success, margins < 0)
    np.testing.assert_allclose(result.loss, np.logaddexp(0, -margins), rtol=1e-4)


@pytest.mark.parametrize(
    ("eps", "bounds", "l2", "std", "robust", "l1", "pixels"),
    [
        pytest.param(0.2, None, 0, 0.911, 0.709, 4.54, 9, marks=pytest.mark.slow),
        pytest.param(0.3, None, 0, 0.535, None, 0.17, 1, marks=pytest.mark.slow),
        (0.0, None, 1e-3, 0.993, 0.004, 81.5, None),
    ],
)
def test_mnist_5_against_7(eps, bounds, l2, std, robust, l1, pixels):
    (x, y), (x_test, y_test) = (sevens_against_fives(s) for s in ("train", "test"))
    assert (len(y), len(y_test)) == (11_686, 1_920)
    assert linear.collapse_radius(x, y) == pytest.approx(0.308, abs=5e-4)
    found = linear.fit(x, y, eps=eps, bounds=bounds, l2=l2)
    assert found.residual < 1e-6
    assert np.abs(found.w).sum() == pytest.approx(l1, rel=5e-3, abs=5e-3)
    clean = linear.worst_margins(found.w, found.b, x_test, y_test, eps=0.0)
    assert np.mean(clean > 0) == pytest.approx(std, abs=5.1e-4)
    if robust is not None:
        worst = linear.worst_margins(found.w, found.b, x_test, y_test, eps=0.2)
        assert np.mean(worst > 0) == pytest.approx(robust, abs=5.1e-4)
    if pixels is not None:
        assert np.count_nonzero(found.w) == pixels


X, Y = problem()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": (Y + 1) // 2}, "y must hold labels -1 and 1"),
        ({"y": Y[:5]}, "y must hold labels -1 and 1"),
        ({"y": np.abs(Y)}, "y must hold both labels"),
        ({"eps": -0.1}, "eps must be finite and at least 0"),
        ({"l2": np.nan}, "l2 must be finite"),
        ({"x": X + 1, "bounds": (0, 1)}, "x must lie inside bounds"),
        ({"x": X * np.nan}, "x must be finite"),
        ({"bounds": (1, 0)}, "bounds must be finite with low < high"),
        ({"bounds": ()}, "bounds must be two numbers"),
        ({"tolerance": np.nan}, "tolerance must be finite"),
        ({"max_iterations": 0}, "max_iterations must be a whole number"),
        ({"x": Y[:, None] * np.ones((1, 2)), "eps": 0.5}, "l2 must be positive here"),
    ],
)
def test_bad_input_is_named(arguments, message):
    run = {"x": X, "y": Y, "eps": 0.1} | arguments
    with pytest.raises(ValueError, match=message):
        linear.fit(run.pop("x"), run.pop("y"), **run)


@pytest.mark.parametrize("w", [np.ones(2), np.ones((3, 1)), np.array([1, np.nan, 0])])
def test_weights_that_do_not_fit_are_named(w):
    with pytest.raises(ValueError, match="w must be finite weights"):
        linear.worst_case(w, X, Y, eps=0.1)
    with pytest.raises(ValueError, match="b must have shape"):
        linear.worst_margins(np.ones(3), np.ones(2), X, Y, eps=0.1)
