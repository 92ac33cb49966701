"""Classifiers of other frameworks get a certificate, or an error that says of what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from robjax.balls import Linf
from robjax.certification import certify

KEY = jax.random.key(0)
X = jax.random.uniform(KEY, (2, 8, 8, 3))


def of_linen():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(4, (3, 3))(x))
            x = linen.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
            return linen.Dense(3)(x)

    return Net().bind(Net().init(KEY, X))


def of_nnx():
    model = nnx.Sequential(
        lambda x: nnx.gelu(x.reshape(len(x), -1)),
        nnx.Linear(192, 3, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
    )
    model.eval()
    return model


def of_equinox():
    eqx = pytest.importorskip("equinox")
    layers = [
        eqx.nn.Lambda(lambda x: jnp.moveaxis(x, -1, 0)),
        eqx.nn.Conv2d(3, 2, 3, key=KEY),
        eqx.nn.Lambda(jax.nn.leaky_relu),
        eqx.nn.MaxPool2d(2),
        eqx.nn.Dropout(0.5),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.LayerNorm(50),
        eqx.nn.Linear(50, 3, key=KEY),
    ]
    return jax.vmap(eqx.nn.inference_mode(eqx.nn.Sequential(layers)))


def of_haiku():
    hk = pytest.importorskip("haiku", reason="haiku is not installed")
    model = hk.transform(lambda x: hk.nets.MLP([5, 3])(x.reshape(len(x), -1)))
    weights = model.init(KEY, X)
    return lambda x: model.apply(weights, None, x)


@pytest.mark.parametrize("make", [of_linen, of_nnx, of_equinox, of_haiku])
def test_margins_hold_at_corners_of_the_ball(make):
    model = make()
    eps = 0.01
    signs = np.random.default_rng(0).choice([-1, 1], size=(64, *X.shape))
    corners = np.clip(np.asarray(X)[None] + eps * signs, 0, 1).reshape(-1, *X.shape[1:])
    logits = np.asarray(model(corners)).reshape(64, len(X), 3)
    y = np.asarray(model(X)).argmax(axis=1)
    own = np.take_along_axis(logits, y[None, :, None], 2)
    worst = np.where(np.arange(3) == y[:, None], np.inf, own - logits).min((0, 2))
    found = certify(model, X, y, ball=Linf(eps), method="ibp")
    assert (found.margin <= worst).all() and np.isfinite(found.margin).all()


def test_a_primitive_without_a_rule_is_named():
    model = nnx.Sequential(
        lambda x: jnp.sin(x).reshape(len(x), -1),
        nnx.Linear(192, 3, rngs=nnx.Rngs(0)),
    )
    with pytest.raises(ValueError, match="primitive 'sin'.*rules="):
        certify(model, X, np.array([0, 0]), ball=Linf(0.01))
