"""Randomised models: `eot` of FGSM, MI-FGSM, PGD and KL-PGD, and in evaluations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L2, Linf
from robjax.evaluation import evaluate
from robjax.model import as_logits_fn

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)
X = jnp.asarray(RNG.uniform(size=(8, 3, 4)), jnp.float32)
bind: Any = functools.partial


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


Y = jnp.argmax(linear(W, X), axis=1)


def noisy(w, x, keys):
    """Noise in the logits alone: each draw has the slopes of the linear model."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (w.shape[1],)))(keys)
    return linear(w, x) + noise


def silent(w, x, keys):
    del keys
    return linear(w, x)


def unlabelled(attack):
    return lambda logits_fn, x, y, **options: attack(logits_fn, x, **options)


ATTACKS = {
    "fgsm": attacks.fgsm,
    "mi_fgsm": bind(attacks.mi_fgsm, steps=3),
    "pgd": bind(attacks.pgd, steps=3, restarts=2),
    "pgd from x": bind(attacks.pgd, steps=3, random_start=False),
    "pgd, early": bind(attacks.pgd, steps=3, restarts=2, early_exit=True),
    "pgd, targeted": bind(attacks.pgd, steps=3, targeted=True),
    "kl_pgd": bind(unlabelled(attacks.kl_pgd), steps=3),
    "kl_pgd from start": bind(unlabelled(attacks.kl_pgd), steps=3, reference="start"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_that_draws_nothing_is_attacked_as_ever(name):
    run = bind(ATTACKS[name], x=X, y=Y, key=KEY, ball=Linf(0.05))
    plain = run(Partial(linear, W))
    drawn = run(Partial(silent, W), eot=4)
    np.testing.assert_allclose(drawn.x_adv, plain.x_adv, atol=1e-6)
    np.testing.assert_array_equal(drawn.success, plain.success)
    np.testing.assert_allclose(drawn.loss, plain.loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(drawn.first_success, plain.first_success)
    np.testing.assert_array_equal(drawn.queries, 4 * plain.queries)


@pytest.mark.parametrize("name", ["fgsm", "mi_fgsm", "pgd", "kl_pgd"])
def test_every_point_has_draws_of_its_own(name):
    seen = []

    def recorded(x, keys):
        jax.debug.callback(lambda data: seen.append(data), jax.random.key_data(keys))
        return noisy(W, x, keys)

    eps = jnp.where(jnp.arange(8) == 3, 0.0, 0.05)  # one image stays where it is
    out = ATTACKS[name](recorded, X, Y, key=KEY, ball=Linf(eps), eot=5)
    jax.effects_barrier()
    assert len(seen) == 5 * (len(seen) // 5)
    np.testing.assert_array_equal(out.queries, len(seen))
    drawn = np.concatenate(seen)
    assert len(np.unique(drawn, axis=0)) == 8 * len(seen)
    # and none of them makes the random start
    own = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8))
    starts = jax.vmap(lambda key: jax.random.split(key, 8))(own).reshape(-1)
    used = {tuple(row) for row in np.asarray(jax.random.key_data(starts)).tolist()}
    assert not used & {tuple(row) for row in drawn.tolist()}


def flipping(x, keys):
    """Rises with x_1; with x_0 it falls steeply in one draw of ten, else it rises."""
    rare = jax.vmap(lambda key: jax.random.bernoulli(key, 0.1))(keys)
    slope = jnp.where(rare, -2.0, 1.0)
    rise = slope * (x[:, 0] - 0.5) + x[:, 1] - 0.6
    return jnp.stack([-rise, rise], axis=1)


@pytest.mark.parametrize("loss", [losses.margin, losses.cross_entropy])
def test_the_mean_over_draws_leads_the_way(loss):
    # the mean slope of x_0 is 0.7; single draws have the wrong sign for every tenth
    x = jnp.full((64, 2), 0.5)
    y = jnp.zeros(64, jnp.int32)
    run = bind(attacks.fgsm, flipping, x, y, key=KEY, ball=Linf(0.1), loss=loss)
    one = run(eot=1).x_adv[:, 0]
    many = run(eot=64).x_adv
    assert 0 < np.sum(one < 0.5) < 20
    np.testing.assert_allclose(many, 0.6, atol=1e-6)


def test_success_and_loss_are_those_of_the_mean_logits():
    # in half of the draws the image is misclassified by a little, else not by far
    def model(x, keys):
        heads = jax.vmap(lambda key: jax.random.bernoulli(key))(keys)
        rise = jnp.where(heads, 1.0, -5.0) + 0 * x[:, 0]
        return jnp.stack([jnp.zeros(len(x)), rise], axis=1)

    x = jnp.full((16, 2), 0.5)
    y = jnp.zeros(16, jnp.int32)
    for attack in (attacks.fgsm, attacks.pgd):
        out = attack(model, x, y, key=KEY, ball=Linf(0.1), eot=64)
        assert not out.success.any()
        # log(1 + e^{−2}), up to the chance of 64 draws; that of a mean loss were 0.66
        assert (out.loss < 0.45).all()


@pytest.mark.parametrize("name", ["pgd", "mi_fgsm", "kl_pgd"])
def test_draws_do_not_depend_on_neighbours(name):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8))
    run = bind(ATTACKS[name], Partial(noisy, W), ball=L2(0.2), eot=3)
    together = run(X, Y, key=KEY)
    order = jnp.asarray([5, 2, 7])
    apart = run(X[order], Y[order], key=keys[order])
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a[order], b, atol=1e-5)


