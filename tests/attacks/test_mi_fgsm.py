"""MI-FGSM against its equations, written out in NumPy with gradients by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, losses
from robjax.balls import L2, Linf

RNG = np.random.default_rng(0)
W1, W2 = RNG.normal(size=(12, 9)), RNG.normal(size=(9, 4))
X = jnp.asarray(RNG.uniform(size=(8, 3, 4)), jnp.float32)


def model(weights, x):
    first, second = weights
    return jnp.tanh(x.reshape(x.shape[0], -1) @ first) @ second


NET = Partial(model, (jnp.asarray(W1, jnp.float32), jnp.asarray(W2, jnp.float32)))
Y = jnp.argmax(NET(X), axis=1)


def gradient(v, y):
    """∇_v of the cross-entropy −log softmax(W₂ᵀ tanh(W₁ᵀ v))_y, float64."""
    hidden = np.tanh(W1.T @ v)
    z = W2.T @ hidden
    p = np.exp(z - z.max())
    p /= p.sum()
    return W1 @ ((1 - hidden**2) * (W2 @ (p - np.eye(4)[y])))


def by_hand(x, y, norm, eps, steps, mu, targeted):
    """Algorithm 1 for one image [d], clipped to the box after every step."""
    v, g, alpha = x.astype(np.float64), np.zeros(x.shape), eps / steps
    for _ in range(steps):
        now = gradient(v, y)
        g = mu * g + now / np.abs(now).sum()
        direction = np.sign(g) if norm == "Linf" else g / np.linalg.norm(g)
        v = np.clip(v - alpha * direction if targeted else v + alpha * direction, 0, 1)
    return v


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.06), ("L2", 0.3)])
def test_is_algorithm_1(norm, eps, targeted):
    labels, ball = (Y + 1) % 4 if targeted else Y, {"Linf": Linf, "L2": L2}[norm](eps)
    options = {"steps": 7, "momentum": 0.9, "targeted": targeted}
    out = attacks.mi_fgsm(NET, X, labels, ball=ball, **options)
    expected = [
        by_hand(np.asarray(x).ravel(), y, norm, eps, 7, 0.9, targeted)
        for x, y in zip(X, labels, strict=True)
    ]
    np.testing.assert_allclose(out.x_adv.reshape(8, -1), expected, atol=2e-6)
    logits = NET(out.x_adv)
    hit = np.argmax(logits, axis=1) == labels
    np.testing.assert_array_equal(out.success, hit if targeted else ~hit)
    np.testing.assert_allclose(
        out.loss, losses.cross_entropy(logits, labels), rtol=1e-4
    )
    assert (out.queries == 8).all()


def test_defaults_are_the_papers():
    out = attacks.mi_fgsm(NET, X, Y, ball=Linf(0.1))
    expected = [
        by_hand(np.asarray(x).ravel(), y, "Linf", 0.1, 10, 1.0, False)
        for x, y in zip(X, Y, strict=True)
    ]
    np.testing.assert_allclose(out.x_adv.reshape(8, -1), expected, atol=2e-6)
    assert (out.queries == 11).all() and (out.distance <= 0.1 + 1e-7).all()


def test_no_retracing_when_weights_or_radius_change():
    traces = []

    def counted(weights, x):
        traces.append(None)
        return model(weights, x)

    def run(scale, eps):
        weights = tuple(scale * jnp.asarray(w, jnp.float32) for w in (W1, W2))
        attacks.mi_fgsm(Partial(counted, weights), X, Y, ball=Linf(eps))

    run(1, 0.1)
    before = len(traces)
    run(2, jnp.float32(0.2))
    assert len(traces) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"momentum": -0.1}, "momentum must be finite"),
        ({"ball": 0.1}, "ball must be Linf"),
        ({"ball": Linf("0.1")}, "ball.eps must be a real number"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        attacks.mi_fgsm(NET, X, Y, **{"ball": Linf(0.1), **changes})
