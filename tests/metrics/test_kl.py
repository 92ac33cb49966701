import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models as flax_models
from robjax.metrics import kl as kl_module
from robjax.metrics import kl_components, kl_path, kl_to_class_means
from tests.metrics import models
from tests.oracles import kl as oracle

SHAPE = (2, 3)
split_kl = jax.jit(kl_module.split_kl)


def _images(count, shape=SHAPE, dtype=jnp.float32, seed=5):
    keys = jax.random.split(jax.random.key(seed))
    return [jax.random.uniform(key, (count, *shape), dtype) for key in keys]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_every_part_equals_its_definition_in_float64(scale):
    with jax.enable_x64(True):
        fn = models.smooth(4, SHAPE, scale, dtype=jnp.float64)
        x, x_prime = _images(20, dtype=jnp.float64)
        parts = kl_components(fn, x, x_prime)
        pairs = zip(x, x_prime, strict=True)
        want = np.stack([oracle.kl_parts(fn, *pair) for pair in pairs], 1)
        np.testing.assert_allclose(np.stack(parts), want, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(parts.non_robust, want[1], rtol=1e-9)
        np.testing.assert_allclose(
            parts.robust, want[0] - want[1], rtol=1e-8, atol=1e-13
        )


def test_the_remainder_shrinks_eightfold_when_the_step_is_halved():
    with jax.enable_x64(True):
        fn = models.smooth(4, SHAPE, dtype=jnp.float64)
        x, x_prime = _images(20, dtype=jnp.float64)

        def remainder(t):
            return kl_components(fn, x, x + t * (x_prime - x)).robust

        # next order: the ratio is 8 (1 + O(t))
        np.testing.assert_allclose(remainder(1e-4) / remainder(5e-5), 8, rtol=5e-3)


@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_float32_parts_keep_their_relative_accuracy(step):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(100, 10)).astype(np.float32)
    v = (step * rng.normal(size=z.shape)).astype(np.float32)
    z_prime = z + v + (step * rng.normal(size=z.shape)).astype(np.float32)
    got = split_kl(jnp.asarray(z), jnp.asarray(v), jnp.asarray(z_prime))
    with jax.enable_x64(True):
        wide = (jnp.asarray(a, jnp.float64) for a in (z, v, z_prime))
        want = jax.tree.map(np.asarray, split_kl(*wide))
    got = jax.tree.map(np.asarray, got)
    # softmax is the mean of signed cubes: accurate on the scale of its terms
    size = step**3 + np.abs(want.softmax)
    np.testing.assert_array_less(np.abs(got.softmax - want.softmax) / size, 1e-4)
    np.testing.assert_allclose(got.fisher, want.fisher, rtol=1e-5)
    np.testing.assert_allclose(got.network, want.network, atol=1e-6 * step**2)


def test_parts_add_up_to_the_total_also_in_saturation():
    rng = np.random.default_rng(2)
    for scale in [1e-3, 0.1, 1.0, 30.0, 1e3]:
        z, v, z_prime = scale * rng.normal(size=(3, 50, 10)).astype(np.float32)
        total, *parts = split_kl(*map(jnp.asarray, (z, v, z_prime)))
        size = np.abs(np.stack(parts)).sum(0)
        assert np.all(np.abs(total - sum(parts)) <= 1e-5 * size)


def test_a_constant_model_has_no_divergence_at_all():
    x, x_prime = _images(5)
    parts = kl_components(lambda x: jnp.zeros((x.shape[0], 3)) + 2, x, x_prime)
    chex.assert_trees_all_equal(parts, jax.tree.map(jnp.zeros_like, parts))


def test_a_constant_added_to_the_logits_changes_nothing():
    with jax.enable_x64(True):
        fn = models.smooth(4, SHAPE, dtype=jnp.float64)
        x, x_prime = _images(10, dtype=jnp.float64)

        def shifted(x):
            return fn(x) + 7 + 3 * jnp.sum(x, (1, 2))[:, None]

        want = kl_components(fn, x, x_prime)
        got = kl_components(shifted, x, x_prime)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def _pure_linear_parts(network, dtype):
    if network == "matrix":
        x, x_prime = _images(32, dtype=dtype)
        return kl_components(models.linear(10, SHAPE, dtype=dtype), x, x_prime)
    x, x_prime = _images(32, (8, 8, 3), dtype)
    model = flax_models.VGG(10, blocks=((4,), (8,)), form="pure_linear")
    return kl_components(models.flax(model, x, scale=3.0), x, x_prime)


@pytest.mark.parametrize("network", ["matrix", "vgg"])
def test_a_linear_network_has_no_network_part(network):
    with jax.enable_x64(True):
        total, _, _, part = map(np.asarray, _pure_linear_parts(network, jnp.float64))
        assert part.dtype == np.float64
        assert np.all(np.abs(part) < 1e-12 * total)
    total, _, _, part = map(np.asarray, _pure_linear_parts(network, jnp.float32))
    assert np.abs(part).mean() < 1e-5 * total.mean()


