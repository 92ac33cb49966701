import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models as flax_models
from robjax.metrics import kl_components, pairwise_kl
from robjax.metrics.pairwise import _draw
from tests.metrics import models

SHAPE = (2, 3)
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 4, 4, 4, 4, 1, 0, 2])


def _images(count=17, shape=SHAPE, dtype=jnp.float32, seed=3):
    return jax.random.uniform(jax.random.key(seed), (count, *shape), dtype)


def _brute_force(fn, x, y):
    i, j = np.nonzero(y[:, None] != y[None, :])
    parts = kl_components(fn, x[i], x[j])
    return {name: float(jnp.mean(part)) for name, part in parts._asdict().items()}, len(
        i
    )


def _means(result):
    return np.array([result.mean, result.fisher, result.softmax, result.network])


@pytest.mark.parametrize("batch_size", [1, 5, 17, 64])
def test_all_pairs_equal_brute_force(batch_size):
    with jax.enable_x64(True):
        fn = models.smooth(5, SHAPE, dtype=jnp.float64)
        x = _images(dtype=jnp.float64)
        means, pairs = _brute_force(fn, x, LABELS)
        result = pairwise_kl(fn, x, LABELS, batch_size=batch_size)
        assert result.pairs == pairs
        np.testing.assert_allclose(_means(result), list(means.values()), rtol=1e-10)
        assert result.robust == pytest.approx(means["total"] - means["fisher"])
        assert result.non_robust == result.fisher


def test_several_blocks_of_partners_and_a_convolutional_net(monkeypatch):
    monkeypatch.setattr("robjax.metrics.pairwise._BLOCK", 5 * 4 * 3)
    model = flax_models.CNN(5, blocks=((4,),), hidden=8)
    x = _images(shape=(8, 8, 1)) + 10  # a large mean costs no accuracy
    fn = models.flax(model, x)
    result = pairwise_kl(fn, x, LABELS, batch_size=4)
    means, pairs = _brute_force(fn, x, LABELS)
    assert result.pairs == pairs
    np.testing.assert_allclose(_means(result), list(means.values()), rtol=1e-3)


def test_a_linear_network_has_no_network_part_in_float32():
    fn = models.linear(10, (28, 28), 0.1)
    x, y = _images(60, (28, 28)), np.arange(60) % 10
    result = pairwise_kl(fn, x, y)
    assert abs(result.network) < 1e-5 * result.mean
    assert abs(result.mean - result.fisher - result.softmax) < 1e-5 * result.fisher


def test_stderr_agrees_with_the_jackknife_over_images():
    fn = models.smooth(5, SHAPE)
    count = 60
    x, y = _images(count), np.arange(count) % 5
    parts = kl_components(fn, jnp.repeat(x, count, 0), jnp.tile(x, (count, 1, 1)))
    kernel = np.asarray(parts.total, np.float64).reshape(count, count)
    used = y[:, None] != y[None, :]
    left_out: list[float] = []
    for i in range(count):
        rest = np.arange(count) != i
        mask = used & rest[:, None] & rest[None, :]
        left_out.append(kernel[mask].mean())
    jackknife = np.sqrt((count - 1) * np.var(np.array(left_out)))
    # the two differ by one part in the number of images
    assert pairwise_kl(fn, x, y).stderr == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize("partners", [None, 2])
def test_stderr_is_the_spread_over_fresh_data_sets(partners):
    fn = models.smooth(3, SHAPE)
    y = np.arange(30) % 3
    results = []
    for seed in range(100):
        key = None if partners is None else jax.random.key(seed)
        x = _images(30, seed=seed + 1000)
        results.append(pairwise_kl(fn, x, y, partners=partners, key=key))
    spread = np.std([result.mean for result in results])
    # 100 draws know a standard deviation to 7 %
    assert np.mean([r.stderr for r in results]) == pytest.approx(spread, rel=0.25)


def test_sampled_pairs_have_the_mean_over_all_pairs_as_expectation():
    fn, x = models.smooth(5, SHAPE), _images()
    exact = pairwise_kl(fn, x, LABELS)
    sampled = pairwise_kl(fn, x, LABELS, partners=2000, key=jax.random.key(0))
    assert sampled.pairs == 2000 * len(LABELS)
    # 34,000 draws: about half a per cent of the spread of the kernel
    assert sampled.mean == pytest.approx(exact.mean, rel=0.03)
    assert sampled.fisher == pytest.approx(exact.fisher, rel=0.03)


def test_partners_are_uniform_over_the_other_labels():
    keys = jax.random.split(jax.random.key(1), len(LABELS))
    drawn = _draw(keys, LABELS, 6000)
    for anchor, row in enumerate(drawn):
        allowed = LABELS[anchor] != LABELS
        share = np.bincount(row, minlength=len(LABELS)) / row.size
        assert np.all(share[~allowed] == 0)
        # six standard errors of a binomial share
        expected = 1 / allowed.sum()
        assert np.all(np.abs(share[allowed] - expected) < 6 * np.sqrt(expected / 6000))


def test_draws_do_not_depend_on_the_batch_size():
    fn, x, key = models.smooth(5, SHAPE), _images(), jax.random.key(7)
    a = pairwise_kl(fn, x, LABELS, partners=3, key=key, batch_size=4)
    b = pairwise_kl(fn, x, LABELS, partners=3, key=key, batch_size=50)
    np.testing.assert_allclose(_means(a), _means(b), rtol=1e-5)


def test_bad_arguments_are_named():
    fn, x = models.smooth(5, SHAPE), _images()
    with pytest.raises(ValueError, match="two different labels"):
        pairwise_kl(fn, x, np.zeros(len(LABELS), int))
    with pytest.raises(ValueError, match="y must have shape"):
        pairwise_kl(fn, x, LABELS[:3])
    with pytest.raises(ValueError, match="partners and key go together"):
        pairwise_kl(fn, x, LABELS, partners=3)
    with pytest.raises(ValueError, match="partners must be a whole number"):
        pairwise_kl(fn, x, LABELS, partners=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        pairwise_kl(fn, x, LABELS, batch_size=0)
