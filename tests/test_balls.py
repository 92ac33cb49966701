import itertools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robjax.balls import L0, L1, L2, Linf

BALLS = [Linf, L2, L1]
project = jax.jit(lambda ball, v, x: ball.project(v, x, (0.0, 1.0)))
sample = jax.jit(lambda ball, keys, x: ball.sample(keys, x))


def steepest(ball, g):
    return ball.steepest(g, jnp.full_like(g, 0.5), (0.0, 1.0))


def norm64(ball, delta):
    delta = np.asarray(delta, np.float64).reshape(len(delta), -1)
    order = {Linf: np.inf, L2: 2, L1: 1}[type(ball)]
    return np.linalg.norm(delta, ord=order, axis=1)


def tolerance(ball):
    eps = np.asarray(ball.eps, np.float64)
    return 1e-7 if isinstance(ball, Linf) else 1e-6 * eps + 1e-7


def nearest64(ball, v, x, low, high):
    """Projection of one sample in float64, by bisection on the Lagrange multiplier."""
    d = v - x
    if isinstance(ball, Linf):
        return np.clip(np.clip(v, x - ball.eps, x + ball.eps), low, high)

    def candidate(multiplier):
        if isinstance(ball, L2):
            return np.clip(x + d / (1 + multiplier), low, high)
        soft = np.sign(d) * np.maximum(np.abs(d) - multiplier, 0)
        return np.clip(x + soft, low, high)

    def too_far(multiplier):
        return norm64(ball, (candidate(multiplier) - x)[None])[0] > ball.eps

    if not too_far(0.0):
        return candidate(0.0)
    lower, upper = 0.0, 1.0
    while too_far(upper) and upper < 1e12:
        upper *= 2
    for _ in range(200):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if too_far(middle) else (lower, middle)
    return candidate(upper)


def instance(seed, batch=4, shape=(3, 5), scale=2.0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(batch, *shape)).astype(np.float32)
    x[rng.uniform(size=x.shape) < 0.2] = 0.0
    x[rng.uniform(size=x.shape) < 0.2] = 1.0
    v = (x + scale * rng.normal(size=x.shape)).astype(np.float32)
    return v, x


@pytest.mark.parametrize("ball_type", BALLS)
@given(
    seed=st.integers(0, 2**31),
    eps=st.floats(0, 8, width=32),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
)
def test_projection_is_the_nearest_point_of_ball_and_box(ball_type, seed, eps, scale):
    ball = ball_type(eps)
    v, x = instance(seed, scale=scale)
    got = np.asarray(project(ball, v, x))
    assert got.min() >= 0 and got.max() <= 1
    assert (norm64(ball, got - x.astype(np.float64)) <= eps + tolerance(ball)).all()
    x64, v64 = x.astype(np.float64), v.astype(np.float64)
    expected = [nearest64(ball, a, b, 0.0, 1.0) for a, b in zip(v64, x64, strict=True)]
    np.testing.assert_allclose(got, expected, atol=3e-6 * max(1.0, scale))


