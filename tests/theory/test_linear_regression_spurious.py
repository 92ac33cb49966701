"""Spurious features: thresholds, plateaus, prices of shifts, degenerate problems."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax.theory import linear_regression as lr

NORMS = [1, 2, np.inf]
C = np.sqrt(2 / np.pi)
HALF = {"covariance": np.array([[1, 0.5], [0.5, 1]]), "w_star": np.array([1.0, 0])}
CORE = np.array([True, False])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pair(rho, kappa):
    cross = rho * kappa
    covariance = np.array([[1, cross], [cross, kappa**2]])
    return {"covariance": covariance, "w_star": np.array([1.0, 0.0])}


def several(seed):
    """Three core and two spurious features."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(5, 7))
    w_star = np.concatenate([rng.normal(size=3), np.zeros(2)])
    return {"covariance": factor @ factor.T / 5, "w_star": w_star}


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9, -0.6])
def test_an_l_inf_attack_switches_at_unit_correlation_times_scale(rho):
    for factor, used in ((0.999, False), (1.001, True)):
        problem = pair(rho, factor / abs(rho))
        eps = np.array([0.01, 0.1, 0.4])
        w = lr.path(eps, **problem, noise=0.3, norm=np.inf).w
        if used:
            assert (np.sign(w[:, 1]) == np.sign(rho)).all()
        else:
            assert (w[:, 1] == 0).all() and (w[:, 0] > 0).all()
        condition = lr.ignores_spurious_condition(
            [1.0, 0.0], covariance=problem["covariance"], core=CORE
        )
        assert condition == pytest.approx(factor, rel=1e-12)


def test_the_condition_for_several_features_decides_exactly():
    core = np.arange(5) < 3
    outcomes = set()
    for seed in range(30):
        problem = several(seed)
        run = {**problem, "noise": 0.5, "norm": np.inf}
        eps = 0.05 * lr.collapse_threshold(**run)
        restricted = lr.core_only(**run, eps=eps, core=core)
        if (restricted[core] == 0).any():
            continue
        value = lr.ignores_spurious_condition(
            restricted, covariance=problem["covariance"], core=core
        )
        w = lr.solve(**run, eps=eps)
        outcomes.add(value <= 1)
        assert (w[~core] == 0).all() == (value <= 1)
        if value <= 1:
            np.testing.assert_allclose(w, restricted, atol=1e-12)
    assert outcomes == {True, False}


