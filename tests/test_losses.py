import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from robjax import losses

Z = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3
Y = np.array([0, 1, 2, 3, 4, int(Z[5].argmax())])


def test_cross_entropy():
    expected = -special.log_softmax(Z.astype(np.float64), axis=1)[np.arange(6), Y]
    np.testing.assert_allclose(losses.cross_entropy(Z, Y), expected, rtol=2e-6)


def test_margin_is_positive_exactly_where_wrong():
    others = [max(np.delete(z, y)) - z[y] for z, y in zip(Z, Y, strict=True)]
    np.testing.assert_allclose(losses.margin(Z, Y), others, rtol=1e-6)
    np.testing.assert_array_equal(losses.margin(Z, Y) > 0, Z.argmax(1) != Y)


def test_dlr_by_hand_and_its_invariance():
    z, y = np.array([[4.0, 1.0, 3.0, 2.0]], np.float32), np.array([0])
    # sorted 4 3 2 1: −(4 − 3)/(4 − 2); label 1 is wrong: −(1 − 4)/(4 − 2)
    np.testing.assert_allclose(losses.dlr(z, y), [-0.5], rtol=1e-6)
    np.testing.assert_allclose(losses.dlr(z, np.array([1])), [1.5], rtol=1e-6)
    np.testing.assert_allclose(losses.dlr(7 * Z - 3, Y), losses.dlr(Z, Y), rtol=1e-4)


def test_targeted_dlr_by_hand():
    z = np.array([[4.0, 1.0, 3.0, 2.0]], np.float32)
    # (z_t − z_y)/(z_(1) − (z_(3) + z_(4))/2) = (2 − 4)/(4 − 1.5)
    value = losses.targeted_dlr(z, np.array([0]), np.array([3]))
    np.testing.assert_allclose(value, [-0.8], rtol=1e-6)


def test_too_few_classes_are_named():
    with pytest.raises(ValueError, match="3 classes, got 2"):
        losses.dlr(Z[:, :2], Y[:2].clip(0, 1))
    with pytest.raises(ValueError, match="4 classes, got 3"):
        losses.targeted_dlr(Z[:, :3], Y, Y)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_gradients_are_finite_at_saturation(loss):
    z = jnp.asarray([[1e4, -1e4, 0.0, 3.0]])
    grad = jax.grad(lambda z: loss(z, jnp.array([1])).sum())(z)
    assert jnp.isfinite(grad).all()


def test_cross_entropy_keeps_value_and_gradient_where_softmax_is_one_hot():
    z, y = jnp.asarray([[20.0, 0.0, -1.0]]), jnp.array([0])
    value, grad = jax.value_and_grad(lambda z: losses.cross_entropy(z, y)[0])(z)
    z64 = np.asarray(z, np.float64)[0]
    p = special.softmax(z64)
    wrong = np.exp(special.logsumexp(z64[1:]) - special.logsumexp(z64))
    np.testing.assert_allclose(value, -np.log1p(-wrong), rtol=1e-5)
    np.testing.assert_allclose(grad[0], [-wrong, p[1], p[2]], rtol=1e-5)
