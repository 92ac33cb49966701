"""The learning rate of optimizers of every build."""

import jax.numpy as jnp
import optax
import pytest

from robjax.training.rates import rate_reader

WEIGHTS = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
FALLING = optax.linear_schedule(1.0, 0.0, 4)
PARTS = {"w": "one", "b": "two"}


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (optax.sgd(0.25), (0.25, 0.25)),
        (optax.sgd(FALLING, momentum=0.9), (1.0, 0.75)),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(FALLING)), (1, 0.75)),
        (optax.inject_hyperparams(optax.adam)(FALLING), (1.0, 0.75)),
        (optax.lion(0.25), (0.25, 0.25)),
        (
            optax.partition({"one": optax.adam(0.5), "two": optax.sgd(FALLING)}, PARTS),
            (1.0, 0.75),
        ),
        (
            optax.partition(
                {"one": optax.adam(0.5), "two": optax.set_to_zero()}, PARTS
            ),
            (0.5, 0.5),
        ),
        (optax.set_to_zero(), (None, None)),
        (optax.adabelief(0.5), (0.5, 0.5)),
    ],
)
def test_rates_before_and_after_an_update(optimizer, rates):
    rate = rate_reader(optimizer)
    state = optimizer.init(WEIGHTS)
    moved = optimizer.update(WEIGHTS, state, WEIGHTS)[1]
    found = rate(state, WEIGHTS), rate(moved, WEIGHTS)
    assert found == tuple(None if r is None else pytest.approx(r) for r in rates)
