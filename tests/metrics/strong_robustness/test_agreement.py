"""Random pairs that an oracle takes for the same: law, conditions, intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robjax.metrics import strong_robustness as sr
from robjax.metrics.strong_robustness.agreement import PairAgreement
from robjax.theory import feature_spaces

KEY = jax.random.key(0)
FIRST = sr.linear([[1.0, 0.0, 0.0]])
X = jax.random.normal(jax.random.key(1), (4000, 3))


def score(weights, x):
    s = x @ weights
    return jnp.stack([-s, s], axis=1)


def model(*weights):
    return jax.tree_util.Partial(score, jnp.array(weights))


def test_gaussian_pairs_agree_as_the_closed_form_says():
    a, noise = np.array([1.0, 0.5, 0.0]), np.diag([0.0, 4.0, 0.0])

    def sampler(keys, x, delta):
        z = jax.vmap(jax.random.normal)(keys)
        return x.at[:, 1].add(jnp.sqrt(4.0) * z)

    found = sr.pair_agreement(
        model(*a), X, oracle=FIRST, delta=0.0, key=KEY, sampler=sampler
    )
    exact = feature_spaces.pair_agreement(
        a, covariance=np.eye(3), noise_covariance=noise
    )
    low, high = found.interval(0.999)
    assert low < exact < high < low + 0.06
    assert bool(found.valid.all())  # the oracle does not see the second feature


def test_the_law_is_uniform_in_the_seen_and_in_the_ignored_ball():
    seen = []

    def watch(x):  # the model is asked at x and at every x'
        jax.debug.callback(lambda v: seen.append(np.array(v)), x)
        return score(jnp.ones(3), x)

    oracle = sr.linear([[2.0, 0, 0], [0, 1.0, 1.0]], norm=1)
    sr.pair_agreement(
        watch, X, oracle=oracle, delta=0.5, ignored=0.3, key=KEY, batch_size=4000
    )
    jax.effects_barrier()
    r = seen[-1] - np.asarray(X)
    s = r @ np.array([[2.0, 0, 0], [0, 1.0, 1.0]]).T
    radius = np.abs(s).sum(1) / 0.5
    assert stats.kstest(radius**2, "uniform").pvalue > 1e-3  # area in the plane
    ignored = (r[:, 1] - r[:, 2]) / np.sqrt(2) / 0.3
    assert stats.kstest((ignored + 1) / 2, "uniform").pvalue > 1e-3


def test_constant_classifiers_agree_always_and_more_noise_agrees_less():
    constant = sr.pair_agreement(
        model(0.0, 0.0, 0.0), X, oracle=FIRST, delta=1.0, ignored=5.0, key=KEY
    )
    assert float(constant.estimate) == 1 and constant.interval()[1] == 1
    values = [
        float(
            sr.pair_agreement(
                model(1.0, 0.5, 0.0), X, oracle=FIRST, delta=0.1, ignored=size, key=KEY
            ).estimate
        )
        for size in (0.0, 1.0, 100.0)
    ]
    assert 0.99 > values[0] > values[1] > values[2] > 0.45


def test_conditions_leave_pairs_out_and_draws_are_each_images_own():
    arguments = dict(oracle=FIRST, delta=1.0, key=KEY)
    # the oracle's own class is kept, so only what crosses 0 is left out
    found = sr.pair_agreement(
        model(1.0, 0.0, 0.0), X, oracle_logits_fn=model(1.0, 0.0, 0.0), **arguments
    )
    assert float(found.estimate) == 1 and 0 < float(jnp.mean(~found.valid)) < 0.3
    several = sr.pair_agreement(model(1.0, 0.0, 0.0), X[:3], pairs=5, **arguments)
    alone = sr.pair_agreement(
        model(1.0, 0.0, 0.0), X[1:2], pairs=5, oracle=FIRST, delta=1.0,
        key=jax.random.fold_in(KEY, 1)[None],
    )  # fmt: skip
    assert several.agree[1].tolist() == alone.agree[0].tolist()


def test_the_interval_is_that_of_a_peer_and_covers():
    agree = np.arange(20)[:, None] < 17
    found = PairAgreement(jnp.asarray(agree), jnp.ones((20, 1), bool))
    peer = stats.binomtest(17, 20).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(found.interval(), [peer.low, peer.high], rtol=1e-6)
    # pairs of one image that all say the same are worth one pair
    copied = PairAgreement(jnp.repeat(found.agree, 4, 1), jnp.ones((20, 4), bool))
    assert copied.interval() == found.interval()
    nothing = PairAgreement(found.agree, jnp.zeros((20, 1), bool))
    assert nothing.interval() == (0.0, 1.0) and np.isnan(float(nothing.estimate))
    assert repr(found).startswith("PairAgreement(0.85, 95 % 0.621 to 0.968, 20 images")
    assert repr(jax.eval_shape(lambda a: a, found)) == "PairAgreement(traced)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oracle": lambda x: x}, "sampler must be given, got None"),
        ({"oracle": sr.identity(), "ignored": 1.0}, "ignored must be 0"),
        ({"oracle": sr.linear([[1.0, 0, 0]] * 2, norm=1)}, "independent rows"),
        ({"delta": -1.0}, "delta must be finite and at least 0"),
        ({"pairs": 0}, "pairs must be a whole number"),
        ({"bounds": (1, 0)}, "bounds must be finite"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = dict(oracle=FIRST, delta=1.0, key=KEY) | changes
    with pytest.raises(ValueError, match=message):
        sr.pair_agreement(model(1.0, 0.0, 0.0), X[:2], **arguments)


def test_pairs_with_logits_that_are_not_finite_are_left_out():
    def root(x):  # of what is negative beyond x
        s = jnp.sqrt(x[:, 0])
        return jnp.stack([s, -s], axis=1)

    x = jnp.array([[-1.0, 0], [1.0, 0], [1.0, 0]])
    found = sr.pair_agreement(
        root, x, oracle=sr.identity(), delta=2.0, key=KEY,
        sampler=lambda keys, x, delta: x - jnp.array([[0, 0], [1.5, 0], [0.5, 0]]),
    )  # fmt: skip
    assert found.valid.ravel().tolist() == [False, False, True]
    assert "2 pairs left out" in repr(found)
