"""Radii that cannot be meant: attacks say so, where the radius is known."""

import functools
import warnings

import jax
import jax.numpy as jnp
import pytest

from robjax import attacks
from robjax.balls import L1, L2, Linf

KEY = jax.random.key(0)
X = jnp.full((2, 3, 3, 1), 0.5)
Y = jnp.zeros(2, jnp.int32)


def model(x):
    return x.reshape(len(x), -1)[:, :4]


def warned(call):
    """What a call warns of."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in record]


def unlabelled(attack):
    return lambda logits_fn, x, y, **options: attack(logits_fn, x, **options)


ATTACKS = {
    "fgsm": attacks.fgsm,
    "mi_fgsm": functools.partial(attacks.mi_fgsm, steps=2),
    "pgd": functools.partial(attacks.pgd, steps=2),
    "kl_pgd": functools.partial(unlabelled(attacks.kl_pgd), steps=2),
    "apgd": functools.partial(attacks.apgd, steps=2),
    "apgd_targeted": functools.partial(attacks.apgd_targeted, steps=2, targets=1),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_ball_that_holds_every_image_is_warned_of(name):
    with pytest.warns(UserWarning, match=r"ball.eps is 8 .* did you mean 8/255\?"):
        out = ATTACKS[name](model, X, Y, key=KEY, ball=Linf(8))
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1


@pytest.mark.parametrize(
    ("ball", "bounds"),
    [
        (L2(128.0), (0, 1)),
        (L1(9.1), (0, 1)),
        (Linf(2.01), (-1, 1)),
        (Linf(jnp.array([0.1, 1.5])), (0, 1)),
        (Linf(256), (0, 255)),
    ],
    ids=str,
)
def test_in_every_norm_and_box(ball, bounds):
    with pytest.warns(UserWarning, match="the ball holds all of them"):
        attacks.fgsm(model, X, Y, ball=ball, bounds=bounds)


@pytest.mark.parametrize(
    ("ball", "bounds"),
    [
        (L2(3.0), (0, 1)),  # √9 pixels
        (L1(9.0), (0, 1)),
        (Linf(1.0), (0, 1)),
        (Linf(jnp.float32(0.1) * 10), (0, 1)),
        (Linf(8), (0, 255)),
        (Linf(0.0), (0, 1)),
    ],
    ids=str,
)
def test_radii_that_can_be_meant_are_silent(ball, bounds):
    assert not warned(lambda: attacks.fgsm(model, X, Y, ball=ball, bounds=bounds))


def test_traced_radii_and_minimal_norm_attacks_are_silent():
    attack = functools.partial(attacks.fgsm, model, X, Y)
    traced = jax.jit(lambda eps: attack(ball=Linf(eps)).x_adv)
    assert not warned(lambda: traced(8.0))
    options = {"key": KEY, "steps": 2, "reference_quirks": True}
    assert not warned(lambda: attacks.fmn(model, X, Y, ball=Linf(8.0), **options))


def test_the_warning_points_at_the_call():
    with pytest.warns(UserWarning) as record:
        attacks.pgd(model, X, Y, key=KEY, ball=Linf(8), steps=2)
    assert record[0].filename == __file__


@pytest.mark.parametrize("name", [*ATTACKS, "fmn"])
def test_bounds_that_images_do_not_fill_are_warned_of(name):
    x = X.at[0, 0, 0, 0].set(0.0).at[1, 0, 0, 0].set(1.0)
    attack = (ATTACKS | {"fmn": functools.partial(attacks.fmn, steps=2)})[name]
    said = r"between 0 and 1 and span 0.39 % of bounds=\(0.0, 255.0\)"
    with pytest.warns(UserWarning, match=said):
        attack(model, x, Y, key=KEY, ball=Linf(8), bounds=(0, 255))


def test_images_of_one_value_and_traced_images_tell_no_range():
    def fgsm(x):
        return attacks.fgsm(model, x, Y, ball=Linf(8), bounds=(0, 255)).x_adv

    assert not warned(lambda: fgsm(X))
    assert not warned(lambda: jax.jit(fgsm)(X.at[0, 0, 0, 0].set(0.0)))


def test_autoattack_says_it_once_and_in_its_result():
    x = X.at[0, 0, 0, 0].set(0.0).at[1, 0, 0, 0].set(1.0)
    results = []
    suite = {"version": "custom", "attacks": {"fgsm": attacks.fgsm}}
    options = {"key": KEY, "ball": Linf(8), "bounds": (0, 255)}
    devices = jax.devices()[:1]

    def run():
        found = attacks.autoattack(model, x, Y, **suite, **options, devices=devices)
        results.append(found)

    assert not warned(run)
    assert sum("span 0.39 %" in text for text in results[0].warnings) == 1
