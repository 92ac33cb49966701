"""Results print as a sentence, also where they have no values yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import metrics
from robjax.metrics import interactions, saliency, strong_robustness
from tests.metrics import models

SHAPE = (4, 4, 1)
FN = models.smooth(3, SHAPE)
X = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
Y = np.arange(6) % 3

KEY = jax.random.key(1)
YES = np.ones((6, 2), bool)


def both(masks):
    return masks[:, 0] & masks[:, 1]


EXACT = interactions.exact(both, 4)
SAMPLED = interactions.sampled(both, 9, key=KEY, orders=[3], blocks=4)

RESULTS = {
    "FisherSpectrum": lambda: metrics.fisher_spectrum(FN, X),
    "KLComponents": lambda: metrics.kl_components(FN, X, X[::-1]),
    "PairwiseKL": lambda: metrics.pairwise_kl(FN, X, Y),
    "ClassPairKL": lambda: metrics.class_pair_kl(FN, X, Y),
    "ExactInteractions": lambda: EXACT,
    "SampledInteractions": lambda: SAMPLED,
    "BlockMean": lambda: SAMPLED.strength,
    "Decomposition": lambda: interactions.decompose(EXACT),
    "Visibility": lambda: interactions.visibility(both, 4, key=KEY),
    "Disentanglement": lambda: interactions.disentanglement(EXACT),
    "PairAgreement": lambda: strong_robustness.PairAgreement(YES, YES),
    "WorstCase": lambda: strong_robustness.WorstCase(X, YES[:, 0], X[:, 0, 0, 0], Y),
    "Modulus": lambda: strong_robustness.Modulus(1 + X[:, 0, 0, 0], jnp.array(2.0)),
    "UnnecessaryDirections": lambda: strong_robustness.UnnecessaryDirections(
        X[:2], np.ones(2), np.full(2, 0.25), 0.75
    ),
    "Saliency": lambda: saliency.saliency(FN, X, Y, width=1),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_print_with_and_without_values(name):
    result = RESULTS[name]()
    text = repr(result)
    assert text.startswith(f"{name}(") and text.endswith(")")
    assert "\n" not in text and "nan" not in text and "rray" not in text

    traced = []
    jax.jit(lambda tree: traced.append(repr(tree)))(result)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), float), result)
    nothing = jax.tree.map(lambda _: None, result)
    assert {*traced, repr(shapes), repr(nothing)} == {f"{name}(traced)"}
    assert repr(jax.device_get(result)) == text


def test_means_of_parts_print_and_missing_classes_are_left_out():
    parts = metrics.kl_components(FN, X, X[::-1])
    means = jax.tree.map(lambda part: float(jnp.mean(part)), parts)
    assert f"mean {means.total:.3g} nats" in repr(parts)
    assert f"1 pairs, mean {means.total:.3g} nats" in repr(means)
    apart = metrics.kl_to_class_means(FN, X, 2 * Y)
    assert "18 pairs" in repr(apart) and "nan" not in repr(apart)
