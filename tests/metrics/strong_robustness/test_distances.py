"""ARC and ARCA: definitions, limits and standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.metrics import strong_robustness
from robjax.metrics.strong_robustness import arc, arca
from robjax.theory import feature_spaces

DISTANCES = st.lists(
    st.floats(0, 10, allow_subnormal=False) | st.just(np.inf), min_size=2, max_size=9
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def capped(distances, delta):
    return np.array([d if d < delta else delta for d in distances])


@given(DISTANCES, st.floats(1e-3, 20))
def test_arc_is_the_mean_of_capped_distances(distances, delta):
    found = arc(np.array(distances), delta)
    wanted = capped(distances, delta)
    assert float(found) == pytest.approx(wanted.mean(), rel=1e-12)
    error = wanted.std(ddof=1) / np.sqrt(len(wanted))
    assert float(found.stderr) == pytest.approx(error, rel=1e-6, abs=1e-9 * delta)
    if min(distances) >= delta:
        assert float(found) == delta
    else:
        assert float(found) < delta


@given(DISTANCES, st.integers(0, 10**6))
def test_limits_and_order(distances, seed):
    rng = np.random.default_rng(seed)
    deltas = np.sort(10 ** rng.uniform(-2, 1.5, 5))
    correct = rng.integers(0, 2, len(distances)).astype(bool)
    values = np.array([float(arc(np.array(distances), d)) for d in deltas])
    assert (np.diff(values) >= -1e-12).all()
    assert (np.diff(values / deltas) <= 1e-12).all()
    for value, delta in zip(values, deltas, strict=True):
        together = float(arca(np.array(distances), correct, delta))
        assert together == pytest.approx(correct.mean() * value / delta, rel=1e-12)
        assert 0 <= together <= correct.mean() + 1e-15


def test_misclassified_samples_count_with_their_distance():
    # half are right, none changes within 1: a product of means, not a mean of products
    assert float(arca([np.inf, 0.0], [True, False], 1.0)) == 0.25
    assert float(arca([0.0, np.inf], [True, False], 1.0)) == 0.25
    assert float(arc([0.0, np.inf], 1.0)) == 0.5


def test_standard_errors_are_those_of_repetitions():
    rng = np.random.default_rng(0)
    shape = (2000, 400)
    distances = rng.exponential(size=shape)
    correct = rng.random(shape) < np.where(distances > 0.5, 0.9, 0.4)
    together, single = jax.vmap(
        lambda d, c: (jnp.stack(arca(d, c, 0.8)), jnp.stack(arc(d, 0.8)))
    )(distances, correct)
    for found in (together, single):
        spread = np.std(found[:, 0])
        np.testing.assert_allclose(np.mean(found[:, 1]), spread, rtol=0.08)


def test_arc_of_a_linear_model_is_the_closed_form():
    rng = np.random.default_rng(1)
    a, a2 = np.array([1.0, -2]), np.array([[1.0, 1], [0, 3]])
    distances = feature_spaces.minimal_flip_distance(
        a, 0.3, rng.normal(size=(100_000, 2)), a2
    )
    for delta in (0.2, 5.0):
        exact = feature_spaces.gaussian_arc(
            0.3, np.sqrt(5), modulus=feature_spaces.modulus(a[None], a2), delta=delta
        )
        found = arc(distances, delta)
        assert abs(float(found) - exact) < 4 * float(found.stderr)


def test_traced_and_single_precision():
    distances = jnp.array([0.1, np.inf, 0.4], jnp.float32)
    plain = arc(distances, 0.2)
    assert plain.value.dtype == jnp.float32
    traced = jax.jit(arc)(distances, 0.2)
    np.testing.assert_allclose(plain.value, traced.value, rtol=1e-6)
    assert float(arc(jnp.full(99991, 0.3, jnp.float32), 0.1)) == pytest.approx(0.1)
    assert repr(arc([1], 2)) == "Estimate(1 ± nan)"
    assert strong_robustness.arc is arc


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arc([-1.0], 1.0), r"distances must be 0 or more.*got \[-1.\]"),
        (lambda: arc([np.nan], 1.0), "distances must be 0 or more"),
        (lambda: arc([], 1.0), "distances must not be empty"),
        (lambda: arc([[1.0]], 1.0), r"distances must have shape \[N\], got"),
        (lambda: arc([1.0], 0.0), "delta must be positive, got 0.0"),
        (lambda: arc([1.0], np.inf), "delta must be finite"),
        (lambda: arc([1.0], [1.0]), "delta must be a real number"),
        (lambda: arca([1.0], [2.0], 1.0), "correct must be finite and in"),
        (lambda: arca([1.0, 2.0], [True], 1.0), "correct must have the shape of dist"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("attack", "ball", "dual"),
    [
        (attacks.ddn, L2, 2),
        (attacks.fmn, Linf, 1),
        (attacks.fmn, L1, np.inf),
    ],
)
def test_distances_by_search_are_those_of_a_linear_model(attack, ball, dual):
    rng = np.random.default_rng(2)
    w = rng.uniform(0.5, 1.5, 6) * np.sign(rng.normal(size=6))
    x = rng.uniform(0.3, 0.7, (200, 6))
    b = -0.5 * w.sum()

    def score(x):
        s = x @ jnp.asarray(w) + b
        return jnp.stack([-s, s], axis=1)

    found = strong_robustness.minimal_distances(
        score, jnp.asarray(x), ball=ball(6.0), key=jax.random.key(0), attack=attack
    )
    exact = np.abs(x @ w + b) / np.linalg.norm(w, dual)
    if ball is L2:
        peer = feature_spaces.minimal_flip_distance(w, b, x, np.eye(6))
        np.testing.assert_allclose(exact, peer, rtol=1e-12)
    clear = exact > 1e-3  # what is nearer is decided by rounding
    inside = exact < (0.3 if ball is L1 else np.inf)  # one pixel cannot do all of it
    rows = clear & inside
    assert rows.mean() > 0.5
    assert (found[rows] >= exact[rows] * (1 - 1e-9)).all()
    for delta in (0.05, 0.2):
        searched = float(arc(found[rows], delta))
        known = float(arc(exact[rows], delta))
        assert known * (1 - 1e-9) <= searched <= 1.01 * known
