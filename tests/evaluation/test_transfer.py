"""Who fools whom among linear models, where every attack is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, evaluation
from robjax.balls import Linf

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.uniform(0.4, 0.6, size=(13, 6)).astype(np.float32)
GAPS = RNG.normal(size=(3, 6)).astype(np.float32) + np.float32([1, 1, 1, 0, 0, 0])
Y = ((X - 0.5) @ GAPS[0] > 0).astype(int)
EPS = 0.05


def model(gap, x):
    score = (x - 0.5) @ gap
    return jnp.stack([-score, score], axis=1)


MODELS = {name: Partial(model, gap) for name, gap in zip("abc", GAPS, strict=True)}


def test_the_matrix_is_that_of_the_closed_form():
    fgsm = functools.partial(attacks.fgsm, ball=Linf(EPS))
    found = evaluation.transfer(MODELS, (X, Y), fgsm, key=KEY, batch_size=8)
    sign = np.where(Y == 1, -1, 1)[:, None]
    right = [((X - 0.5) @ gap > 0).astype(int) == Y for gap in GAPS]
    np.testing.assert_array_equal(found.correct, right)
    for s, source in enumerate(GAPS):
        moved = X + EPS * sign * np.sign(source)
        own = ((moved - 0.5) @ source > 0).astype(int) != Y
        for t, target in enumerate(GAPS):
            fooled = ((moved - 0.5) @ target > 0).astype(int) != Y
            np.testing.assert_array_equal(found.fooled[s, t], fooled)
            share = fooled[right[t]].mean()
            assert found.success[s, t] == pytest.approx(share)
            error = np.sqrt(share * (1 - share) / right[t].sum())
            assert found.rate("abc"[s], "abc"[t]).stderr == pytest.approx(error)
            both = right[s] & right[t] & own
            assert found.transferred[s, t] == pytest.approx(fooled[both].mean())
    np.testing.assert_array_equal(np.diag(found.transferred), 1)
    off = found.success[~np.eye(3, dtype=bool)]
    assert 0 < off.mean() < np.diag(found.success).mean()  # there is something to see
    assert found.table().count("±") == 9


def test_images_outside_the_ball_fool_nobody():
    def far(logits_fn, x, y, *, key, ball, bounds):
        return 1 - x

    attack = functools.partial(far, ball=Linf(EPS))
    found = evaluation.transfer(MODELS, (X, Y), attack, key=KEY)
    assert not found.fooled[:, :, np.abs(1 - 2 * X).max(axis=1) > EPS].any()
    # nothing is counted where the source is not fooled
    assert np.isnan(found.transferred).all()


def test_models_have_names():
    with pytest.raises(ValueError, match="models must be a mapping from names"):
        evaluation.transfer(list(MODELS.values()), (X, Y), attacks.fgsm, key=KEY)
