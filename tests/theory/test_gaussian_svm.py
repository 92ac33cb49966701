"""Support vector machines in the population: quadrature, brute force, tables."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from robjax.theory import gaussian, gaussian_svm

P = 0.95
# p, m, lam, w_1, v, standard, robust at eps = 2 eta with x_1 attacked too (d = 100), as
# printed: text, for the number of digits
TABLE = """
.5   4 9.677437e-4 0       1       .99996833 3.167e-5
.8   4 8.128109e-4 .171435 .985195 .99997500 3.094e-5
.95  4 5.231143e-4 .351224 .936292 .99998701 4.127e-5
.975 4 4.197565e-4 .426650 .904417 .99999099 4.583e-5
.95  5 1.277356e-5 .285128 .958489 .99999988 2.729e-7
.95  6 1.183864e-7 .239681 .970852 1         6.922e-10
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def printed(text):
    """The number, to half a unit of its last digit; whole numbers to 1e-9."""
    digits, _, power = text.partition("e")
    places = len(digits.partition(".")[2]) or 9
    return pytest.approx(
        float(text), abs=0.5001 * 10 ** (int(power or 0) - places), rel=0
    )


@pytest.mark.parametrize(("w1", "v"), [(0.3, 0.9), (2.0, 0.1), (-0.4, 0.5), (0.7, 0.0)])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_expected_hinge_against_quadrature(w1, v, eps):
    p, m, d, lam = 0.9, 2.0, 25, 0.05

    def integrand(t, s):
        margin = 1 - s * w1 - v * t + eps * (abs(w1) + np.sqrt(d) * v)
        return max(0, margin) * scipy_stats.norm.pdf(t - m)

    exact = lam / 2 * (w1**2 + v**2)
    for s, weight in ((1, p), (-1, 1 - p)):
        kink = (1 - s * w1 + eps * (abs(w1) + np.sqrt(d) * v)) / v if v else m
        pieces = sorted({m - 12, np.clip(kink, m - 12, m + 12), m + 12})
        for low, high in itertools.pairwise(pieces):
            exact += weight * integrate.quad(integrand, low, high, args=(s,))[0]
    got = gaussian_svm.expected_hinge(w1, v, p=p, m=m, d=d, eps=eps, lam=lam)
    assert got == pytest.approx(exact, abs=1e-9)


def test_gradient_of_the_expected_hinge():
    p, m, w1, v = 0.9, 2.0, 0.4, 0.8
    got = jax.grad(
        lambda a, b: gaussian_svm.expected_hinge(a, b, p=p, m=m, d=1), argnums=(0, 1)
    )(w1, v)
    signs, weights = np.array([1, -1]), np.array([p, 1 - p])
    z = (1 - signs * w1 - v * m) / v
    cdf, pdf = scipy_stats.norm.cdf(z), scipy_stats.norm.pdf(z)
    expected = (weights * -signs * cdf).sum(), (weights * (pdf - m * cdf)).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def both_accuracies(svm, *, d, eta, p=P):
    """Without an attack and under L∞ of 2η."""
    w = np.array([svm.w1, *(d * [svm.v / d**0.5])])
    return [
        float(gaussian.robust_accuracy(w, p=p, eta=eta, eps=e)) for e in (0, 2 * eta)
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"p={row[0]}, m={row[1]}")
def test_unit_norm_svm_table(row):
    p, m = map(float, row[:2])
    svm = gaussian_svm.unit_svm(p=p, m=m)
    assert svm.lam == printed(row[2])
    assert (svm.w1, svm.v) == (printed(row[3]), printed(row[4]))
    accuracies = both_accuracies(svm, d=100, eta=m / 10, p=p)
    # "1" is printed as "~1"
    assert accuracies[0] == printed(row[5] if row[5] != "1" else "1.00000000")
    assert accuracies[1] == printed(row[6])
    # it minimises the objective with that λ: every neighbour is worse
    run = {"p": p, "m": m, "d": 100, "lam": svm.lam}
    best = gaussian_svm.expected_hinge(svm.w1, svm.v, **run)
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
        near = svm.w1 + 1e-3 * np.cos(angle), svm.v + 1e-3 * np.sin(angle)
        assert gaussian_svm.expected_hinge(*near, **run) > best
    np.testing.assert_allclose(gaussian_svm.svm(eps=0.0, **run), svm, atol=1e-12)