@pytest.mark.parametrize("rho", [0.3, -0.8])
@pytest.mark.parametrize("kappa", [0.2, 3.0])
def test_an_l2_attack_always_uses_what_is_correlated(rho, kappa):
    run = {**pair(rho, kappa), "noise": 0.3, "norm": 2}
    eps = lr.collapse_threshold(**run) * np.array([1e-4, 0.1, 0.5, 0.99])
    w = lr.path(eps, **run).w
    assert (np.sign(w[:, 1]) == np.sign(rho)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_not_correlated_is_never_used(norm):
    run = {**pair(0.0, 3.0), "noise": 0.3, "norm": norm}
    w = lr.path(np.linspace(0, 1.2, 7), **run).w
    assert (w[:, 1] == 0).all()


def test_an_l1_attack_may_leave_a_correlated_feature_unused():
    # correlated with the smaller of two core features only
    covariance = np.eye(3)
    covariance[1, 2] = covariance[2, 1] = 0.5
    problem = {"covariance": covariance, "w_star": np.array([2.0, 0.5, 0])}
    run = {**problem, "noise": 0.3, "norm": 1}
    shares = np.array([0.1, 0.3, 0.5, 0.8])
    w = lr.path(shares * lr.collapse_threshold(**run), **run).w
    np.testing.assert_allclose(w[:3, 2], 0, atol=1e-15)
    assert w[3, 2] > 1e-3


@pytest.mark.parametrize(
    ("norm", "end", "spurious"),
    [(1, 0.6910, 0.027), (2, 0.6910, 0.018), (np.inf, C, 0)],
)
def test_without_noise_there_is_a_plateau(norm, end, spurious):
    plateau = lr.plateau(**HALF, norm=norm)
    assert plateau == pytest.approx(end, abs=5e-5)
    run = {**HALF, "noise": 0.0, "norm": norm}
    inside = lr.path(plateau * np.array([0, 0.5, 0.97]), **run)
    np.testing.assert_allclose(inside.w, [[1, 0]] * 3, atol=1e-15)
    assert (inside.penalty == 0).all()
    w = lr.solve(**run, eps=1.03 * plateau)
    assert w[0] < 0.99
    assert w[1] == pytest.approx(spurious, abs=5e-4)
    assert lr.eps_of_penalty([0.0], **run)[0] == plateau


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.95))
def test_price_of_a_shift(norm, seed, share):
    problem = several(seed)
    core = np.arange(5) < 3
    run = {**problem, "noise": 0.4, "norm": norm}
    eps = share * lr.collapse_threshold(**run)
    w = lr.solve(**run, eps=eps)
    covariance, w_star = problem["covariance"], problem["w_star"]

    def error(kept):
        moved = covariance.copy()
        moved[np.ix_(core, ~core)] *= kept
        moved[np.ix_(~core, core)] *= kept
        return (w - w_star) @ moved @ (w - w_star)

    price = lr.shift_price(w, **problem, core=core)
    assert price == pytest.approx(error(0) - error(1), abs=1e-12)
    flipped = lr.shift_price(w, **problem, core=core, kept=-1.0)
    assert flipped == pytest.approx(2 * price, abs=1e-14)
    # the identity, with λg = Σ(w* − w)
    spurious = w[~core]
    pull = (covariance @ (w_star - w))[~core]
    block = covariance[np.ix_(~core, ~core)]
    identity = 2 * (spurious @ block @ spurious + pull @ spurious)
    assert price == pytest.approx(identity, abs=1e-12)
    assert price >= -1e-13
    if (np.abs(spurious) > 1e-6).any():
        assert price > 0
    restricted = lr.core_only(**run, eps=eps, core=core)
    assert (restricted[~core] == 0).all()
    full = lr.adversarial_risk(w, **run, eps=eps)
    assert full <= lr.adversarial_risk(restricted, **run, eps=eps) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("norm", "full", "restricted", "errors"),
    [
        (1, 0.646, 1.062, (0.283, 0.783, 1.282)),
        (2, 0.626, 0.809, (0.225, 0.555, 0.884)),
        (np.inf, 0.603, 0.607, (0.141, 0.178, 0.216)),
    ],
)
def test_what_is_kept_helps_and_what_is_flipped_hurts(norm, full, restricted, errors):
    problem = pair(0.8, 1.5)
    run = {**problem, "noise": 0.3, "norm": norm}
    run["eps"] = 0.4 * lr.collapse_threshold(**run)
    w = lr.solve(**run)
    only = lr.core_only(**run, core=CORE)
    assert lr.adversarial_risk(w, **run) == pytest.approx(full, abs=5.1e-4)
    assert lr.adversarial_risk(only, **run) == pytest.approx(restricted, abs=5.1e-4)
    standard = lr.adversarial_risk(w, **{**run, "eps": 0.0})
    prices = [lr.shift_price(w, **problem, core=CORE, kept=k) for k in (1, 0, -1)]
    np.testing.assert_allclose(standard + np.array(prices), errors, atol=5.1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("noise", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_phase_diagrams_agree_with_the_solver(norm, noise):
    rho, kappa, eps = np.meshgrid(
        [-0.7, 0, 0.4, 1.0], [0.3, 1, 4], [0, 0.2, 0.9, 9], indexing="ij"
    )
    found = lr.phase_diagram(rho=rho, kappa=kappa, eps=eps, noise=noise, norm=norm)
    assert found.risk.shape == rho.shape
    for index in np.ndindex(*rho.shape):
        problem = pair(rho[index], kappa[index])
        run = {**problem, "noise": noise, "eps": eps[index], "norm": norm}
        w = lr.solve(**run)
        # where both features are one, several weights are as good
        del run["eps"]
        (least,) = lr.path([eps[index]], **run).risk
        assert found.risk[index] == pytest.approx(least, abs=1e-10)
        got = np.array([found.core[index], found.spurious[index]])
        # rounding of s² = 0 is 1e-8 of s
        again = lr.adversarial_risk(got, **run, eps=eps[index])
        assert again == pytest.approx(least, abs=1e-7)
        if abs(rho[index]) < 1:
            np.testing.assert_allclose(got, w, atol=1e-9)
            assert (got[1] == 0) == (w[1] == 0) or norm != np.inf


@pytest.mark.parametrize("norm", NORMS)
def test_features_that_are_one(norm):
    # x_2 = 2 x_1: the attack is cheapest to resist with x_2
    run = {**pair(1.0, 2.0), "noise": 0.0, "norm": norm}
    w = lr.solve(**run, eps=0.0)
    expected = {1: [1 / 3, 1 / 3], 2: [0.2, 0.4], np.inf: [0, 0.5]}[norm]
    np.testing.assert_allclose(w, expected, atol=1e-12)
    np.testing.assert_allclose(lr.solve(**run, eps=0.1), expected, atol=1e-12)
    equal = {**pair(1.0, 1.0), "noise": 0.3, "eps": 0.2, "norm": norm}
    w = lr.solve(**equal)
    swapped = float(lr.adversarial_risk(w[::-1], **equal))
    assert lr.adversarial_risk(w, **equal) == pytest.approx(swapped, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_to_learn(norm):
    empty = {"covariance": np.zeros((2, 2)), "w_star": np.ones(2), "norm": norm}
    zero = {"covariance": np.eye(2), "w_star": np.zeros(2), "norm": norm}
    for problem in (empty, zero):
        for noise in (0.0, 1.0):
            assert lr.collapse_threshold(**problem, noise=noise) == 0
            w = lr.path([0.0, 1.0], **problem, noise=noise).w
            np.testing.assert_array_equal(w, np.zeros((2, 2)))
        assert lr.plateau(**problem) == np.inf


@pytest.mark.parametrize("norm", NORMS)
def test_a_feature_without_variance_and_one_twice(norm):
    covariance = np.zeros((4, 4))
    covariance[:3, :3] = [[1, 1, 0.3], [1, 1, 0.3], [0.3, 0.3, 2]]
    run = {"covariance": covariance, "w_star": np.array([1, 0.5, -1, 3.0])}
    line = lr.path(np.linspace(0, 3, 20), **run, noise=0.1, norm=norm)
    merged = {"covariance": covariance[1:3, 1:3], "w_star": np.array([1.5, -1])}
    assert (np.abs(line.w[:, 3]) <= 1e-15).all() or norm == 1
    if norm == np.inf:  # an l1 norm does not tell two halves from a whole
        both = lr.path(np.linspace(0, 3, 20), **merged, noise=0.1, norm=norm)
        np.testing.assert_allclose(line.risk, both.risk, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": 3}, "norm must be 1, 2 or inf, got 3"),
        ({"norm": "2"}, "norm must be 1, 2 or inf, got '2'"),
        ({"eps": -0.1}, "eps must be finite and"),
        ({"eps": np.nan}, "eps must be finite and"),
        ({"noise": -1.0}, "noise must be finite and"),
        ({"w_star": np.ones(3)}, "covariance must have shape"),
        ({"w_star": np.ones((2, 1))}, "w_star must have shape"),
        ({"w_star": np.array([1, np.inf])}, "w_star must be finite"),
        ({"covariance": np.ones((2, 3))}, "covariance must have shape"),
        ({"covariance": np.array([[1, 0.5], [0.2, 1]])}, "covariance must be symm"),
        ({"covariance": np.array([[1, 2.0], [2, 1]])}, "no negative eigenvalue"),
        ({"covariance": np.diag([1, -1.0])}, "no negative eigenvalue"),
    ],
)
def test_bad_problems_are_named(change, message):
    run = {**HALF, "noise": 0.3, "eps": 0.1, "norm": 2, **change}
    with pytest.raises(ValueError, match=message):
        lr.solve(**run)
    with pytest.raises(ValueError, match=message):
        lr.adversarial_risk(np.zeros(2), **run)


def test_bad_arguments_are_named():
    run = {**HALF, "noise": 0.3, "norm": 2}
    with pytest.raises(ValueError, match=r"w must have shape \[..., 2\], got \(3,\)"):
        lr.adversarial_risk(np.zeros(3), **run, eps=0.1)
    with pytest.raises(ValueError, match="eps must have shape"):
        lr.adversarial_risk(np.zeros(2), **run, eps=np.ones(3))
    with pytest.raises(ValueError, match="mean must have shape"):
        lr.adversarial_risk(np.zeros(2), **run, eps=0.1, mean=np.ones(3))
    with pytest.raises(ValueError, match=r"eps must have shape \[m\]"):
        lr.path(0.1, **run)
    with pytest.raises(ValueError, match="penalty must be finite and"):
        lr.eps_of_penalty([-1.0], **run)
    with pytest.raises(ValueError, match="core must be 2 booleans"):
        lr.core_only(**run, eps=0.1, core=[True, True])
    with pytest.raises(ValueError, match="w_star must be 0 on spurious"):
        lr.core_only(**run, eps=0.1, core=[False, True])
    with pytest.raises(ValueError, match="w must not be 0 on core"):
        lr.ignores_spurious_condition(
            [0.0, 1.0], covariance=HALF["covariance"], core=CORE
        )
    with pytest.raises(ValueError, match="rho must be finite and in"):
        lr.phase_diagram(rho=1.1, kappa=1.0, eps=0.1, noise=0.0, norm=2)
    with pytest.raises(ValueError, match="must broadcast"):
        lr.phase_diagram(rho=np.zeros(2), kappa=np.ones(3), eps=0.1, noise=0.0, norm=2)
    with pytest.raises(ValueError, match="x must have shape"):
        lr.worst_perturbation(
            np.zeros(2), np.zeros((1, 3)), np.zeros(1), eps=0.1, norm=2
        )
