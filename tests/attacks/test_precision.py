"""Half-precision images, and images of one precision with logits of another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks
from robjax.balls import L1, L2, Linf

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 5))
PIXELS = RNG.uniform(size=(6, 3, 4))
Y = jnp.asarray((PIXELS.reshape(6, -1) @ W).argmax(axis=1), jnp.int32)
bind: Any = functools.partial


def unlabelled(attack, **options):
    def run(logits_fn, x, y, **rest):
        return attack(logits_fn, x, **options, **rest)

    return run


ATTACKS = {
    "fgsm": attacks.fgsm,
    "mi_fgsm": bind(attacks.mi_fgsm, steps=2),
    "pgd": bind(attacks.pgd, steps=2, restarts=2),
    "kl_pgd": unlabelled(attacks.kl_pgd, steps=2),
    "apgd": bind(attacks.apgd, steps=10),
    "apgd_targeted": bind(attacks.apgd_targeted, steps=3, targets=2),
}
CASES = [
    ("fgsm", L2(0.3)),
    ("mi_fgsm", Linf(0.1)),
    ("pgd", Linf(0.1)),
    ("pgd", L2(0.3)),
    ("pgd", L1(0.5)),
    ("kl_pgd", L1(0.5)),
    ("apgd", Linf(0.1)),
    ("apgd", L1(0.5)),
    ("apgd, large radii", L1(0.5)),
    ("apgd_targeted", L2(0.3)),
]
each_case = pytest.mark.parametrize(("name", "ball"), CASES, ids=str)
ORDERS = {Linf: np.inf, L2: 2, L1: 1}


def model(x, logits_dtype, dtype=jnp.float32):
    flat = x.reshape(len(x), -1).astype(dtype)
    return (flat @ jnp.asarray(W, dtype)).astype(logits_dtype)


def attacked(name, ball, logits_fn, x, **options):
    if name == "apgd, large radii":
        name = "apgd"
        options |= {"large_reps": True}
    return ATTACKS[name](logits_fn, x, Y, key=KEY, ball=ball, **options)


def assert_inside(out, x, ball):
    x_adv = np.asarray(out.x_adv, np.float64)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    delta = (x_adv - np.asarray(x, np.float64)).reshape(len(x), -1)
    distance = np.linalg.norm(delta, ord=ORDERS[type(ball)], axis=1)
    assert (distance <= ball.eps * (1 + 1e-6) + 1e-7).all()


@each_case
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_images_are_attacked_as_float32(name, ball, dtype):
    x = jnp.asarray(PIXELS, dtype)
    logits_fn = bind(model, logits_dtype=jnp.float32)
    out = attacked(name, ball, logits_fn, x)
    assert out.x_adv.dtype == out.distance.dtype == jnp.float32
    assert_inside(out, x, ball)
    whole = attacked(name, ball, logits_fn, x.astype(jnp.float32))
    for field, other in zip(out, whole, strict=True):
        np.testing.assert_array_equal(field, other)


@pytest.mark.parametrize(("name", "ball"), CASES[1::3], ids=str)
def test_half_precision_logits_are_read_as_float32(name, ball):
    # bfloat16 logits as such would make losses of 3 digits
    x = jnp.asarray(PIXELS, jnp.float32)
    half = bind(model, logits_dtype=jnp.bfloat16, dtype=jnp.bfloat16)

    def widened(x):
        return half(x).astype(jnp.float32)

    out = attacked(name, ball, half, x)
    for field, other in zip(out, attacked(name, ball, widened, x), strict=True):
        np.testing.assert_array_equal(field, other)
    assert out.loss.dtype == jnp.float32


@each_case
def test_images_and_logits_may_differ_in_precision(name, ball):
    pairs = [(jnp.float32, jnp.float64), (jnp.float64, jnp.float32)]
    with jax.enable_x64(True):
        for images, logits in pairs:
            x = jnp.asarray(PIXELS, images)
            logits_fn = bind(model, logits_dtype=logits, dtype=logits)
            out = attacked(name, ball, logits_fn, x)
            assert out.x_adv.dtype == images and out.loss.dtype == logits
            assert_inside(out, x, ball)
            if name != "kl_pgd":
                wrong = jnp.argmax(logits_fn(out.x_adv), axis=1) != Y
                np.testing.assert_array_equal(out.success, wrong)


def test_randomised_models_may_differ_in_precision_too():
    def noisy(x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (5,), jnp.float16))(keys)
        return model(x, jnp.float16) + noise

    x = jnp.asarray(PIXELS, jnp.bfloat16)
    for name in ("pgd", "apgd"):
        out = attacked(name, Linf(0.1), noisy, x, eot=2)
        assert out.x_adv.dtype == jnp.float32
        assert_inside(out, x, Linf(0.1))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("bounds", [(-0.7, 0.3), (-2.1179, 2.64)])
def test_images_clipped_to_rounded_bounds_are_taken(dtype, bounds):
    pixels = jnp.clip(jnp.asarray(8 * PIXELS - 4, dtype), *bounds)
    x = np.asarray(pixels, np.float32)
    logits_fn = bind(model, logits_dtype=jnp.float32)
    start = {"start": pixels}
    for attack, own in ((attacks.fgsm, {}), (attacks.apgd, start)):
        options = {"key": KEY, "ball": Linf(0.01), "bounds": bounds, **own}
        out = attack(logits_fn, pixels, Y, **options)
        low, high = np.float32(bounds)
        assert low <= out.x_adv.min() and out.x_adv.max() <= high
        clipped = np.clip(x, low, high)
        assert np.abs(np.asarray(out.x_adv) - clipped).max() <= 0.01 + 1e-7 * 4


def test_half_precision_images_outside_the_bounds_are_refused():
    x = jnp.asarray(PIXELS, jnp.bfloat16).at[0, 0, 0].set(0.305)
    with pytest.raises(ValueError, match="x must lie inside bounds"):
        attacks.fgsm(lambda x: x, x, Y, ball=Linf(0.1), bounds=(0.0, 0.3))
