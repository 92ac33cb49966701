"""At equal queries at least as close as Foolbox, on a network of two layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks
from robjax.balls import L2, Linf

RNG = np.random.default_rng(0)
W = RNG.normal(size=(48, 32)) / 4, RNG.normal(size=(32, 3))
X = RNG.uniform(size=(16, 48)).astype(np.float32)


def logits(x):
    return np.tanh((x - 0.5) @ W[0]) @ W[1]


def model(x):
    return jnp.tanh((x - 0.5) @ jnp.asarray(W[0])) @ jnp.asarray(W[1])


PEERS = {
    "hop_skip_jump, L2": (attacks.hop_skip_jump, L2, {"steps": 9, "constraint": "l2"}),
    "hop_skip_jump, Linf": (
        attacks.hop_skip_jump,
        Linf,
        {"steps": 9, "constraint": "linf"},
    ),
    "boundary_attack": (attacks.boundary_attack, L2, {"steps": 1800}),
}


@pytest.mark.parametrize("name", PEERS)
def test_at_least_as_close_as_foolbox(name):
    foolbox = pytest.importorskip("foolbox")
    attack, norm, options = PEERS[name]
    shown = [0]

    def counted(x):
        shown[0] += 1
        return logits(x).astype(np.float32)

    y = logits(X).argmax(axis=1)
    peers = {
        attacks.hop_skip_jump: foolbox.attacks.HopSkipJumpAttack,
        attacks.boundary_attack: foolbox.attacks.BoundaryAttack,
    }
    np.random.seed(0)  # noqa: NPY002 - Foolbox draws from there
    peer = foolbox.models.NumPyModel(counted, bounds=(0, 1))
    wrong = foolbox.criteria.Misclassification(y)
    found = peers[attack](**options).run(peer, X, wrong)
    theirs = np.asarray(norm(0.0).norm(jnp.asarray(found - X)))
    assert 1000 < shown[0] < 4000
    ours = attack(
        model, X, y, key=jax.random.key(0), ball=norm(9.0), queries=shown[0]
    ).distance
    assert np.exp(np.log(np.asarray(ours) / theirs).mean()) <= 1