def test_linear_two_class_model_in_closed_form():
    with jax.enable_x64(True):
        # logit gap s at x, s + t at x'; Bernoulli with p = σ(s)
        gap = jnp.array([0.4, -1.5, 3.0, 0.0])
        step = jnp.array([0.1, 2.0, -4.0, 5.0])
        parts = kl_components(
            lambda x: jnp.pad(x, ((0, 0), (0, 1))), gap[:, None], (gap + step)[:, None]
        )
        p, q = jax.nn.sigmoid(gap), jax.nn.sigmoid(gap + step)
        kl = p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
        fisher = p * (1 - p) * step**2 / 2
        np.testing.assert_allclose(parts.fisher, fisher, rtol=1e-12)
        np.testing.assert_allclose(parts.softmax, kl - fisher, rtol=1e-10)


def test_two_pixel_network_by_hand():
    # z = (x₁x₂, 0), x = (1, 0), x' = (2, ln 3): z = 0, J = (0, 1), JΔ = ln 3,
    # z' = ln 9; p = (1/2, 1/2), q_lin = (3/4, 1/4), q = (9/10, 1/10)
    def fn(x):
        return jnp.stack([x[:, 0] * x[:, 1], 0 * x[:, 0]], 1)

    parts = kl_components(fn, jnp.array([[1.0, 0.0]]), jnp.array([[2.0, np.log(3.0)]]))
    fisher, linear, total = np.log(3) ** 2 / 8, np.log(4 / 3) / 2, np.log(5 / 3)
    want = np.array([total, fisher, linear - fisher, total - linear])
    np.testing.assert_allclose(np.stack(parts)[:, 0], want, rtol=1e-5)


def test_max_pooling_and_a_ragged_last_chunk():
    model = flax_models.CNN(5, blocks=((4,), (8,)), hidden=8)
    x, x_prime = _images(19, (8, 8, 1))
    fn = models.flax(model, x)
    parts = kl_components(fn, x, x_prime)
    z, v = jax.jit(lambda x, v: jax.jvp(fn, (x,), (v,)))(x, x_prime - x)
    chex.assert_trees_all_close(
        parts, split_kl(z, v, fn(x_prime)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_finite_at_equality_and_in_saturation(scale):
    fn = models.smooth(4, SHAPE, scale)
    x, x_prime = _images(4)

    @jax.jit
    def gradients(x, x_prime):
        def part(index, x, x_prime):
            return jnp.sum(kl_components(fn, x, x_prime)[index])

        return [
            jax.grad(functools.partial(part, index), argnums=(0, 1))(x, x_prime)
            for index in range(4)
        ]

    chex.assert_tree_all_finite(gradients(x, x_prime))
    chex.assert_tree_all_finite(gradients(x, x))


def test_jit_and_vmap_around_it():
    fn = models.smooth(4, SHAPE)
    x, x_prime = _images(6)
    want = kl_components(fn, x, x_prime)
    chex.assert_trees_all_close(
        jax.jit(kl_components)(fn, x, x_prime), want, rtol=1e-4, atol=1e-7
    )
    grouped = jax.vmap(functools.partial(kl_components, fn))(
        x.reshape(2, 3, *SHAPE), x_prime.reshape(2, 3, *SHAPE)
    )
    flat = jax.tree.map(jnp.ravel, grouped)
    chex.assert_trees_all_close(flat, want, rtol=1e-4, atol=1e-7)


def test_bad_arguments_are_named():
    fn = models.linear(3, SHAPE)
    x, x_prime = _images(4)
    with pytest.raises(ValueError, match="x_prime must have the shape"):
        kl_components(fn, x, x_prime[:3])
    with pytest.raises(ValueError, match="x_prime must be finite"):
        kl_components(fn, x, x_prime.at[0, 0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="x must be floating"):
        kl_components(fn, jnp.ones((4, *SHAPE), jnp.int32), x_prime)
    with pytest.raises(ValueError, match="must return logits"):
        kl_components(lambda x: x, x, x_prime)


def test_the_path_is_the_split_at_every_point_of_it():
    with jax.enable_x64(True):
        fn = models.smooth(4, SHAPE, dtype=jnp.float64)
        x, x_prime = _images(6, dtype=jnp.float64)
        times = jnp.array([0.0, 0.3, 1.0])
        path = kl_path(fn, x, x_prime, times)
        for i, t in enumerate(times):
            parts = kl_components(fn, x, x + t * (x_prime - x))
            got = [part[i] for part in path]
            np.testing.assert_allclose(got, np.stack(parts), rtol=1e-9, atol=1e-14)
        quadratic = times[:, None] ** 2 * path.fisher[-1][None]
        np.testing.assert_allclose(path.fisher, quadratic, rtol=1e-12)
        with pytest.raises(ValueError, match="times must have shape"):
            kl_path(fn, x, x_prime, 0.5)
        with pytest.raises(ValueError, match="times must be finite"):
            kl_path(fn, x, x_prime, jnp.array([0.0, jnp.nan]))


def test_the_split_towards_the_class_means():
    fn = models.smooth(4, SHAPE)
    x, _ = _images(7)
    y = np.array([0, 2, 2, 0, 3, 3, 3])
    parts = kl_to_class_means(fn, x, y)
    assert np.isnan(parts.total[:, 1]).all()
    for c in (0, 2, 3):
        mean = jnp.broadcast_to(x[y == c].mean(0)[None], x.shape)
        want = kl_components(fn, x, mean)
        got = [part[:, c] for part in parts]
        np.testing.assert_allclose(got, np.stack(want), rtol=1e-5, atol=1e-7)