def test_standard_training_with_more_weak_features():
    svm = gaussian_svm.unit_svm(p=P, m=4.0)
    standard, robust = both_accuracies(svm, d=400, eta=0.2)
    assert standard == printed(".99998701") and robust == printed("7.618e-5")


def minimise(**run):
    """By brute force: (w_1, v) of the lowest objective that Nelder-Mead finds."""

    def objective(q):
        return float(gaussian_svm.expected_hinge(q[0], abs(q[1]), **run))

    options = {"xatol": 1e-9, "fatol": 1e-14, "maxfev": 500}
    starts = ((0.5, 0.5), (1.5, 0.01))
    found = [
        optimize.minimize(objective, start, method="Nelder-Mead", options=options)
        for start in starts
    ]
    best = min(found, key=lambda one: one.fun)
    return best.x[0], abs(best.x[1])


@pytest.mark.parametrize(
    ("eta", "eps", "lam"),
    [(0.3, 0.1, 0.05), (0.3, 0.2, 0.05), (0.3, 0.0, 0.5), (0.1, 0.05, 0.2)],
)
def test_svm_at_any_radius_against_brute_force(eta, eps, lam):
    run = {"p": P, "m": 10 * eta, "d": 100, "eps": eps, "lam": lam}
    svm = gaussian_svm.svm(**run)
    np.testing.assert_allclose((svm.w1, svm.v), minimise(**run), atol=1e-5)


def test_no_point_near_or_far_is_better_than_the_svm():
    rng, shape = np.random.default_rng(0), 60
    run = {
        "p": rng.uniform(0.5, 1, shape),
        "m": rng.uniform(0, 5, shape),
        "d": rng.integers(1, 400, shape),
        "eps": rng.uniform(0, 1.2, shape) * rng.integers(0, 2, shape),
        "lam": 10 ** rng.uniform(-4, 1, shape),
    }
    svm = gaussian_svm.svm(**run)
    wide = {name: value[None] for name, value in run.items()}
    best = gaussian_svm.expected_hinge(svm.w1, svm.v, **run)
    assert (svm.v > 0).any() and (svm.v == 0).any()
    for scale in (1e-5, 1e-3, 0.1, 3.0):
        step = scale * rng.normal(size=(2, 100, shape))
        other = svm.w1[None] + step[0], np.abs(svm.v[None] + step[1])
        worse = gaussian_svm.expected_hinge(*other, **wide)
        assert (worse >= best[None] - 1e-13).all()


def test_below_eta_the_weak_features_come_back():
    run = {"p": P, "m": 3.0, "d": 100, "lam": 0.05}
    w1, v, _ = gaussian_svm.svm(eps=0.1, **run)
    assert (w1, v) == (printed(".631"), printed(".807"))
    assert gaussian_svm.svm(eps=0.2, **run).v == 0


# w_1 by hand: slope over λ, the cap 5 or 1/.6, or nothing
@pytest.mark.parametrize(
    ("d", "eta", "eps", "lam", "w1"),
    [
        (100, 0.4, 0.8, 0.5, 0.1 / 0.5),
        (100, 0.4, 0.8, 0.01, 5),
        (400, 0.2, 0.4, 0.5, 0.5 / 0.5),
        (400, 0.2, 0.4, 1.0, 0.5 / 1.0),
        (400, 0.2, 0.4, 0.25, 1 / 0.6),
        (100, 0.4, 0.92, 0.1, 0),
        (400, 0.2, 0.92, 0.01, 0),
        (100, 0.4, 0.4, 0.3, 0.5 / 0.3),
    ],
)
def test_adversarial_minimiser(d, eta, eps, lam, w1):
    got = gaussian_svm.adversarial_svm(p=P, eta=eta, eps=eps, lam=lam)
    assert got == pytest.approx(w1, abs=1e-12)
    run = {"p": P, "m": eta * np.sqrt(d), "d": d, "eps": eps, "lam": lam}
    np.testing.assert_allclose(gaussian_svm.svm(**run), (w1, 0, lam), atol=1e-12)
    # no point of a grid is better
    first, second = np.meshgrid(np.linspace(-1, 12, 261), (0, 0.003, 0.03, 0.3, 1))
    grid = gaussian_svm.expected_hinge(first, second, **run)
    assert gaussian_svm.expected_hinge(w1, 0.0, **run) <= grid.min() + 1e-12
    w = [w1, *(d * [0.0])]
    for attack in (0.0, 0.99):
        accuracy = gaussian.robust_accuracy(w, p=P, eta=eta, eps=attack)
        assert accuracy == pytest.approx(P if w1 else 0.5)


