"""Ensembles and stand-in gradients: closed forms, jvp and vjp, and attacks on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import log_softmax, logsumexp

from robjax import attacks, compose, evaluation
from robjax.balls import Linf

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = jnp.asarray(RNG.uniform(size=(6, 5)), jnp.float32)
Y = jnp.asarray(RNG.integers(3, size=6))
W = [jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32) for _ in range(3)]
TRACES = []


def linear(w, x):
    TRACES.append(None)
    return x @ w


def both(first, second, **options):
    members = [Partial(linear, first), lambda x: x @ second]
    return compose.ensemble(members, **options)


PGD = functools.partial(attacks.pgd, ball=Linf(0.1), steps=5, key=KEY)


def test_an_attack_on_the_mean_logits_is_one_on_the_mean_weights():
    mixed = both(W[0], W[1], weights=[1, 3], combine=compose.mean_logit)
    found = PGD(mixed, X, Y)
    wanted = PGD(Partial(linear, 0.25 * W[0] + 0.75 * W[1]), X, Y)
    np.testing.assert_allclose(found.x_adv, wanted.x_adv, atol=1e-6)
    np.testing.assert_array_equal(found.success, wanted.success)


def test_new_weights_of_members_or_ensemble_compile_nothing():
    PGD(both(W[0], W[1], weights=[1, 3]), X, Y)
    before = len(TRACES)
    first = PGD(both(W[1], W[2], weights=[2, 1]), X, Y)
    second = PGD(both(W[1], W[2], weights=[0, 1]), X, Y)
    assert len(TRACES) == before
    assert (first.loss != second.loss).any()


def test_the_mean_of_probabilities_in_float64():
    logits = np.stack([np.asarray(X @ (40 * w), np.float64) for w in W])
    shares = np.array([0.5, 0.2, 0.3])
    wanted = logsumexp(log_softmax(logits, -1), axis=0, b=shares[:, None, None])
    members = [functools.partial(linear, 40 * w) for w in W]
    found = compose.ensemble(members, weights=10 * shares)(X)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(wanted).sum(1), 1)  # the oracle is one


def test_randomised_members_get_draws_of_their_own():
    def noisy(x, keys):
        return jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)

    keys = jax.random.split(KEY, 6)
    # what they share would cancel
    first, second = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    for_one = compose.ensemble([noisy, noisy], weights=first)(X, keys)
    for_other = compose.ensemble([noisy, noisy], weights=second)(X, keys)
    assert not np.allclose(for_one, for_other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compose.ensemble([]), "models must be a list of at least one model"),
        (lambda: compose.ensemble(lambda x: x), "models must be a list"),
        (lambda: both(W[0], W[1], weights=[1]), "weights must have shape (2,)"),
        (lambda: both(W[0], W[1], weights=[1, -1]), "weights must be finite and in"),
        (lambda: both(W[0], W[1], weights=[0, 0]), "weights must have a positive sum"),
        (lambda: both(W[0], W[1], combine="mean"), "combine must be a function"),
        (lambda: both(W[0], W[1][:, :2])(X), "must have the same classes"),
        (lambda: compose.bpda("round"), "forward must be a function"),
        (lambda: compose.bpda(jnp.sum)(X), "must give the same shape"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


def quantised(x):
    return jnp.round(8 * x) / 8


def on_the_host(x):
    def compute(values):
        return np.round(8 * np.asarray(values)) / np.float32(8)

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(compute, shape, x, vmap_method="expand_dims")


@pytest.mark.parametrize("forward", [quantised, on_the_host])
@pytest.mark.parametrize("backward", [None, jnp.sin])
def test_the_value_of_one_function_and_the_derivative_of_another(forward, backward):
    step = compose.bpda(forward, backward)
    wanted = jnp.ones_like(X) if backward is None else jnp.cos(X)
    for mapped in (step, jax.jit(step), jax.vmap(step)):
        np.testing.assert_array_equal(mapped(X), quantised(X))
        value, pushed = jax.jvp(mapped, (X,), (2 * jnp.ones_like(X),))
        np.testing.assert_array_equal(value, quantised(X))
        np.testing.assert_allclose(pushed, 2 * wanted, atol=1e-6)
        value, pull = jax.vjp(mapped, X)
        np.testing.assert_array_equal(value, quantised(X))
        np.testing.assert_allclose(pull(3 * jnp.ones_like(X))[0], 3 * wanted, atol=1e-6)


@pytest.mark.parametrize("forward", [quantised, on_the_host])
def test_an_attack_passes_through_quantisation(forward):
    """Rounding keeps the order of values, so the worst corner of the ball stays worst.

    There the loss is within Σ|gap|/16 of that without rounding, since rounding moves
    no pixel by more than 1/16.
    """
    w = W[0][:, :2]
    y = jnp.argmax(quantised(X) @ w, axis=1)
    gap = (w[:, 0] - w[:, 1])[None] * jnp.where(y == 0, -1, 1)[:, None]
    corner = jnp.clip(X + 0.2 * jnp.sign(gap), 0, 1)
    worst = jnp.sum(gap * quantised(corner), axis=1)
    plain = jnp.sum(gap * corner, axis=1)
    assert (jnp.abs(worst - plain) <= jnp.sum(jnp.abs(gap), axis=1) / 16 + 1e-6).all()

    step = compose.bpda(forward)
    # from x itself; a random start may cross the levels of rounding by luck
    pgd = functools.partial(
        attacks.pgd, ball=Linf(0.2), steps=10, random_start=False, key=KEY
    )
    found = pgd(lambda x: step(x) @ w, X, y).x_adv
    reached = jnp.sum(gap * quantised(found), axis=1)
    np.testing.assert_allclose(reached, worst, atol=1e-5)

    blind = pgd(lambda x: quantised(x) @ w, X, y).x_adv
    np.testing.assert_array_equal(blind, X)  # no gradient, no step


def test_doubts_ask_for_it_where_there_is_no_gradient():
    w = W[0]
    y = jnp.argmax(quantised(X) @ w, axis=1)

    def asks_for_it(step):
        doubts = evaluation.doubts(lambda x: 9 * step(x) @ w, X, y, key=KEY)
        return ["compose.bpda" in doubt for doubt in doubts]

    assert asks_for_it(quantised) == [True]
    assert asks_for_it(compose.bpda(quantised)) == []
