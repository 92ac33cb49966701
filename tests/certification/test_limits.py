"""Certificates for images whose pixels have a box each."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.certification import certify
from tests.oracles.linear_attacks import best_gain

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(size=(5, 4, 2)), jnp.float32)
W = RNG.normal(size=(8, 2)).astype(np.float32)
MASKS = RNG.uniform(size=X.shape) < 0.6


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_they_are_exact_on_linear_models(kind):
    y = np.argmax(linear(W, X), axis=1)
    low, high = attacks.limits(
        X, mask=MASKS, eps=np.linspace(0.1, 0.5, 8).reshape(4, 2)
    )
    found = certify(
        Partial(linear, W), X, jnp.asarray(y), ball=kind(0.4), bounds=(low, high),
        method="ibp", batch_size=2,
    )  # fmt: skip
    norm = kind.__name__
    wanted = []
    for image, label, least, most in zip(X, y, low, high, strict=True):
        slope = np.float64(W[:, 1 - label]) - W[:, label]
        gain = best_gain(slope, image, norm, 0.4, least, most)
        wanted.append(-slope @ np.float64(image).ravel() - gain)
    np.testing.assert_allclose(found.margin, wanted, atol=2e-5)
    assert (found.margin <= np.array(wanted)).all()
