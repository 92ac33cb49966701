"""Adversarial linear regression: a table, Monte Carlo, brute force, KKT, the lasso."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from sklearn.linear_model import Lasso

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.theory import linear_regression as lr

NORMS = [1, 2, np.inf]
DUAL = {1: np.inf, 2: 2, np.inf: 1}
C = np.sqrt(2 / np.pi)
PAIR = {"covariance": np.array([[1, 1.2], [1.2, 2.25]]), "w_star": np.array([1.0, 0])}
# norm, eps_max, w at eps = .1, .3, .5, risk at eps = .3, risk and gradient at W
GOLDEN = [
    (
        1,
        2.6410058936,
        [(0.92525951, 0.03986159), (0.72935310, 0.14434501), (0.40883230, 0.31528944)],
        0.2833562902,
        0.255752323108,
        (0.06190697, 0.25080523),
    ),
    (
        2,
        1.8751741295,
        [(0.92699262, 0.03844190), (0.75935483, 0.12160243), (0.58614476, 0.19409313)],
        0.2868068678,
        0.262218972179,
        (0.05456948, 0.31754194),
    ),
    (
        np.inf,
        1.4405486692,
        [(0.96520036, 0.00662850), (0.87965970, 0.02292196), (0.76851505, 0.04409237)],
        0.3083476526,
        0.304074415424,
        (0.07342026, 0.52514576),
    ),
]
W = np.array([0.7, 0.2])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def risk(w, eps, norm, *, covariance, w_star, noise):
    """The formula, written once more in NumPy; w [..., d]."""
    error = np.asarray(w) - w_star
    square = noise**2 + np.einsum("...i,ij,...j->...", error, covariance, error)
    size = np.linalg.norm(w, ord=DUAL[norm], axis=-1)
    return square + 2 * C * eps * np.sqrt(square) * size + (eps * size) ** 2


def random_problem(rng, d, kind="full"):
    factor = rng.normal(size=(d, d if kind != "singular" else max(1, d // 2)))
    covariance = factor @ factor.T / d
    if kind == "scaled":
        scale = 10 ** rng.uniform(-3, 3, d)
        covariance *= scale * scale[:, None]
    if kind == "correlated":
        covariance = 1e-3 * covariance + 1
    w_star = rng.normal(size=d) * (np.arange(d) <= d // 2)
    return {"covariance": covariance, "w_star": w_star}


def check_kkt(w, eps, norm, noise, problem, tolerance=1e-8):
    """Stationarity of the risk, from w alone: −slope is in the subdifferential."""
    error = w - problem["w_star"]
    slope = problem["covariance"] @ error
    spread = np.sqrt(noise**2 + error @ slope)
    size = np.linalg.norm(w, ord=DUAL[norm])
    pull = -slope * (1 + C * eps * size / spread)
    level = eps * (C * spread + eps * size)
    scale = level + np.abs(pull).max()
    assert np.linalg.norm(pull, ord=norm) <= level + tolerance * scale
    assert pull @ w == pytest.approx(level * size, abs=tolerance * scale * size)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"norm {row[0]}")
def test_golden_table(row):
    norm, threshold, weights, least, value, gradient = row
    run = {**PAIR, "noise": 0.3, "norm": norm}
    assert lr.collapse_threshold(**run) == pytest.approx(threshold, abs=5.01e-11)
    for eps, w in zip((0.1, 0.3, 0.5), weights, strict=True):
        np.testing.assert_allclose(lr.solve(**run, eps=eps), w, rtol=0, atol=5.01e-9)
    found = lr.adversarial_risk(lr.solve(**run, eps=0.3), **run, eps=0.3)
    assert found == pytest.approx(least, abs=5.01e-11)
    at = {**run, "eps": 0.25}
    assert lr.adversarial_risk(W, **at) == pytest.approx(value, abs=5.01e-13)
    np.testing.assert_allclose(lr.risk_gradient(W, **at), gradient, atol=5.01e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mean", [None, [0.5, -0.3, 0.2]])
def test_risk_against_monte_carlo_under_the_worst_perturbation(norm, mean):
    rng = np.random.default_rng(0)
    problem = random_problem(rng, 3)
    w = np.array([0.4, -0.3, 0.2])
    count = 200_000
    x = rng.multivariate_normal(mean or np.zeros(3), problem["covariance"], count)
    y = x @ problem["w_star"] + 0.4 * rng.normal(size=count)
    move = np.asarray(lr.worst_perturbation(w, x, y, eps=0.5, norm=norm))
    assert (np.linalg.norm(move, ord=norm, axis=1) <= 0.5 + 1e-12).all()
    worst = (y - (x + move) @ w) ** 2
    expected = lr.adversarial_risk(
        w, **problem, noise=0.4, eps=0.5, norm=norm, mean=mean and np.array(mean)
    )
    assert abs(worst.mean() - expected) < 4 * worst.std() / np.sqrt(count)
    for _ in range(20):  # no other perturbation is worse
        other = rng.normal(size=(count // 100, 3)) * rng.integers(0, 2, size=3)
        length = np.linalg.norm(other, ord=norm, axis=1, keepdims=True)
        other *= 0.5 / np.maximum(length, 1e-9)
        rows = slice(0, len(other))
        assert ((y[rows] - (x[rows] + other) @ w) ** 2 <= worst[rows] + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_projected_gradient_ascent_reaches_the_worst_perturbation(norm):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 4))
    y = rng.normal(size=50)
    w = rng.normal(size=4)
    bounds = {"method": "SLSQP"}
    move = np.asarray(lr.worst_perturbation(w, x, y, eps=0.3, norm=norm))
    for i in range(5):
        start = 0.01 * np.sign(w) * -np.sign(y[i] - x[i] @ w)
        best = optimize.minimize(
            lambda p, i=i: -((y[i] - (x[i] + p[:4] - p[4:]) @ w) ** 2),
            np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)]),
            bounds=8 * [(0, 0.3)],
            constraints={
                "type": "ineq",
                "fun": lambda p: {
                    1: 0.3 - p.sum(),
                    2: 0.09 - ((p[:4] - p[4:]) ** 2).sum(),
                    np.inf: 1.0,
                }[norm],
            },
            **bounds,
        )
        reached = (y[i] - (x[i] + move[i]) @ w) ** 2
        assert -best.fun == pytest.approx(reached, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_the_risk_is_the_mean_loss_that_pgd_reaches(norm):
    """On points x, y at the nodes of a quadrature over the residual r.

    The loss under attack depends on (x, y) through r ~ N(0, s²) alone, so the points
    may be the means of x and y given r; its kink, at r = 0, is an end of both halves.
    """
    problem = random_problem(np.random.default_rng(3), 3)
    covariance, w_star = problem["covariance"], problem["w_star"]
    w, noise, eps = np.array([0.4, -0.3, 0.2]), 0.4, 0.5
    pull = covariance @ (w_star - w)
    square = noise**2 + (w_star - w) @ pull
    nodes, weights = np.polynomial.legendre.leggauss(24)
    r = 5 * np.sqrt(square) * np.concatenate([nodes - 1, nodes + 1])
    density = np.exp(-(r**2) / (2 * square)) / np.sqrt(2 * np.pi * square)
    weights = 5 * np.sqrt(square) * np.tile(weights, 2) * density
    x = jnp.asarray(r[:, None] * pull / square)
    y = jnp.asarray(r * (w_star @ pull + noise**2) / square)
    np.testing.assert_allclose(y - x @ w, r, atol=1e-12)

    found = attacks.pgd(  # logit k of an image is its prediction minus target k
        lambda x: (x @ w)[:, None] - y[None],
        x,
        jnp.arange(len(r)),
        ball={1: L1, 2: L2, np.inf: Linf}[norm](eps),
        bounds=(-50.0, 50.0),
        steps=5,
        random_start=False,
        loss=lambda logits, labels: logits[jnp.arange(len(r)), labels] ** 2,
    )
    expected = lr.adversarial_risk(w, **problem, noise=noise, eps=eps, norm=norm)
    # the tails beyond 10 s are below 1e-20
    assert weights @ np.asarray(found.loss) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mean", [None, np.array([0.5, -0.3, 0.2])])
def test_gradient_formula_is_the_derivative(norm, mean):
    rng = np.random.default_rng(2)
    problem = random_problem(rng, 3)
    run = {**problem, "noise": 0.2, "eps": 0.3, "norm": norm, "mean": mean}
    w = rng.normal(size=(4, 3))
    got = lr.risk_gradient(w, **run)
    by_jax = jax.vmap(jax.grad(lambda v: lr.adversarial_risk(v, **run)))(jnp.asarray(w))
    np.testing.assert_allclose(got, by_jax, rtol=1e-12, atol=1e-12)
    for row, gradient in zip(w, got, strict=True):
        numeric = optimize.approx_fprime(
            row, lambda v: float(lr.adversarial_risk(v, **run)), 1e-7
        )
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_the_risk_has_a_gradient_at_its_kinks_and_traces_eps(norm):
    run = {**PAIR, "noise": 0.0, "norm": norm}
    gradient = jax.grad(lambda w: lr.adversarial_risk(w, **run, eps=0.1))
    for w in (PAIR["w_star"], np.zeros(2), np.ones(2)):
        assert np.isfinite(gradient(jnp.asarray(w))).all()
    slopes = jax.vmap(jax.grad(lambda e: lr.adversarial_risk(W, **run, eps=e)))
    assert slopes(jnp.array([0.0, 0.3])).shape == (2,)
    several = lr.adversarial_risk(np.stack([W, W]), **run, eps=np.array([0.1, 0.2]))
    one = [lr.adversarial_risk(W, **run, eps=e) for e in (0.1, 0.2)]
    np.testing.assert_array_equal(several, np.array(one))


@given(
    seed=st.integers(0, 2**31),
    norm=st.sampled_from(NORMS),
    noise=st.sampled_from([0.0, 0.5]),
    eps=st.floats(0, 3),
)
def test_the_risk_is_convex(seed, norm, noise, eps):
    rng = np.random.default_rng(seed)
    run = {**random_problem(rng, 4), "noise": noise, "eps": eps, "norm": norm}
    a, b = rng.normal(size=(2, 100, 4)) + run["w_star"]
    share = rng.uniform(size=(100, 1))
    at, left, right = (
        lr.adversarial_risk(w, **run) for w in (share * a + (1 - share) * b, a, b)
    )
    chord = share[:, 0] * left + (1 - share[:, 0]) * right
    assert (at <= chord * (1 + 1e-12) + 1e-12).all()


@given(
    seed=st.integers(0, 2**31),
    d=st.integers(1, 12),
    norm=st.sampled_from(NORMS),
    kind=st.sampled_from(["full", "singular", "scaled", "correlated"]),
    noise=st.sampled_from([0.01, 0.3, 2.0]),
    share=st.floats(0.01, 0.99),
)
def test_minimisers_are_stationary_points_of_the_risk(
    seed, d, norm, kind, noise, share
):
    problem = random_problem(np.random.default_rng(seed), d, kind)
    run = {**problem, "noise": noise, "norm": norm}
    eps = share * lr.collapse_threshold(**run)
    w = lr.solve(**run, eps=eps)
    check_kkt(w, eps, norm, noise, problem)
    found = risk(w, eps, norm, **problem, noise=noise)
    assert lr.adversarial_risk(w, **run, eps=eps) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_no_direct_optimisation_is_better(norm, noise):
    for seed, d in enumerate((1, 2, 3, 5)):
        problem = random_problem(np.random.default_rng(seed), d)
        run = {**problem, "noise": noise, "norm": norm}
        threshold = lr.collapse_threshold(**run)
        for share in (0.1, 0.5, 0.9):
            eps = share * threshold
            w = lr.solve(**run, eps=eps)
            best = risk(w, eps, norm, **problem, noise=noise)
            # with bounds on |w| the problem is smooth: (v, t), −t ≤ v ≤ t
            direct = smooth_minimum(problem, noise, eps, norm)
            assert best <= direct + 1e-10
            assert direct == pytest.approx(best, abs=1e-6)
            near = w + 1e-3 * np.random.default_rng(0).normal(size=(200, d))
            assert (risk(near, eps, norm, **problem, noise=noise) >= best - 1e-13).all()


def smooth_minimum(problem, noise, eps, norm):
    d = len(problem["w_star"])

    def value(p):
        if norm == 2:
            return risk(p, eps, norm, **problem, noise=noise)
        w = p[:d] - p[d : 2 * d] if norm == np.inf else p[:d]
        size = p.sum() if norm == np.inf else p[d]
        error = w - problem["w_star"]
        square = noise**2 + max(error @ problem["covariance"] @ error, 0)
        return square + 2 * C * eps * np.sqrt(square) * size + (eps * size) ** 2

    size = {1: d + 1, 2: d, np.inf: 2 * d}[norm]
    bounds = size * [(0, None)] if norm == np.inf else None
    constraints = []
    if norm == 1:
        rows = [np.eye(d), -np.eye(d)]
        matrix = np.vstack([np.hstack([-row, np.ones((d, 1))]) for row in rows])
        constraints = [{"type": "ineq", "fun": lambda p: matrix @ p}]
    tight = {"ftol": 1e-15, "maxiter": 500}
    start = 0.3 * np.ones(size)
    found = optimize.minimize(
        value,
        start,
        method="SLSQP",
        bounds=bounds,
        constraints=constraints,
        options=tight,
    ).x
    # the risk itself: t may be smaller than |v| by the solver's tolerance
    w = found[:d] - found[d:] if norm == np.inf else found[:d]
    return risk(w, eps, norm, **problem, noise=noise)


@pytest.mark.parametrize("norm", NORMS)
def test_penalty_and_radius_are_inverse_maps(norm):
    run = {**random_problem(np.random.default_rng(3), 6), "noise": 0.2, "norm": norm}
    threshold = lr.collapse_threshold(**run)
    eps = threshold * np.array([0.0, 1e-6, 0.1, 0.5, 0.99, 1.0, 1.5])
    level = lr.penalty_of_eps(eps, **run)
    assert (np.diff(level) > 0).all()
    np.testing.assert_allclose(lr.eps_of_penalty(level, **run), eps, rtol=1e-9)
    problem = {name: run[name] for name in ("covariance", "w_star", "norm")}
    w = lr.path(eps, **run).w
    np.testing.assert_allclose(lr.penalised(level, **problem), w, atol=1e-9)


def test_penalised_minimisers_are_ridge_and_lasso():
    problem = random_problem(np.random.default_rng(4), 6)
    covariance, w_star = problem["covariance"], problem["w_star"]
    (w,) = lr.penalised([0.1], **problem, norm=2)
    mu = 0.1 / np.sqrt(w @ w)
    ridge = np.linalg.solve(covariance + mu * np.eye(6), covariance @ w_star)
    np.testing.assert_allclose(w, ridge, rtol=1e-10)
    root = np.sqrt(6) * np.linalg.cholesky(covariance).T
    lasso = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000)
    lasso.fit(root, root @ w_star)
    (w,) = lr.penalised([0.1], **problem, norm=np.inf)
    np.testing.assert_allclose(w, lasso.coef_, atol=1e-7)
    np.testing.assert_array_equal(w == 0, lasso.coef_ == 0)


@pytest.mark.parametrize("norm", NORMS)
def test_collapse_is_exact(norm):
    for seed in range(5):
        problem = random_problem(np.random.default_rng(seed), 5)
        run = {**problem, "noise": 0.3, "norm": norm}
        threshold = lr.collapse_threshold(**run)
        shares = threshold * np.array([1 - 1e-7, 1.0, 1 + 1e-9, 10])
        w = lr.path(shares, **run).w
        assert (w[1:] == 0).all() and (w[0] != 0).any()


@pytest.mark.parametrize(("d", "pieces"), [(1, 3), (100, 50)])
@pytest.mark.parametrize("norm", NORMS)
def test_paths_of_many_features_are_certified(d, pieces, norm):
    problem = random_problem(np.random.default_rng(5), d)
    run = {**problem, "noise": 0.3, "norm": norm}
    eps = np.linspace(0, 1.1, pieces) * lr.collapse_threshold(**run)
    line = lr.path(eps, **run)
    assert (line.gap <= 1e-11 * line.risk).all()
    for one, w in zip(eps[1:-1:10], line.w[1:-1:10], strict=True):
        check_kkt(w, one, norm, 0.3, problem)
        np.testing.assert_allclose(lr.solve(**run, eps=one), w, atol=1e-12)


def test_what_rounding_has_spoilt_is_an_error():
    nearly_one = np.ones((3, 3)) + 1e-12 * np.diag([1.0, 2.0, 3.0])
    law = {"covariance": nearly_one, "w_star": np.array([1.0, -1.0, 0.5])}
    with pytest.raises(RuntimeError, match="no exact minimiser .* nearly dependent"):
        lr.solve(**law, noise=0.1, eps=0.61, norm=np.inf)