@pytest.mark.parametrize(("eps", "slope"), [(0.4, -2.0), (0.92, 0.0), (1.0, 0.0)])
def test_slope_of_the_adversarial_minimiser_in_the_radius(eps, slope):
    def w1(eps):
        return gaussian_svm.adversarial_svm(p=P, eta=0.2, eps=eps, lam=0.5)

    assert jax.grad(w1)(eps) == pytest.approx(slope)


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("w1", [-0.4, 0.3, 1.5])
def test_gradients_of_the_hinge_against_differences(eps, w1):
    run = {"p": 0.8, "m": 2.0, "d": 20, "eps": eps, "lam": 0.1}
    at, h = (w1, 0.4), 1e-6
    slopes = jax.grad(lambda a, b: gaussian_svm.expected_hinge(a, b, **run), (0, 1))(
        *at
    )
    for index, slope in enumerate(slopes):
        step = h * np.eye(2)[index]
        up, down = (
            gaussian_svm.expected_hinge(*(at + s * step), **run) for s in (1, -1)
        )
        assert slope == pytest.approx(float((up - down) / (2 * h)), rel=1e-6)


def test_slopes_of_the_hinge_are_finite_without_weak_features():
    hinge = jax.grad(lambda v: gaussian_svm.expected_hinge(0.5, v, p=P, m=3.0, d=1))
    for tiny in (0.0, 1e-25, 1e-6):
        assert np.isfinite(hinge(jnp.float32(tiny)))


def test_parameters_may_be_arrays():
    p, m = np.array([[0.8], [0.95]]), np.array([4.0, 5.0, 6.0])
    table = gaussian_svm.unit_svm(p=p, m=m)
    assert table.lam.shape == (2, 3)
    alone = gaussian_svm.unit_svm(p=0.95, m=5.0)
    np.testing.assert_array_equal([part[1, 1] for part in table], alone)
    run = {"p": P, "m": 3.0, "d": 100, "lam": 0.05}
    both = gaussian_svm.svm(eps=np.array([0.1, 0.2]), **run)
    alone = gaussian_svm.svm(eps=0.2, **run)
    np.testing.assert_array_equal([part[1] for part in both], alone)


HINGE = {"p": 0.9, "m": 3.0, "d": 9}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_svm.expected_hinge(0.5, -0.5, **HINGE), "v must be"),
        (lambda: gaussian_svm.expected_hinge(0.5, 0.5, **HINGE | {"d": 0}), "d must"),
        (lambda: gaussian_svm.svm(eps=0.1, lam=0.0, **HINGE), "lam must be"),
        (lambda: gaussian_svm.svm(eps=0.1, lam=1, **HINGE | {"p": 0.4}), "p must be"),
        (lambda: gaussian_svm.unit_svm(p="a", m=3.0), "p must be finite"),
        (lambda: gaussian_svm.unit_svm(p=0.9, m=50.0), "m must be finite and in"),
        (lambda: gaussian_svm.unit_svm(p=0.5, m=0.3), "no SVM has norm 1 for p = 0.5"),
        (lambda: gaussian_svm.unit_svm(p=0.6, m=0.35), "no SVM has norm 1"),
        (
            lambda: gaussian_svm.adversarial_svm(p=0.9, eta=0.1, eps=0.1, lam=-1.0),
            "lam must be",
        ),
        (
            lambda: gaussian_svm.adversarial_svm(p=0.9, eta=0.3, eps=0.1, lam=0.05),
            "eps must be at least eta = 0.3, got 0.1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