def stays_inside(ball_type, seed, size, eps, scale, saturated):
    """Asserts that projections of large images lie in ball and box; their norm / ε."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(2, size)).astype(np.float32)
    x = np.where(rng.uniform(size=x.shape) < saturated, np.round(x), x)
    with np.errstate(over="ignore"):
        v = (x + scale * rng.normal(size=x.shape)).astype(np.float32)
    v = np.clip(v, -3e38, 3e38)
    got = np.asarray(project(ball_type(jnp.float32(eps)), v, x))
    assert got.min() >= 0 and got.max() <= 1  # NaN fails too
    length = norm64(ball_type(1.0), got - x.astype(np.float64))
    eps = float(np.float32(eps))
    assert (length <= eps * (1 + 1e-6) + 1e-7).all()
    return length / eps


@pytest.mark.parametrize("ball_type", [L2, L1])
@given(
    seed=st.integers(0, 2**31),
    eps=st.sampled_from([1e-6, 1e-4, 1e-2, 0.5, 3.0, 12.0, 40.0]),
    scale=st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 30.0, 1e4, 1e20, 1e38]),
    saturated=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=60)
def test_the_roundings_of_many_pixels_do_not_leave_the_ball(
    ball_type, seed, eps, scale, saturated
):
    used = stays_inside(ball_type, seed, 3072, eps, scale, saturated)
    # nor do they leave much of it unused where it is what stops the step
    assert not (0.1 <= scale <= 30 and 0.5 <= eps <= 3) or (used >= 1 - 1e-4).all()


@pytest.mark.parametrize("ball_type", [L2, L1])
def test_images_of_150528_pixels_stay_in_the_ball(ball_type):
    for seed, (eps, scale) in enumerate([(1e-4, 0.1), (3.0, 0.1), (50.0, 1.0)]):
        used = stays_inside(ball_type, seed, 150528, eps, scale, 0.5)
        assert eps < 1 or (used >= 1 - 1e-4).all()


@pytest.mark.parametrize("scale", [1e10, 1e20, 1e30, 1e37])
def test_huge_l2_steps_do_not_overflow(scale):
    x, v = jnp.full((1, 2), 0.5), scale * jnp.asarray([[3.0, -1.0]])
    direction = np.array([0.3, -0.1]) / np.sqrt(0.1)
    np.testing.assert_allclose(project(L2(0.1), v, x) - x, [0.1 * direction], rtol=1e-5)


@pytest.mark.parametrize("ball_type", BALLS)
@given(seed=st.integers(0, 2**31), eps=st.floats(2**-10, 4, width=32))
def test_projection_satisfies_the_variational_inequality(ball_type, seed, eps):
    # P is the nearest point iff <v − P, z − P> ≤ 0 for every feasible z
    ball = ball_type(eps)
    v, x = instance(seed)
    nearest = np.asarray(project(ball, v, x), np.float64)
    keys = jax.random.split(jax.random.key(seed), 4)
    draw = np.asarray(sample(ball, keys, jnp.asarray(x)), np.float64)
    feasible = np.clip(x + draw, 0, 1)  # clipping towards x stays in the ball
    inner = ((v - nearest) * (feasible - nearest)).reshape(4, -1).sum(1)
    assert (inner <= 1e-4).all()


@pytest.mark.parametrize("ball_type", BALLS)
def test_each_sample_has_its_own_radius_and_no_neighbours(ball_type):
    v, x = instance(0)
    eps = np.array([0.0, 0.1, 0.7, 5.0], np.float32)
    together = project(ball_type(jnp.asarray(eps)), v, x)
    for i in range(4):
        one = slice(i, i + 1)
        alone = project(ball_type(float(eps[i])), v[one], x[one])
        np.testing.assert_array_equal(together[i], alone[0])
    np.testing.assert_array_equal(together[0], x[0])


@pytest.mark.parametrize("ball_type", BALLS)
@given(
    d=hnp.arrays(np.float32, (3, 7), elements=st.floats(-4, 4, width=32)),
)
def test_norm_is_the_norm(ball_type, d):
    ball = ball_type(1.0)
    np.testing.assert_allclose(
        ball.norm(jnp.asarray(d)), norm64(ball, d), rtol=1e-6, atol=1e-18
    )


@pytest.mark.parametrize("ball", [Linf(1.0), L2(1.0), L1(1.0, density=0.0)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_steepest_step_reaches_the_dual_norm(ball, scale):
    g = np.random.default_rng(1).normal(size=(5, 4, 6)).astype(np.float32)
    step = np.asarray(steepest(ball, jnp.asarray(scale * g, jnp.float32)), np.float64)
    np.testing.assert_allclose(norm64(ball, step), 1, rtol=1e-6)
    flat = g.reshape(5, -1)
    dual = {
        Linf: np.abs(flat).sum(1),
        L2: np.sqrt((flat.astype(np.float64) ** 2).sum(1)),
        L1: np.abs(flat).max(1),
    }[type(ball)]
    np.testing.assert_allclose((step * g).reshape(5, -1).sum(1), dual, rtol=1e-5)


def test_l1_step_spreads_over_the_largest_coordinates():
    g = jnp.asarray([[0.1, -5.0, 3.0, 0.0]])
    step = steepest(L1(1.0, density=0.5), g)
    np.testing.assert_allclose(step, [[0.0, -0.5, 0.5, 0.0]])
    ties = steepest(L1(1.0, density=0.0), jnp.asarray([[2.0, 2.0, -2.0, 2.0]]))
    np.testing.assert_allclose(ties, [[1.0, 0.0, 0.0, 0.0]])


def test_l1_step_skips_pixels_the_box_stops():
    g, v = jnp.asarray([[5.0, -4.0, 3.0]]), jnp.asarray([[1.0, 0.0, 0.5]])
    step = L1(1.0, density=0.0).steepest(g, v, (0.0, 1.0))
    np.testing.assert_array_equal(step, [[0.0, 0.0, 1.0]])


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.3), L1(0.3)])
def test_no_gradient_no_step(ball):
    np.testing.assert_array_equal(steepest(ball, jnp.zeros((2, 3, 3))), 0)


@pytest.mark.parametrize("ball_type", [L2, L1, Linf])
def test_samples_are_uniform_in_the_ball(ball_type):
    # uniform in a ball of dimension d: (‖δ‖/ε)^d is uniform on [0, 1], signs are fair
    dimension, count, eps = 5, 4000, 0.7
    keys = jax.random.split(jax.random.key(7), count)
    ball = ball_type(eps)
    draws = np.asarray(sample(ball, keys, jnp.zeros((count, dimension))), np.float64)
    radius = norm64(ball, draws) / eps
    assert stats.kstest(radius**dimension, "uniform").pvalue > 1e-3
    assert abs(np.sign(draws).mean()) < 4 / np.sqrt(count * dimension)
    # exchangeable coordinates: every |δ_i| has the same distribution
    first, last = np.abs(draws[:, 0]), np.abs(draws[:, -1])
    assert stats.ks_2samp(first, last).pvalue > 1e-3
    if ball_type is Linf:
        assert stats.kstest(draws[:, 0], stats.uniform(-eps, 2 * eps).cdf).pvalue > 1e-3


def test_two_kinds_of_ball_never_share_compiled_code():
    kinds = [Linf(0.1), L2(0.1), L1(0.1), L1(0.1, density=0.5)]
    structures = [jax.tree.structure(ball) for ball in kinds]
    for i, structure in enumerate(structures):
        assert [structure == other for other in structures].index(True) == i
        assert sum(structure == other for other in structures) == 1
    v, x = instance(5)
    for ball in kinds:
        again = project(jax.tree.map(lambda leaf: leaf, ball), v, x)
        np.testing.assert_array_equal(project(ball, v, x), again)


def test_radius_is_traced():
    traces = []

    @jax.jit
    def counted(ball, v, x):
        traces.append(None)
        return ball.project(v, x, (0.0, 1.0))

    v, x = instance(3)
    for eps in (0.1, 0.2, 0.4):
        counted(L2(eps), v, x)
    assert len(traces) == 1


@given(seed=st.integers(0, 2**31), eps=st.floats(0, 6, width=32))
def test_l0_projection_is_the_nearest_point_of_ball_and_box(seed, eps):
    v, x = instance(seed, batch=2, shape=(2, 3))
    v[0, 0] = x[0, 0]  # coordinates that do not move
    ball = L0(eps)
    got = np.asarray(project(ball, v, x))
    assert got.min() >= 0 and got.max() <= 1
    assert (ball.norm(jnp.asarray(got - x)) <= eps).all()
    subsets = np.array(list(itertools.product([False, True], repeat=6)))
    subsets = subsets[subsets.sum(axis=1) <= eps].reshape(-1, 1, 2, 3)
    candidates = np.where(subsets, np.clip(v, 0, 1), x)
    least = ((candidates - v) ** 2).sum(axis=(2, 3)).min(axis=0)
    np.testing.assert_allclose(((got - v) ** 2).sum(axis=(1, 2)), least, rtol=1e-5)


def test_l0_keeps_the_largest_changes_and_breaks_ties():
    x, v = (
        jnp.full((2, 4), 0.5),
        jnp.asarray([[0.75, 0.25, 0.625, 0.25], [9, 0.6, 1, 0]]),
    )
    kept = L0(jnp.asarray([2.0, 1.9])).project(v, x, (0.0, 1.0))
    np.testing.assert_allclose(kept, [[0.75, 0.25, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(L0(1).norm(kept - x), [2, 1])
