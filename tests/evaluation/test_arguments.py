"""What evaluations refuse, and what they say to write instead."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks
from robjax.balls import L0, Linf
from robjax.evaluation import arguments, doubts, evaluate, robust_accuracy_curve
from tests.evaluation.test_doubts import COUNT, KEY, ONE, X, Y, honest

partial = functools.partial
PGD = partial(attacks.pgd, ball=Linf(0.03), steps=1)


def noisy(x, keys):
    return honest(x) + jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)


def untouched(logits_fn, x, y, *, key, bounds):
    return x


def needs_size(logits_fn, x, y, *, key, bounds, size):
    return x + size


BAD = {
    "a list of attacks": ({"attacks": [PGD, untouched]}, '"pgd": …, "untouched": …'),
    "one attack": ({"attacks": PGD}, 'attacks must be a mapping.*"pgd": …'),
    "no attacks": ({"attacks": None}, 'attacks must be a mapping.*"pgd": …'),
    "a name": ({"attacks": "pgd"}, "attacks must be a mapping"),
    "called clean": ({"attacks": {"clean": PGD}}, "must not name one 'clean'"),
    "a class for a ball": (
        {"attacks": {"a": partial(attacks.pgd, ball=Linf)}},
        r"attacks\['a'\] ball must have a radius, as in Linf\(0.03\)",
    ),
    "another class": (
        {"attacks": {"a": partial(attacks.fmn, ball=L0)}},
        r"attacks\['a'\] ball must have a radius, as in L0\(3\)",
    ),
    "a number for a ball": (
        {"attacks": {"a": partial(attacks.pgd, ball=0.3)}},
        r"attacks\['a'\] ball must be Linf\(eps\).*got 0.3",
    ),
    "no ball": (
        {"attacks": {"a": attacks.pgd}},
        r"attacks\['a'\].*functools.partial\(pgd, ball=Linf\(0.03\)\)",
    ),
    "None for a ball": (
        {"attacks": {"a": partial(attacks.pgd, ball=None)}},
        r"functools.partial\(pgd, ball=Linf\(0.03\)\)",
    ),
    "an option of one's own": ({"attacks": {"a": needs_size}}, "options left: size"),
    "a misspelt option": (
        {"attacks": {"a": partial(attacks.pgd, ball=Linf(0.1), step=3)}},
        "unexpected keyword argument 'step' .options left: .*steps",
    ),
    "a bound model": (
        {"attacks": {"a": partial(attacks.pgd, honest, ball=Linf(0.1))}},
        "too many positional arguments",
    ),
    "bound bounds": (
        {"attacks": {"a": partial(PGD, bounds=(0, 1))}},
        "must not have bounds of its own",
    ),
    "an attack without key": (
        {"attacks": {"a": lambda logits_fn, x, y, *, bounds: x}},
        r"must be callable as attack\(logits_fn, x, y, key=, bounds=\)",
    ),
    "a pair for a result": (
        {"attacks": {"a": lambda f, x, y, *, key, bounds: (x, y)}},
        "attacks must return the images x_adv",
    ),
    "an image too few": (
        {"attacks": {"a": lambda f, x, y, *, key, bounds: x[:1]}},
        rf"attacks\['a'\] must return x_adv of shape \({COUNT}, 3, 4, 1\)",
    ),
    "a number for a name": ({"attacks": {1: PGD}}, "names that are strings, got 1"),
    "autoattack for an attack": (
        {"attacks": {"a": partial(attacks.autoattack, ball=Linf(0.1))}},
        r"attacks\['a'\] must be .*attacks are robjax.attacks.suite",
    ),
    "an attack that fails": (
        {"attacks": {"a": lambda f, x, y, *, key, bounds: 1 / 0}},
        r"attacks\['a'\] must be .*ZeroDivisionError",
    ),
    "a name for devices": ({"devices": "cpu"}, "devices must be a list of jax.dev"),
    "one device": ({"devices": jax.devices()[0]}, "devices must be a list of jax.dev"),
    "no type": ({"dtype": "half precision"}, "dtype must be a floating-point type"),
    "a number for a folder": ({"run_dir": 3}, "run_dir must be the path of a folder"),
    "one image": ({"data": (X[0], 3)}, r"give x\[None\]"),
    "one image, label [1]": ({"data": (X[0], np.array([3]))}, r"give x\[None\]"),
    "one vector": ({"data": (X[0].ravel(), [3])}, r"images\[None\]"),
    "one-hot labels": ({"data": (X, np.eye(4)[Y])}, r"argmax\(axis=1\)"),
    "a list for a pair": ({"data": [X, Y]}, r"tuple \(images, labels\), got list"),
    "a mapping": ({"data": {"image": X, "label": Y}}, "got dict"),
    "images alone": ({"data": X}, "got ndarray"),
    "a triple": ({"data": (X, Y, Y)}, "got tuple of 3"),
    "eot not bound": (
        {"logits_fn": noisy, "attacks": {"a": PGD}, "eot": 3},
        r"attacks\['a'\] must have an eot bound.*functools.partial\(pgd, eot=3, …\)",
    ),
    "eot where there is none": (
        {
            "logits_fn": noisy,
            "attacks": {"a": partial(attacks.square, ball=Linf(0.1), queries=1)},
            "eot": 3,
        },
        r"attacks\['a'\] must have an eot bound.*square has no such option.*apgd, ",
    ),
    "eot in the attack alone": (
        {"attacks": {"a": partial(PGD, eot=2)}},
        r"attacks\['a'\] must not have eot=2 bound, since without eot=",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_evaluate_says_what_to_write_instead(name):
    change, message = BAD[name]
    given = {"logits_fn": honest, "data": (X, Y), "attacks": {}, "key": KEY}
    given = given | {"devices": ONE} | change
    positional = [given.pop(k) for k in ("logits_fn", "data", "attacks")]
    with pytest.raises(ValueError, match=message):
        evaluate(*positional, **given)


CURVES = {
    "a list": ({"attack": [attacks.pgd]}, "attack must be callable, one attack"),
    "a mapping": ({"attack": {"pgd": attacks.pgd}}, "attack must be callable"),
    "a misspelt option": ({"attack": partial(attacks.pgd, step=3)}, "options left"),
    "one image": ({"x": X[0], "y": 3}, r"give x\[None\]"),
    "a pair": ({"attack": lambda f, x, y, *, key, ball, bounds: (x, y)}, "x_adv"),
    "eot not bound": (
        {"logits_fn": noisy, "eot": 3},
        r"attack must have an eot bound.*functools.partial\(pgd, eot=3, …\)",
    ),
    "eot in the attack alone": (
        {"attack": partial(attacks.pgd, eot=2)},
        "attack must not have eot=2 bound",
    ),
    "no draws": ({"logits_fn": noisy, "eot": 0}, "eot must be"),
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_say_what_to_write_instead(name):
    change, message = CURVES[name]
    given = {"logits_fn": honest, "x": X, "y": Y, "attack": attacks.pgd} | change
    positional = [given.pop(k) for k in ("logits_fn", "x", "y", "attack")]
    options = {"epsilons": [0.1], "key": KEY, "devices": ONE}
    with pytest.raises(ValueError, match=message):
        robust_accuracy_curve(*positional, **options, **given)


def test_the_attacks_that_are_said_to_take_eot_are_those_that_do():
    public = {name: getattr(attacks, name) for name in attacks.__all__}
    functions = {k: v for k, v in public.items() if inspect.isfunction(v)}
    takes = {
        k for k, v in functions.items() if "eot" in inspect.signature(v).parameters
    }
    assert set(arguments._WITH_EOT.split(", ")) == takes - {"autoattack", "suite"}


def test_the_curve_of_a_randomised_model_is_that_of_its_mean():
    """Noise ±1 on both logits of a linear model, which the mean over draws removes."""

    def shaken(x, keys):
        sign = jax.vmap(lambda key: jax.random.rademacher(key, ()))(keys)
        return x + 0.05 * jnp.stack([sign, -sign], axis=1)

    gaps = np.array([0.5, 0.4, 0.1, 0.02], np.float32)
    x = np.stack([0.25 + 0 * gaps, 0.25 + gaps], axis=1)
    curve = robust_accuracy_curve(
        shaken, x, np.ones(4, int), partial(attacks.pgd, steps=5, eot=300),
        epsilons=[0.1, 0.22, 0.3], key=KEY, eot=300,
    )  # fmt: skip
    np.testing.assert_array_equal(curve.smallest[:3], [0.3, 0.22, 0.1])
    assert curve.smallest[3] == 0.1 or curve.broken[0, 3]


def test_verdicts_on_a_randomised_model_that_differ_ask_for_more_draws():
    def far(x, keys):  # the mean of few draws is left to chance
        noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return honest(x) + 20 * noise

    result = evaluate(
        far, (X, Y), {"pgd": partial(PGD, eot=1)}, key=KEY, eot=2, devices=ONE
    )
    (warning,) = (text for text in result.warnings if text.startswith("pgd: "))
    assert "verdicts differ from the attack's own" in warning and "raise eot" in warning


def twice(x):
    return 2 * x


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_images_clipped_to_bounds_that_half_precision_rounds_up(dtype):
    half = jnp.array([[0.05, 0.5], [0.1, 0.2]], dtype).clip(0, 0.3)
    assert float(half.max()) > 0.3
    labels = np.array([1, 1])
    bounds = (0.0, 0.3)
    pgd = functools.partial(attacks.pgd, steps=2)
    options = {"key": jax.random.key(0), "bounds": bounds}

    assert doubts(twice, half, labels, bounds=bounds) == ()
    result = evaluate(twice, (half, labels), {}, **options)
    assert (result.predictions == labels).all()
    curve = robust_accuracy_curve(twice, half, labels, pgd, epsilons=[0.01], **options)
    assert curve.accuracy.tolist() == [1.0]
    beyond = half.at[0, 1].set(0.31)
    with pytest.raises(ValueError, match="x must lie inside bounds"):
        doubts(twice, beyond, labels, bounds=bounds)
