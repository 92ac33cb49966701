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


def test_targeted_carlini_wagner_is_at_least_as_close_and_as_often_there():
    """Equal searches and steps; Foolbox's may stop early as ours may."""
    foolbox = pytest.importorskip("foolbox")
    y = logits(X).argmax(axis=1)
    target = (y + 1) % 3
    cost = {"steps": 300, "init_weight": 1e-2}
    peer = foolbox.models.JAXModel(model, bounds=(0, 1), data_format=None)
    carlini_wagner = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=5, initial_const=cost["init_weight"], steps=cost["steps"]
    )
    wanted = foolbox.criteria.TargetedMisclassification(jnp.asarray(target))
    _, found, there = carlini_wagner(peer, jnp.asarray(X), wanted, epsilons=9.0)
    aimed = attacks.to_target(
        lambda *a, **k: attacks.carlini_wagner(*a, searches=5, **cost, **k), target
    )
    ours = aimed(model, X, y, key=jax.random.key(0), ball=L2(9.0))
    there, success = np.asarray(there), np.asarray(ours.success)
    theirs = np.linalg.norm(np.asarray(found) - X, axis=1)
    assert (success | ~there).all()
    both = success & there
    assert both.sum() > 10
    ratio = np.log(np.asarray(ours.distance)[both] / theirs[both])
    assert np.exp(ratio.mean()) <= 1
