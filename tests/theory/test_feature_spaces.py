"""Feature spaces: null spaces, searches, simulations and invariances."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize, special, stats

from robjax.theory import feature_spaces as fs

SEEDS = st.integers(0, 10**6)
NORMS = (1, 2, np.inf)


def maps(rng, wanted, d):
    """Two maps of a case, of random ranks, with up to three rows too many."""
    order = rng.permutation(d)
    low = rng.integers(1, d)
    high = rng.integers(low + 1, d + 1)
    small, large = order[:low], order[:high]
    rows = {
        "I": (order[:low], order[1 : max(high, low + 1)]),
        "II": (large, small),
        "III": (large, large),
        "IV": (small, large),
    }[wanted]
    basis = rng.normal(size=(d, d))
    return [
        rng.normal(size=(len(r) + rng.integers(0, 4), len(r))) @ basis[r] for r in rows
    ]


def ignores_no_more(a1, a2):
    """Whether what A₂ ignores, A₁ ignores: by the null space."""
    ignored = linalg.null_space(a2)
    return bool(np.abs(a1 @ ignored).max(initial=0) < 1e-9 * max(np.abs(a1).max(), 1))


def named(within, around):
    return {(0, 0): "I", (0, 1): "II", (1, 1): "III", (1, 0): "IV"}[within, around]


@given(SEEDS, st.sampled_from(["I", "II", "III", "IV"]), st.sampled_from([2, 3, 7, 50]))
def test_cases_are_those_of_the_null_spaces(seed, wanted, d):
    a1, a2 = maps(np.random.default_rng(seed), wanted, d)
    found = fs.compare(a1, a2)
    within, around = ignores_no_more(a1, a2), ignores_no_more(a2, a1)
    assert found.case == fs.case(a1, a2) == wanted == named(within, around)
    assert fs.finer(a1, a2) == found.finer == found.strong_robust == within
    assert found.accurate == around
    assert np.isfinite(fs.modulus(a1, a2)) == within


@given(SEEDS, st.sampled_from(["I", "II", "III", "IV"]), st.sampled_from([2, 5, 50]))
def test_scales_of_rows_and_columns_change_no_case(seed, wanted, d):
    rng = np.random.default_rng(seed)
    pair = maps(rng, wanted, d)
    columns = 10 ** rng.uniform(-4, 4, d)
    scaled = [a * 10 ** rng.uniform(-9, 9, (len(a), 1)) * columns for a in pair]
    assert fs.case(*scaled) == wanted
    single = [a.astype(np.float32) * 10 ** rng.uniform(-9, 9) for a in pair]
    single = [a.astype(np.float32) for a in single]
    assert fs.case(*single) == wanted
    assert fs.case(*map(jnp.asarray, single)) == wanted


@given(SEEDS, st.sampled_from(["III", "IV"]))
def test_moduli_do_not_depend_on_coordinates(seed, wanted):
    rng = np.random.default_rng(seed)
    d = 4
    a1, a2 = maps(rng, wanted, d)
    value = fs.modulus(a1, a2)
    assert value == pytest.approx(
        np.linalg.norm(a1 @ np.linalg.pinv(a2, rcond=1e-10), 2), rel=1e-6
    )
    turn = stats.ortho_group.rvs(len(a2), random_state=seed) if len(a2) > 1 else -1
    turned = np.dot(turn, a2)
    assert fs.modulus(a1, turned) == pytest.approx(value, rel=1e-6)
    assert fs.modulus(a1, 4 * a2) == pytest.approx(value / 4, rel=1e-12)
    mix = stats.ortho_group.rvs(d, random_state=seed) * 10 ** rng.uniform(-1, 1, d)
    assert fs.modulus(a1 @ mix, a2 @ mix) == pytest.approx(value, rel=1e-6)
    rows = rng.normal(size=(len(a2), len(a2))) + 3 * np.eye(len(a2))
    assert fs.case(a1, rows @ a2) == wanted


def test_the_modulus_is_the_largest_stretch():
    rng = np.random.default_rng(0)
    a2 = rng.normal(size=(3, 5))
    a1 = rng.normal(size=(4, 3)) @ a2
    value = fs.modulus(a1, a2)
    v = rng.normal(size=(200_000, 5))
    stretch = np.linalg.norm(v @ a1.T, axis=1) / np.linalg.norm(v @ a2.T, axis=1)
    assert stretch.max() <= value * (1 + 1e-12)
    assert stretch.max() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("small", [1e-6, 1e-20, 1e-60])
def test_moduli_of_rows_of_unlike_lengths(small):
    rng = np.random.default_rng(1)
    a2 = np.diag([1.0, small, 1]) @ rng.normal(size=(3, 3))
    h = rng.normal(size=(2, 3)) / [1, small, 1]
    # h = A₁A₂⁻¹ by construction
    assert fs.modulus(h @ a2, a2) == pytest.approx(np.linalg.norm(h, 2), rel=1e-9)
    assert fs.modulus(np.eye(2), np.diag([1, small])) == pytest.approx(1 / small)


@pytest.mark.parametrize(
    ("a1", "a2", "wanted", "value"),
    [
        (np.zeros((1, 2)), np.zeros((3, 2)), "III", 0),
        (np.zeros((1, 2)), np.eye(2), "IV", 0),
        (np.eye(2), np.zeros((1, 2)), "II", np.inf),
        ([[2]], [[-4]], "III", 0.5),
        ([[1, 1e-9]], [[1, 0]], "I", np.inf),
        ([[1, 1e-17]], [[1, 0]], "III", 1),
        ([[1, 0]], [[1, 0], [1, 1e-9]], "IV", 1),
    ],
)
def test_zero_and_nearly_equal_maps(a1, a2, wanted, value):
    assert fs.case(a1, a2) == wanted
    assert fs.modulus(a1, a2) == pytest.approx(value, rel=1e-6)


def test_the_tolerance_decides_what_is_equal():
    a1, a2 = [[1.0, 1e-6]], [[1.0, 0.0]]
    assert fs.case(a1, a2) == "I"
    assert fs.case(np.float32(a1), np.float32(a2)) == "I"
    assert fs.case(a1, a2, tolerance=1e-5) == "III"
    assert fs.modulus(a1, a2, tolerance=1e-5) == pytest.approx(1)
    nearest = fs.minimal_flip_distance
    assert nearest(a1[0], 0, [[2.0, 1.0]], a2)[0] == 0
    assert nearest(a1[0], 0, [[2.0, 1.0]], a2, tolerance=1e-5)[0] == pytest.approx(2)


def test_flip_distances_are_what_a_search_finds():
    rng = np.random.default_rng(2)
    a2 = rng.normal(size=(3, 4)) @ rng.normal(size=(4, 4))
    a = rng.normal(size=3) @ a2
    x = rng.normal(size=(4, 4))
    found = fs.minimal_flip_distance(a, 0.3, x, a2)
    for point, distance in zip(x, found, strict=True):
        score = point @ a + 0.3
        result = optimize.minimize(
            lambda v: np.sum((a2 @ v) ** 2),
            np.zeros(4),
            jac=lambda v: 2 * a2.T @ (a2 @ v),
            constraints={
                "type": "eq",
                "fun": lambda v, s=score: s + a @ v,
                "jac": lambda v: a,
            },
            method="SLSQP",
            options={"ftol": 1e-16, "maxiter": 500},
        )
        assert distance == pytest.approx(np.sqrt(result.fun), rel=1e-8)
    assert (fs.minimal_flip_distance(rng.normal(size=4), 0.3, x, a2) == 0).all()


def test_flip_distances_in_the_plain_norm_and_at_the_ends():
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    plain = fs.minimal_flip_distance(
        jnp.array([3.0, 4.0]), 5, jnp.asarray(x), np.eye(2)
    )
    np.testing.assert_allclose(plain, [6, 1], rtol=1e-12)
    never = fs.minimal_flip_distance(np.zeros(2), 0.0, x, np.zeros((1, 2)))
    assert (never == np.inf).all()
    assert (fs.minimal_flip_distance([1.0, 0], 5.0, x, np.zeros((1, 2))) == 0).all()
    double = fs.minimal_flip_distance([3.0, 4.0], 5, x, 2 * np.eye(2))
    np.testing.assert_allclose(double, [12, 2], rtol=1e-12)


def test_no_flip_inside_the_margin_over_the_modulus():
    rng = np.random.default_rng(3)
    a2 = rng.normal(size=(2, 4))
    a1 = rng.normal(size=(3, 2)) @ a2
    w = rng.normal(size=3)
    x = rng.normal(size=(2000, 4))
    score = x @ a1.T @ w
    safe = np.abs(score) / np.linalg.norm(w) / fs.modulus(a1, a2)
    least = fs.minimal_flip_distance(a1.T @ w, 0.0, x, a2)
    assert (least >= safe * (1 - 1e-12)).all()
    step = rng.normal(size=x.shape)
    step *= (0.999 * safe / np.linalg.norm(step @ a2.T, axis=1))[:, None]
    assert (np.sign((x + step) @ a1.T @ w) == np.sign(score)).all()


def test_pair_agreement_is_what_a_simulation_gives():
    rng = np.random.default_rng(4)
    count = 400_000
    for _ in range(3):
        s, r = rng.normal(size=(2, 3, 3))
        a = rng.normal(size=3)
        x = rng.normal(size=(count, 3)) @ s.T
        moved = x + rng.normal(size=(count, 3)) @ r.T
        same = np.mean((x @ a > 0) == (moved @ a > 0))
        covariances = {"covariance": s @ s.T, "noise_covariance": r @ r.T}
        value = fs.pair_agreement(a, **covariances)
        assert abs(same - value) < 4 * np.sqrt(value * (1 - value) / count)


def test_pair_agreement_at_the_ends():
    one, none = np.diag([1.0, 0]), np.zeros((2, 2))
    unneeded = np.diag([0.0, 1])

    def value(noise, a=(1.0, 1.0), s=one):
        return fs.pair_agreement(a, covariance=s, noise_covariance=noise)

    assert value(none) == 1
    assert value(1e30 * unneeded) == pytest.approx(0.5, abs=1e-14)
    assert value(1e30 * unneeded, a=(1.0, 0.0)) == 1
    assert value(one, s=none) == 0.5
    assert value(none, s=none) == 1
    # 1 − ρ² is lost to rounding here, and the agreement is not
    assert 1 - value(1e-20 * unneeded) == pytest.approx(1e-10 / np.pi, rel=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.7, -2.0])
@pytest.mark.parametrize("delta", [1e-3, 0.2, 1.5, np.inf])
def test_gaussian_arc_is_the_integral_and_the_simulation(mean, delta):
    std, slope = 1.3, 2.0
    value = fs.gaussian_arc(mean, std, modulus=slope, delta=delta)

    def farther(t):
        up, down = (-slope * t - mean) / std, (mean - slope * t) / std
        return special.ndtr(up) + special.ndtr(down)

    end = min(delta, 20)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    integral = end / 2 * np.sum(weights * farther(end / 2 * (nodes + 1)))
    assert value == pytest.approx(integral, rel=1e-9)
    rng = np.random.default_rng(5)
    draws = np.minimum(np.abs(rng.normal(mean, std, 200_000)) / slope, delta)
    assert abs(draws.mean() - value) < 4 * draws.std() / np.sqrt(len(draws))


def test_gaussian_arc_at_the_ends():
    def value(mean, std, slope, delta=np.inf):
        return fs.gaussian_arc(mean, std, modulus=slope, delta=delta)

    assert value(1.0, 2.0, np.inf, 3.0) == value(1.0, 2.0, np.inf) == 0
    assert value(1.0, 2.0, 0.0, 3.0) == 3
    assert value(1.0, 2.0, 0.0) == np.inf
    assert value(-6.0, 0.0, 2.0) == 3
    np.testing.assert_array_equal(value(6.0, 0.0, 2.0, [2.0, 4.0]), [2, 3])
    assert value(100.0, 1.0, 1.0, 5.0) == 5
    np.testing.assert_allclose(
        value(0.0, 1.0, 1.0, np.array([1e-9, 1e-6])), [1e-9, 1e-6], rtol=1e-6
    )
    folded = stats.foldnorm.mean(0.5 / 2, scale=2) / 3
    assert value(0.5, 2.0, 3.0) == pytest.approx(folded, rel=1e-12)


@given(SEEDS)
def test_gaussian_arc_grows_with_the_cap_and_its_share_shrinks(seed):
    rng = np.random.default_rng(seed)
    delta = np.sort(10 ** rng.uniform(-3, 3, 30))
    mean, std = rng.normal(), 10 ** rng.uniform(-2, 1)
    value = fs.gaussian_arc(mean, std, modulus=1.7, delta=delta)
    assert (np.diff(value) >= -1e-12).all()
    assert (np.diff(value / delta) <= 1e-12).all()
    assert (value <= delta).all()


def test_a_search_is_never_below_the_exact_arc_and_close_to_it():
    rng = np.random.default_rng(6)
    a2 = np.array([[1.0, 0.5, 0], [0, 2, 1]])
    a = np.array([1.0, -2]) @ a2
    x = rng.normal(size=(500, 3))
    least = fs.minimal_flip_distance(a, 0.4, x, a2)
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    steps = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ np.linalg.pinv(a2).T

    def side(points):
        return points @ a + 0.4 > 0

    low = np.zeros((500, 200))
    high = np.full_like(low, 50.0)
    start = x[:, None, :]
    flips = side(start + high[..., None] * steps) != side(start)
    for _ in range(40):
        middle = (low + high) / 2
        other = side(start + middle[..., None] * steps) != side(start)
        low, high = np.where(other, low, middle), np.where(other, middle, high)
    searched = np.where(flips, high, np.inf).min(axis=1)
    assert (searched >= least * (1 - 1e-9)).all()
    for delta in (0.3, 10.0):
        found = np.minimum(searched, delta).mean()
        exact = np.minimum(least, delta).mean()
        assert exact <= found <= 1.01 * exact
        law = fs.gaussian_arc(
            0.4, np.linalg.norm(a), modulus=fs.modulus(a[None], a2), delta=delta
        )
        spread = np.minimum(least, delta).std() / np.sqrt(500)
        assert abs(exact - law) < 4 * spread


def test_the_paper_is_wrong_about_a_constant_classifier():
    x = np.random.default_rng(7).normal(size=(5, 2))
    for a2 in ([[1.0, 0.0]], np.zeros((1, 2))):
        found = fs.constant_classifier(np.eye(2), a2, x)
        assert found.spaces.case == "II" and not found.spaces.strong_robust
        assert (found.distance == np.inf).all() and np.isnan(found.flipped).all()


def test_an_unnecessary_feature_hurts_if_it_is_used():
    x = np.random.default_rng(8).normal(size=(100, 2))
    x[0] = 0
    for weight in (1e-3, 0.5, -2.0):
        found = fs.ignored_direction(x, weight=weight)
        assert found.spaces.case == "II" and not found.spaces.strong_robust
        assert (found.distance == 0).all()
        np.testing.assert_array_equal(found.flipped[:, 0], x[:, 0])
        before, after = (p[:, 0] + weight * p[:, 1] > 0 for p in (x, found.flipped))
        assert (before != after).all()
    unused = fs.ignored_direction(x, weight=0.0)
    assert unused.spaces == found.spaces
    np.testing.assert_allclose(unused.distance, np.abs(x[:, 0]), rtol=1e-15)
    assert np.isnan(unused.flipped).all()


def test_only_a_map_of_zeros_has_rank_0():
    a1, a2 = np.eye(1, 20), np.repeat(np.eye(2, 20)[1:], 3, axis=0)
    for tolerance in (0.49, None):  # four rows: below 1/2
        assert fs.compare(a1, a2, tolerance=tolerance).ranks == (1, 1, 2)


def exact_rank(rows):
    """The rank in rational arithmetic, by elimination."""
    kept = []
    for row in rows:
        row = [Fraction(float(value)) for value in row]
        for lead, other in kept:
            factor = row[lead] / other[lead]
            row = [a - factor * b for a, b in zip(row, other, strict=True)]
        lead = next((j for j, value in enumerate(row) if value), None)
        if lead is not None:
            kept.append((lead, row))
    return len(kept)


@given(SEEDS, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=100)
def test_ranks_are_those_of_rational_arithmetic(seed, dtype):
    rng = np.random.default_rng(seed)
    d = rng.integers(1, 6)
    basis = rng.integers(-3, 4, (d, d))
    pair = []
    for n in rng.integers(1, 5, 2):
        chosen = basis[rng.permutation(d)[: rng.integers(0, d + 1)]]
        whole = rng.integers(-3, 4, (n, len(chosen))) @ chosen
        rows = 2.0 ** rng.integers(-20, 21, (n, 1))  # exact, also in float32
        size = 2.0 ** rng.integers(-60, 61)
        pair.append((whole * rows * size).astype(dtype))
    ranks = tuple(map(exact_rank, (*pair, np.concatenate(pair))))
    found = fs.compare(*pair)
    assert found.ranks == ranks
    assert found.case == named(ranks[2] == ranks[1], ranks[2] == ranks[0])


def test_no_scale_is_too_large_or_too_small():
    one, big, small = np.eye(2), 2.0**1000, 2.0**-1000
    plain = np.array([[3.0, 4.0], [1.0, 0.0]])

    def distance(a, x, a2):
        return fs.minimal_flip_distance(a, 0.0, x, a2)

    wanted = distance([3.0, 4.0], plain, one)
    for size in (big, small):
        np.testing.assert_array_equal(
            distance([3 * size, 4 * size], plain, one), wanted
        )
        np.testing.assert_array_equal(
            distance([3.0, 4.0], plain, size * one), size * wanted
        )
        np.testing.assert_array_equal(
            distance([3 * size, 4 * size], plain, one / size), wanted / size
        )
        assert fs.modulus(size * one, size * one) == 1
        assert fs.case(size * one, one / size) == "III"
        half = fs.pair_agreement(
            [size, size], covariance=one / size, noise_covariance=one / size
        )
        assert half == pytest.approx(0.75, abs=1e-15)
        arc = fs.gaussian_arc(size, size, modulus=size, delta=[0.5, np.inf])
        np.testing.assert_array_equal(
            arc, fs.gaussian_arc(1.0, 1.0, modulus=1.0, delta=[0.5, np.inf])
        )
    assert fs.modulus(5e-324 * one, 5e-324 * one) == 1
    assert fs.modulus(big * one, small * one) == np.inf  # 2^2000
    assert (distance([1.0, 1.0], [[1e308, 1e308]], [[1.0, 0.0]]) == 0).all()
    assert fs.gaussian_arc(1.0, 1.0, modulus=1e-320, delta=1.0) == 1


def test_values_do_not_depend_on_the_precision_of_jax():
    a1, a2 = np.array([[1.0, 2]]) / 3, np.array([[1.0, 0], [1, 1]]) / 7
    plain = fs.modulus(a1, a2)
    with jax.enable_x64(True):
        assert fs.modulus(jnp.asarray(a1), jnp.asarray(a2)) == plain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.case([1.0], [[1.0]]), r"a1 must have shape \[n1, d\], got \(1,\)"),
        (lambda: fs.case([[1.0]], [[1.0, 2]]), "a2 must have as many columns as a1, 1"),
        (lambda: fs.case([[np.nan]], [[1.0]]), "a1 must be finite"),
        (lambda: fs.case([[1.0]], [[1j]]), r"a2 must hold real numbers \[n2, d\], got"),
        (lambda: fs.case(np.ones((0, 2)), np.eye(2)), "a1 must not be empty"),
        *(
            (
                lambda t=t: fs.modulus([[1.0]], [[1.0]], tolerance=t),
                "tolerance must be .* got",
            )
            for t in (1, 0.71, 0.999999, 0, -1e-9, np.nan, np.inf, "a", [0.1])
        ),
        (
            lambda: fs.case(np.ones((1, 800), np.float16), np.ones((1, 800))),
            "finer dtype than float16 for maps of this size",
        ),
        (
            lambda: fs.minimal_flip_distance([[1.0]], 0, [[1.0]], [[1.0]]),
            r"a must have shape \[d\]",
        ),
        (
            lambda: fs.minimal_flip_distance([1.0], 0, [1.0], [[1.0]]),
            r"x must have shape \[B, d\]",
        ),
        (
            lambda: fs.minimal_flip_distance([1.0], 0, [[1.0, 2]], [[1.0]]),
            r"x must have shape \[B, 1\], got \(1, 2\)",
        ),
        (
            lambda: fs.minimal_flip_distance([1.0], np.inf, [[1.0]], [[1.0]]),
            "b must be finite",
        ),
        (
            lambda: fs.minimal_flip_distance([1.0], 0, [[1.0]], [[1.0, 0]]),
            r"a2 must have shape \[n2, 1\], as a has, got \(1, 2\)",
        ),
        (
            lambda: fs.pair_agreement(
                [1.0], covariance=[[1.0]], noise_covariance=[[-1.0]]
            ),
            "noise_covariance must be symmetric with no negative",
        ),
        (
            lambda: fs.pair_agreement(
                [1.0], covariance=np.eye(2), noise_covariance=[[1.0]]
            ),
            r"covariance must have shape \(1, 1\)",
        ),
        (lambda: fs.gaussian_arc(0.0, -1.0, modulus=1.0), "std must be finite and in"),
        (lambda: fs.gaussian_arc(0.0, 1.0, modulus=-1.0), "modulus must be 0 or more"),
        (lambda: fs.gaussian_arc(0.0, 1.0, modulus=1, delta=0.0), "delta must be pos"),
        (
            lambda: fs.gaussian_arc([0.0] * 3, [1.0] * 2, modulus=1.0),
            "must broadcast, got shapes",
        ),
        (
            lambda: fs.ignored_direction([[1.0]], weight=1.0),
            r"x must have shape \[B, 2",
        ),
        (lambda: fs.ignored_direction([[1.0, 1]], weight=1e-20), "weight must be 0 or"),
        (
            lambda: fs.ignored_direction([[1e300, 1]], weight=1e-12),
            "x must be small enough to be flipped",
        ),
        (lambda: fs.norm_ratio(3, 2, 5), "p must be 1, 2 or inf, got 3"),
        (lambda: fs.norm_ratio(2, True, 5), "q must be 1, 2 or inf, got True"),
        (lambda: fs.norm_ratio(np.array([2]), 1, 5), "p must be 1, 2 or inf"),
        (lambda: fs.norm_ratio(2, 1, 0), "dimension must be a whole number"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
