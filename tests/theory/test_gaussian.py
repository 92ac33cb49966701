"""Closed forms against Monte Carlo, quadrature, brute force and a printed table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression

from robjax.theory import gaussian

P, ETA, D = 0.95, 0.4, 100
# tau, standard, robust to the shift, bound; p = .95, m = 3
FRONTIER = [
    (0, 0.998650, 0.001350, 0.025648),
    (1, 0.998832, 0.021614, 0.022184),
    (2, 0.992067, 0.150723, 0.150728),
    (3, 0.975000, 0.475000, 0.475000),
    (4, 0.957933, 0.799278, 0.799278),
    (5, 0.951138, 0.928387, 0.928387),
    (6, 0.950067, 0.948718, 0.948718),
]
# p, m, lam, w_1, v, standard, robust at eps = 2 eta with x_1 attacked too (d = 100)
SVM = [
    (0.5, 4, 9.677437e-4, 0, 1, 0.99996833, 3.167e-5),
    (0.8, 4, 8.128109e-4, 0.171435, 0.985195, 0.99997500, 3.094e-5),
    (0.95, 4, 5.231143e-4, 0.351224, 0.936292, 0.99998701, 4.127e-5),
    (0.975, 4, 4.197565e-4, 0.426650, 0.904417, 0.99999099, 4.583e-5),
    (0.95, 5, 1.277356e-5, 0.285128, 0.958489, 0.99999988, 2.729e-7),
    (0.95, 6, 1.183864e-7, 0.239681, 0.970852, 1.0, 6.922e-10),
]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("norm", [1, 2, np.inf])
@pytest.mark.parametrize("attack_x1", [True, False])
@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_accuracies_against_monte_carlo(norm, attack_x1, bias):
    rng = np.random.default_rng(1)
    w = rng.normal(size=5) + np.array([1.0, 0.2, 0.2, 0.2, 0.2])
    x, y = gaussian.sample(jax.random.key(0), 200_000, d=4, p=0.8, eta=0.5)
    eps, scores = 0.3, np.asarray(y * (x @ w + bias))
    # the worst perturbation, by hand
    size = np.abs(w) * (np.arange(5) > 0 if not attack_x1 else 1)
    loss = {np.inf: size.sum(), 2: np.sqrt((size**2).sum()), 1: size.max()}[norm]
    for eps_, cost in ((0.0, 0.0), (eps, eps * loss)):
        closed = gaussian.robust_accuracy(
            w, p=0.8, eta=0.5, eps=eps_, norm=norm, bias=bias, attack_x1=attack_x1
        )
        assert abs(np.mean(scores > cost) - closed) < 4 * np.sqrt(0.25 / 200_000)
    standard = gaussian.standard_accuracy(w, p=0.8, eta=0.5, bias=bias)
    assert abs(np.mean(scores > 0) - standard) < 4 * np.sqrt(0.25 / 200_000)


def test_no_perturbation_of_the_ball_beats_the_closed_form():
    rng = np.random.default_rng(2)
    w = rng.normal(size=(3, 4))
    x, y = gaussian.sample(jax.random.key(1), 4000, d=3, p=0.9, eta=0.6)
    corners = np.array(np.meshgrid(*4 * [[-0.4, 0.4]])).reshape(4, -1).T
    for row in w:
        moved = np.asarray(x)[:, None] + corners[None]
        worst = (np.asarray(y)[:, None] * (moved @ row)).min(axis=1)
        closed = gaussian.robust_accuracy(row, p=0.9, eta=0.6, eps=0.4)
        assert abs(np.mean(worst > 0) - closed) < 4 * np.sqrt(0.25 / 4000)


def test_the_average_of_the_weak_features():
    w = gaussian.average_classifier(D)
    standard = gaussian.standard_accuracy(w, p=P, eta=0.3)
    robust = gaussian.robust_accuracy(w, p=P, eta=0.3, eps=0.6)
    assert standard == pytest.approx(scipy_stats.norm.cdf(3), abs=1e-12)
    assert robust == pytest.approx(scipy_stats.norm.cdf(-3), abs=1e-12)


def test_without_weak_features_and_at_ties():
    w = np.array([2.0, 0.0, 0.0])
    run = {"p": P, "eta": ETA}
    assert gaussian.standard_accuracy(w, **run) == pytest.approx(P)
    assert gaussian.robust_accuracy(w, eps=0.99, **run) == pytest.approx(P)
    assert gaussian.robust_accuracy(w, eps=1.01, **run) == 0
    assert gaussian.robust_accuracy(w, eps=1.0, **run) == pytest.approx(P / 2)
    assert gaussian.standard_accuracy(0 * w, **run) == 0.5
    with pytest.raises(ValueError, match="norm must be 1, 2 or inf, got 3"):
        gaussian.robust_accuracy(w, eps=1.0, norm=3, **run)


@pytest.mark.parametrize(("tau", "standard", "shifted", "bound"), FRONTIER)
def test_frontier_table(tau, standard, shifted, bound):
    got = gaussian.frontier(float(tau), p=0.95, m=3.0)
    np.testing.assert_allclose(got, (standard, shifted), atol=6e-7)
    assert gaussian.theorem_bound(got[0], 0.95) == pytest.approx(bound, abs=6e-7)
    w = np.array([tau, *(9 * [1 / 3])])
    run = {"p": 0.95, "eta": 1.0}
    same = gaussian.robust_accuracy(w, eps=2.0, attack_x1=False, **run)
    np.testing.assert_allclose(got[1], same, atol=1e-12)
    np.testing.assert_allclose(got[0], gaussian.standard_accuracy(w, **run), atol=1e-12)


def test_bayes_rule():
    tau = float(gaussian.bayes_threshold(p=0.95, m=3.0))
    assert tau == pytest.approx(0.490740, abs=5e-7)

    def error(t):
        return -float(gaussian.frontier(t, p=0.95, m=3.0)[0])

    best = optimize.minimize_scalar(error, bounds=(0, 3), options={"xatol": 1e-10})
    assert best.x == pytest.approx(tau, abs=1e-4)
    assert -best.fun == pytest.approx(0.999469, abs=5e-7)


def test_theorem_2_1_is_never_violated_by_200_000_linear_classifiers():
    rng = np.random.default_rng(0)
    for d in (1, 3, 10, 50):
        count = 50_000
        p, eta = rng.uniform(0.5, 0.999, count), rng.uniform(0, 2, count)
        w = rng.normal(size=(count, d + 1)) + rng.uniform(-2, 2, size=(count, 1))
        w *= np.exp(rng.normal(size=(count, d + 1)))
        standard = gaussian.standard_accuracy(w, p=p, eta=eta)
        robust = gaussian.robust_accuracy(w, p=p, eta=eta, eps=2 * eta, attack_x1=False)
        assert (robust <= gaussian.theorem_bound(standard, p) + 1e-12).all()
        ball = gaussian.robust_accuracy(w, p=p, eta=eta, eps=2 * eta)
        assert (ball <= robust + 1e-12).all()
        # the shift turns η into −η; the slack is what is left, and of one sign exactly
        shifted = gaussian.standard_accuracy(w, p=p, eta=-eta)
        assert (robust <= shifted + 1e-12).all()
        table = gaussian.linear_table(w, eta=eta)
        both = gaussian.table_accuracies(table, p)
        np.testing.assert_allclose(both, (standard, shifted), atol=1e-14)
        slack = gaussian.shift_slack(table, p)
        assert slack.shape == (count,) and (slack >= 0).all()
        exact = p / (1 - p) * (1 - standard) - shifted
        np.testing.assert_allclose(slack, exact, atol=1e-12)


def test_tables_of_any_classifier_and_the_slack():
    rng = np.random.default_rng(3)
    tables, ps = rng.uniform(size=(20, 2, 2)), rng.uniform(0.5, 0.99, 20)
    whole = *gaussian.table_accuracies(tables, ps), gaussian.shift_slack(tables, ps)
    for table, p, *one in zip(tables, ps, *whole, strict=True):
        standard, shifted = gaussian.table_accuracies(table, p)
        # by enumeration of y, x_1 and the law of the weak features
        exact = np.zeros(2)
        for y in (0, 1):
            for kept, weight in ((1, p), (0, 1 - p)):
                x1 = y if kept else 1 - y
                for i, law in enumerate((y, 1 - y)):
                    says_plus = table[x1, law]
                    exact[i] += weight / 2 * (says_plus if y == 0 else 1 - says_plus)
        np.testing.assert_allclose((standard, shifted), exact, atol=1e-12)
        slack = gaussian.theorem_bound(standard, p) - shifted
        assert gaussian.shift_slack(table, p) == pytest.approx(slack, abs=1e-12)
        np.testing.assert_allclose((standard, shifted, slack), one, atol=1e-12)


@pytest.mark.parametrize("bias", [0.0, 0.7])
@pytest.mark.parametrize("w", [(1.0, -0.2, 0.5), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_the_table_of_a_linear_classifier_against_monte_carlo(w, bias):
    drawn = gaussian.sample(jax.random.key(5), 50_000, d=2, p=0.8, eta=0.5)
    x, y = map(np.asarray, drawn)
    table = gaussian.linear_table(np.array(w), eta=0.5, bias=bias)
    for flip in (1, -1):
        moved = np.hstack([x[:, :1], x[:, 1:] + (flip - 1) * 0.5 * y[:, None]])
        plus = moved @ w + bias > 0
        for i, j in itertools.product((0, 1), (0, 1)):
            seen = plus[(x[:, 0] == 1 - 2 * i) & (flip * y == 1 - 2 * j)]
            assert abs(seen.mean() - table[i, j]) <= 4 * np.sqrt(0.25 / seen.size)


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
    got = gaussian.expected_hinge(w1, v, p=p, m=m, d=d, eps=eps, lam=lam)
    assert got == pytest.approx(exact, abs=1e-9)


def test_gradient_of_the_expected_hinge():
    p, m, w1, v = 0.9, 2.0, 0.4, 0.8
    got = jax.grad(
        lambda a, b: gaussian.expected_hinge(a, b, p=p, m=m), argnums=(0, 1)
    )(w1, v)
    signs, weights = np.array([1, -1]), np.array([p, 1 - p])
    z = (1 - signs * w1 - v * m) / v
    cdf, pdf = scipy_stats.norm.cdf(z), scipy_stats.norm.pdf(z)
    expected = (weights * -signs * cdf).sum(), (weights * (pdf - m * cdf)).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("row", SVM, ids=lambda row: f"p={row[0]}, m={row[1]}")
def test_unit_norm_svm_table(row):
    p, m, lam, w1, v, standard, robust = row
    svm = gaussian.unit_svm(p=p, m=m)
    assert svm.lam == pytest.approx(lam, rel=1e-6)
    np.testing.assert_allclose((svm.w1, svm.v), (w1, v), atol=6e-7)
    w, eta = np.array([svm.w1, *(100 * [svm.v / 10])]), m / 10
    got = gaussian.standard_accuracy(w, p=p, eta=eta)
    assert got == pytest.approx(standard, abs=6e-9)
    got = gaussian.robust_accuracy(w, p=p, eta=eta, eps=2 * eta)
    assert got == pytest.approx(robust, rel=3e-4)
    # it minimises the objective with that λ: every neighbour is worse
    best = gaussian.expected_hinge(svm.w1, svm.v, p=p, m=m, lam=svm.lam)
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
        near = svm.w1 + 1e-3 * np.cos(angle), svm.v + 1e-3 * np.sin(angle)
        assert gaussian.expected_hinge(*near, p=p, m=m, lam=svm.lam) > best


@pytest.mark.parametrize(
    ("d", "eta", "eps", "lam"),
    [
        (100, 0.4, 0.8, 0.5),
        (100, 0.4, 0.8, 0.01),
        (400, 0.2, 0.4, 0.5),
        (400, 0.2, 0.4, 1.0),
        (100, 0.4, 0.92, 0.1),
        (100, 0.4, 0.4, 0.3),
    ],
)
def test_adversarial_minimiser(d, eta, eps, lam):
    p, m = 0.95, eta * np.sqrt(d)
    w1 = float(gaussian.adversarial_svm(p=p, eps=eps, lam=lam))

    def objective(point):
        return float(
            gaussian.expected_hinge(
                point[0], abs(point[1]), p=p, m=m, d=d, eps=eps, lam=lam
            )
        )

    grid = [(a, b) for a in np.linspace(-1, 12, 261) for b in (0, 0.003, 0.03, 0.3, 1)]
    best = objective((w1, 0.0))
    assert best <= min(map(objective, grid)) + 1e-12
    assert w1 == 0 or eps < 2 * p - 1
    accuracy = gaussian.robust_accuracy([w1, *(d * [0.0])], p=p, eta=eta, eps=0.99)
    assert accuracy == pytest.approx(p if w1 else 0.5)


def test_below_eta_the_weak_features_come_back():
    run = {"p": 0.95, "m": 3.0, "d": 100, "lam": 0.05}

    def minimise(eps):
        def objective(q):
            return float(gaussian.expected_hinge(q[0], abs(q[1]), eps=eps, **run))

        found = optimize.minimize(
            objective, (0.5, 0.5), method="Nelder-Mead", options={"xatol": 1e-8}
        )
        return found.x

    w1, v = minimise(0.1)
    assert (w1, abs(v)) == (
        pytest.approx(0.631, abs=2e-3),
        pytest.approx(0.807, abs=2e-3),
    )
    assert abs(minimise(0.2)[1]) < 1e-4


def test_no_classifier_is_more_robust_than_p():
    best = gaussian.best_robust_accuracy(p=0.9, eta=0.3, eps=np.array([0.2, 0.3, 1.0]))
    np.testing.assert_allclose(best, [1, 0.9, 0.5])

    # the adversary of the proof, label-aware and model-free, against a classifier that
    # was trained on what it leaves
    def attacked(key, strength):
        x, y = gaussian.sample(jax.random.key(key), 20_000, d=50, p=0.9, eta=0.3)
        x, y = np.asarray(x), np.asarray(y)
        weak = x[:, 1:] - strength * y[:, None]
        return np.hstack([x[:, :1], weak, x[:, :1] * weak]), y

    for strength, bound in ((0.0, 1.0), (0.3, 0.9)):
        found = LogisticRegression().fit(*attacked(3, strength))
        accuracy = found.score(*attacked(4, strength))
        assert accuracy <= bound + 4 * np.sqrt(0.09 / 20_000)
        assert accuracy > bound - 0.02


def test_ties_go_to_the_class_minus_one():
    run = {"p": P, "eta": ETA}
    w = np.array([1.0, 0.0, 0.0])
    # x_1 − 1 is 0 or −2: always −1; x_1 + 1 is 2 or 0: the sign of x_1
    assert gaussian.standard_accuracy(w, bias=-1.0, **run) == pytest.approx(0.5)
    assert gaussian.standard_accuracy(w, bias=1.0, **run) == pytest.approx(P)


def test_gradients_at_the_optimum_of_adversarial_training_are_finite():
    slope = jax.grad(lambda w: gaussian.robust_accuracy(w, p=P, eta=ETA, eps=0.3))
    assert np.isfinite(slope(jnp.array([1.0, 0.0, 0.0]))).all()
    hinge = jax.grad(lambda v: gaussian.expected_hinge(0.5, v, p=P, m=3.0))
    for tiny in (0.0, 1e-25, 1e-6):
        assert np.isfinite(hinge(jnp.float32(tiny)))


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("w1", [-0.4, 0.3, 1.5])
def test_gradients_of_the_hinge_against_differences(eps, w1):
    run = {"p": 0.8, "m": 2.0, "d": 20, "eps": eps, "lam": 0.1}
    at, h = (w1, 0.4), 1e-6
    slopes = jax.grad(lambda a, b: gaussian.expected_hinge(a, b, **run), (0, 1))(*at)
    for index, slope in enumerate(slopes):
        step = h * np.eye(2)[index]
        up, down = (gaussian.expected_hinge(*(at + s * step), **run) for s in (1, -1))
        assert slope == pytest.approx(float((up - down) / (2 * h)), rel=1e-6)


def test_parameters_may_be_arrays_and_traced():
    p, m = np.array([[0.8], [0.95]]), np.array([4.0, 5.0, 6.0])
    table = gaussian.unit_svm(p=p, m=m)
    assert table.lam.shape == (2, 3)
    alone = gaussian.unit_svm(p=0.95, m=5.0)
    np.testing.assert_array_equal([part[1, 1] for part in table], alone)
    w = np.random.default_rng(0).normal(size=(3, 1, 4))
    eps = jnp.array([[0.1, 0.2]])
    whole = gaussian.robust_accuracy(w, p=0.9, eta=0.3, eps=eps)
    one = gaussian.robust_accuracy(w[2, 0], p=0.9, eta=0.3, eps=0.2)
    assert whole.shape == (3, 2) and whole[2, 1] == pytest.approx(float(one))
    traced = jax.jit(lambda e: gaussian.best_robust_accuracy(p=0.9, eta=0.3, eps=e))
    assert traced(0.4) == pytest.approx(0.9)
    fast = jax.jit(lambda e: gaussian.robust_accuracy(w, p=0.9, eta=0.3, eps=e))
    np.testing.assert_allclose(fast(eps), whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian.sample(jax.random.key(0), 5, d=0, p=0.9, eta=0.1), "d must"),
        (lambda: gaussian.sample(jax.random.key(0), 5, d=2, p=2.0, eta=0.1), "p must"),
        (lambda: gaussian.average_classifier(0), "d must be a whole number"),
        (lambda: gaussian.robust_accuracy([1.0, 2], p=1.5, eta=0.1, eps=0.1), "p must"),
        (
            lambda: gaussian.robust_accuracy([1.0, 2], p=0.9, eta=0.1, eps=-1),
            "eps must",
        ),
        (lambda: gaussian.robust_accuracy(1.0, p=0.9, eta=0.1, eps=0.1), "w must have"),
        (lambda: gaussian.standard_accuracy([1.0, 2], p=0.9, eta=np.nan), "eta must"),
        (
            lambda: gaussian.theorem_bound(0.99, 0.3),
            "p must be finite and in .0.5, 1.,",
        ),
        (
            lambda: gaussian.theorem_bound(0.99, 1.0),
            "p must be finite and in .0.5, 1.,",
        ),
        (lambda: gaussian.table_accuracies([[2, 3], [-1, 0]], 0.9), "table must be"),
        (lambda: gaussian.shift_slack(np.zeros((3, 2)), 0.9), "table must have shape"),
        (lambda: gaussian.best_robust_accuracy(p=0.9, eta=np.nan, eps=0.1), "eta must"),
        (lambda: gaussian.frontier(np.inf, p=0.9, m=3.0), "tau must be finite"),
        (lambda: gaussian.bayes_threshold(p=0.9, m=0.0), "m must be finite"),
        (lambda: gaussian.expected_hinge(0.5, -0.5, p=0.9, m=3.0), "v must be"),
        (lambda: gaussian.unit_svm(p="a", m=3.0), "p must be finite"),
        (lambda: gaussian.unit_svm(p=0.9, m=50.0), "m must be finite and in"),
        (lambda: gaussian.unit_svm(p=0.5, m=0.3), "no SVM has norm 1 for p = 0.5"),
        (lambda: gaussian.unit_svm(p=0.95, m=1.0), "no SVM has norm 1"),
        (lambda: gaussian.adversarial_svm(p=0.9, eps=0.1, lam=-1.0), "lam must be"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_samples_have_the_stated_law():
    x, y = gaussian.sample(
        jax.random.key(0), 100_000, d=3, p=0.8, eta=0.5, dtype=jnp.float32
    )
    assert x.dtype == jnp.float32 and set(np.unique(y)) == {-1, 1}
    x, y = np.asarray(x), np.asarray(y)
    assert abs(np.mean(x[:, 0] == y) - 0.8) < 4 * np.sqrt(0.25 / 1e5)
    weak = x[:, 1:] * y[:, None]
    np.testing.assert_allclose(weak.mean(0), 0.5, atol=4 / np.sqrt(1e5))
    np.testing.assert_allclose(np.cov(weak.T), np.eye(3), atol=0.02)
