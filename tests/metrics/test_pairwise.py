import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models as flax_models
from robjax.metrics import class_pair_kl, kl_components, pairwise_kl
from robjax.metrics.kl.pairwise import PairwiseKL, _draw
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
    monkeypatch.setattr("robjax.metrics.kl.pair_sums._BLOCK", 5 * 4 * 3)
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


def test_class_pairs_are_the_means_over_their_pairs_and_make_up_the_metric():
    with jax.enable_x64(True):
        fn = models.smooth(5, SHAPE, dtype=jnp.float64)
        x = _images(dtype=jnp.float64)
        pairs = class_pair_kl(fn, x, LABELS, batch_size=5)
        total = pairwise_kl(fn, x, LABELS)
        i, j = np.nonzero(~np.eye(len(x), dtype=bool))
        parts = kl_components(fn, x[i], x[j])
        np.testing.assert_array_equal(pairs.labels, [0, 1, 2, 4])
        for a, b in np.ndindex(4, 4):
            used = (LABELS[i] == pairs.labels[a]) & (LABELS[j] == pairs.labels[b])
            assert pairs.pairs[a, b] == used.sum()
            for part, table in zip(parts, pairs.mean, strict=True):
                expected = np.mean(np.asarray(part)[used])
                np.testing.assert_allclose(table[a, b], expected, rtol=1e-9)
        weights = pairs.pairs * ~np.eye(4, dtype=bool)
        means = [np.nansum(t * weights) / weights.sum() for t in pairs.mean]
        np.testing.assert_allclose(means, _means(total), rtol=1e-9)


def test_no_standard_error_from_too_few_images():
    fn, x = models.smooth(3, SHAPE), _images(4)
    pairs = class_pair_kl(fn, x, np.array([7, 1_000_000, 7, 9]))
    np.testing.assert_array_equal(pairs.labels, [7, 9, 1_000_000])
    assert np.isfinite(pairs.mean.total[0]).all() and np.isnan(pairs.stderr.total).all()
    assert np.isnan(np.diag(pairs.mean.total)[1:]).all()
    assert np.isnan(pairwise_kl(fn, x[:2], np.array([0, 1])).stderr)


def _kl(fn, x):
    z = np.asarray(fn(x), np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    p = np.exp(log_p)
    return (p * log_p).sum(1)[:, None] - p @ log_p.T


def test_standard_errors_of_class_pairs_and_shares_against_fresh_samples():
    # 400 data sets of 2 × 30 images from one source: the spread of the estimates
    fn = models.smooth(3, SHAPE)
    labels = np.repeat([0, 1], 30)
    keys = jax.random.split(jax.random.key(5), 400)
    shift = np.where(labels, 0.3, 0.0)[:, None, None]
    estimates = []
    for key in keys:
        x = jax.random.uniform(key, (60, *SHAPE)) + shift
        kl = _kl(fn, x)
        within = kl[:30, :30].sum() / (30 * 29)
        estimates.append((kl[:30, 30:].mean(), within))
    spread = np.std(estimates, axis=0, ddof=1)
    said = []
    for key in keys[:40]:
        x = jax.random.uniform(key, (60, *SHAPE)) + shift
        error = class_pair_kl(fn, x, labels).stderr.total
        said.append((error[0, 1], error[0, 0]))
    np.testing.assert_allclose(np.mean(said, axis=0), spread, rtol=0.15)


def test_standard_error_of_a_share_against_the_bootstrap():
    fn = models.smooth(5, SHAPE)
    x, y = _images(60), np.arange(60) % 3
    result = pairwise_kl(fn, x, y)
    share, stderr = result.share("fisher")
    assert share == pytest.approx(result.fisher / result.mean)
    i, j = np.nonzero(np.ones((60, 60)))
    parts = kl_components(fn, x[i], x[j])
    total, fisher = (np.asarray(part).reshape(60, 60) for part in parts[:2])
    rng, shares = np.random.default_rng(0), []
    for _ in range(400):
        drawn = rng.integers(60, size=60)
        apart = y[drawn][:, None] != y[drawn][None]
        grid = np.ix_(drawn, drawn)
        shares.append(fisher[grid][apart].mean() / total[grid][apart].mean())
    assert stderr == pytest.approx(np.std(shares, ddof=1), rel=0.2)
    with pytest.raises(ValueError, match="part must be"):
        result.share("total")


def test_the_authors_groups_of_five_agree_within_their_standard_error():
    # their estimator: the first of five images against the other four
    fn = models.smooth(4, SHAPE)
    x, y = _images(600), np.arange(600) % 4
    kl = _kl(fn, x)
    order = np.random.default_rng(0).permutation(600).reshape(-1, 5)
    groups = []
    for first, *others in order:
        apart = [j for j in others if y[j] != y[first]]
        groups.append((kl[first, apart].sum(), len(apart)))
    sums, counts = np.array(groups).T
    theirs = sums.sum() / counts.sum()
    spread = np.std(sums - theirs * counts, ddof=1) * np.sqrt(120) / counts.sum()
    assert abs(theirs - pairwise_kl(fn, x, y).mean) < 3 * spread
    anchors, partners = order[:, :1].repeat(4, 1).ravel(), order[:, 1:].ravel()
    ours = np.asarray(kl_components(fn, x[anchors], x[partners]).total)
    apart = y[anchors] != y[partners]
    assert ours[apart].mean() == pytest.approx(theirs, rel=1e-4)


def test_prints_the_metric_and_the_shares_of_its_parts():
    values = {name: 0.0 for name in PairwiseKL._fields}
    values |= {"mean": 2.0, "stderr": 0.125, "fisher": 0.5, "softmax": 0.9}
    values |= {"network": 0.6, "pairs": 30, "network_share_stderr": 0.01}
    text = "2 ± 0.12 nats over 30 pairs: fisher 25 ± 0 %, softmax 45 ± 0 %"
    expected = f"PairwiseKL({text}, network 30 ± 1 %)"
    assert repr(PairwiseKL(**values)) == expected