def test_evaluate_and_autoattack_take_every_attack_with_eot():
    y = jnp.argmax(linear(W, X), axis=1)
    named = {
        "fgsm": bind(attacks.fgsm, eot=8),
        "mi_fgsm": bind(attacks.mi_fgsm, steps=2, eot=8),
        "pgd": bind(attacks.pgd, steps=2, eot=8),
        "apgd": bind(attacks.apgd, steps=2, eot=8),
    }
    bound = {k: bind(a, ball=Linf(1.0)) for k, a in named.items()}
    sharp = Partial(noisy, 50 * W)
    table = evaluate(sharp, (X, y), bound, key=KEY, eot=8)
    np.testing.assert_array_equal(table.predictions, y)
    assert all(not column.robust.any() for column in table.attacks.values())
    out = attacks.autoattack(
        sharp,
        *(X, y),
        key=KEY,
        ball=Linf(1.0),
        eot=8,
        version="custom",
        attacks={"fgsm": named["fgsm"]},
    )
    # x, a gradient and a forward pass, the verdict: each of them eight times
    assert out.success.all() and (out.queries == 8 * 4).all()


def test_no_retracing_with_other_weights_and_keys():
    traces = []

    def model(w, x, keys):
        traces.append(None)
        return noisy(w, x, keys)

    def run(w, seed):
        key = jax.random.key(seed)
        bound = as_logits_fn(Partial(model, w))
        attacks.pgd(bound, X, Y, key=key, ball=Linf(0.1), steps=2, eot=2)

    run(W, 0)
    before = len(traces)
    run(2 * W, 1)
    assert len(traces) == before


@pytest.mark.parametrize("name", ["fgsm", "mi_fgsm", "pgd", "kl_pgd"])
def test_what_is_missing_is_named(name):
    run = bind(ATTACKS[name], x=X, y=Y, ball=Linf(0.1))
    with pytest.raises(ValueError, match=r"logits_fn takes \(images, keys.* give eot"):
        run(Partial(noisy, W), key=KEY)
    with pytest.raises(ValueError, match="key must be given with eot"):
        run(Partial(noisy, W), key=None, eot=2)
    with pytest.raises(ValueError, match=r"logits_fn must take \(images, keys"):
        run(Partial(linear, W), key=KEY, eot=2)
    with pytest.raises(ValueError, match="eot must be a whole number of at least 1"):
        run(Partial(noisy, W), key=KEY, eot=0)
