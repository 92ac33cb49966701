import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax.models import MLP
from tests.evaluation.models import COUNT, SHAPE, centred, linear


@pytest.fixture(scope="module")
def binary():
    """A linear two-class model, images that no box constrains, noisy labels."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(9, 2)).astype(np.float32)
    # one score for each class, centred so that the classes are balanced
    images = rng.uniform(0.3, 0.7, size=(COUNT, *SHAPE)).astype(np.float32)
    scores = linear(weights, images - 0.5)
    labels = np.where(rng.random(COUNT) < 0.8, scores.argmax(1), scores.argmin(1))
    return Partial(centred, jnp.asarray(weights)), images, labels, weights


@pytest.fixture(scope="module")
def network():
    """An untrained MLP whose attacks succeed on some of the images, and not others."""
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(COUNT, *SHAPE)).astype(np.float32)
    model = MLP(3, widths=(16,))
    variables = jax.jit(model.init)(jax.random.key(3), jnp.asarray(images))
    logits_fn = Partial(model.apply, variables)
    labels = np.asarray(jnp.argmax(logits_fn(jnp.asarray(images)), axis=-1))
    return logits_fn, images, labels
