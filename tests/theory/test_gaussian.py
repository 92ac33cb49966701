"""Closed forms against Monte Carlo, quadrature, brute force and a printed table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression

from robjax.theory import gaussian

P, ETA, D = 0.95, 0.4, 100
# tau, standard, robust to the shift, bound; p = .95, m = 3; None: the Bayes threshold
FRONTIER = [
    (0, 0.998650, 0.001350, 0.025648),
    (None, 0.999469, 0.005759, 0.010094),
    (1, 0.998832, 0.021614, 0.022184),
    (2, 0.992067, 0.150723, 0.150728),
    (3, 0.975000, 0.475000, 0.475000),
    (4, 0.957933, 0.799278, 0.799278),
    (5, 0.951138, 0.928387, 0.928387),
    (6, 0.950067, 0.948718, 0.948718),
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


@pytest.mark.parametrize("norm", [2, np.inf])
def test_the_worst_perturbation_turns_as_many_points_as_the_closed_form_says(norm):
    w, eps, count = np.array([1.0, 0.4, -0.3, 0.6]), 0.5, 200_000
    x, y = gaussian.sample(jax.random.key(6), count, d=3, p=0.8, eta=0.5)
    direction = np.sign(w) if norm == np.inf else w / np.sqrt((w**2).sum())
    moved = np.asarray(x) - eps * np.asarray(y)[:, None] * direction
    closed = gaussian.robust_accuracy(w, p=0.8, eta=0.5, eps=eps, norm=norm)
    assert abs(np.mean(y * (moved @ w) > 0) - closed) < 4 * np.sqrt(0.25 / count)


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
    tau = gaussian.bayes_threshold(p=0.95, m=3.0) if tau is None else float(tau)
    got = gaussian.frontier(tau, p=0.95, m=3.0)
    found = *got, gaussian.theorem_bound(got[0], 0.95)
    # half a unit of the last printed digit
    np.testing.assert_allclose(found, (standard, shifted, bound), rtol=0, atol=5.001e-7)
    w = np.array([tau, *(9 * [1 / 3])])
    run = {"p": 0.95, "eta": 1.0}
    same = gaussian.robust_accuracy(w, eps=2.0, attack_x1=False, **run)
    np.testing.assert_allclose(got[1], same, atol=1e-12)
    np.testing.assert_allclose(got[0], gaussian.standard_accuracy(w, **run), atol=1e-12)


def test_the_bound_is_tight_along_the_frontier():
    tau = np.linspace(2, 12, 1001)
    standard, shifted = gaussian.frontier(tau, p=0.95, m=3.0)
    slack = gaussian.theorem_bound(standard, 0.95) - shifted
    assert np.abs(slack).max() < 1e-4
    # as the table has it, without the difference
    w = np.column_stack([tau, *(9 * [np.full(tau.shape, 1 / 3)])])
    table = gaussian.linear_table(w, eta=1.0)
    np.testing.assert_allclose(gaussian.shift_slack(table, 0.95), slack, atol=1e-12)


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


def test_parameters_may_be_arrays_and_traced():
    w = np.random.default_rng(0).normal(size=(3, 1, 4))
    eps = jnp.array([[0.1, 0.2]])
    whole = gaussian.robust_accuracy(w, p=0.9, eta=0.3, eps=eps)
    one = gaussian.robust_accuracy(w[2, 0], p=0.9, eta=0.3, eps=0.2)
    assert whole.shape == (3, 2) and whole[2, 1] == pytest.approx(float(one))
    traced = jax.jit(lambda e: gaussian.best_robust_accuracy(p=0.9, eta=0.3, eps=e))
    assert traced(0.4) == pytest.approx(0.9)
    slack = jax.jit(
        lambda w: gaussian.shift_slack(gaussian.linear_table(w, eta=0.3), P)
    )
    table = gaussian.linear_table(w, eta=0.3)
    assert table.shape == (3, 1, 2, 2)
    np.testing.assert_allclose(slack(w), gaussian.shift_slack(table, P))
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
        (lambda: gaussian.linear_table([1.0], eta=0.1), "w must have shape"),
        (lambda: gaussian.best_robust_accuracy(p=0.9, eta=np.nan, eps=0.1), "eta must"),
        (lambda: gaussian.frontier(np.inf, p=0.9, m=3.0), "tau must be finite"),
        (lambda: gaussian.bayes_threshold(p=0.9, m=0.0), "m must be finite"),
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
