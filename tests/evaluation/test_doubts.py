"""What there is to distrust about a model and a setting, whoever attacks it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L0, L1, L2, Linf
from robjax.evaluation import doubts, evaluate, probe, robust_accuracy_curve
from robjax.evaluation.batches import Task
from robjax.evaluation.verdicts import attack_all

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
ONE = jax.devices()[:1]
COUNT = 23
W = RNG.normal(size=(12, 4)).astype(np.float32)
X = RNG.uniform(size=(COUNT, 3, 4, 1)).astype(np.float32)


def honest(x):
    return 3 * jnp.tanh((x.reshape(len(x), -1) - 0.5) @ W)


Y = np.asarray(jnp.argmax(honest(X), axis=1))

VANISHED = "have an input gradient of exactly 0"
BROKEN = "have an input gradient that is not finite"
NEIGHBOURS = "depend on its neighbours, its place or the size"
PROBABILITIES = "the outputs are probabilities"
NOT_FINITE = "have logits that are not finite"
CONSTANT = "every image is classified as"


def found(model, x=X, y=Y, **options):
    return doubts(model, x, y, **options)


def fgsm(eps=0.05):
    return {"fgsm": functools.partial(attacks.fgsm, ball=Linf(eps))}


def test_an_honest_model_raises_no_doubt():
    assert found(honest, ball=Linf(8 / 255)) == ()
    assert found(honest, X[:1], Y[:1]) == ()
    assert evaluate(honest, (X, Y), fgsm(), key=KEY).warnings == ()


# -------------------------------------------- rows that depend on the rest of the batch


def batch_norm(x):
    h = x.reshape(len(x), -1) @ W
    deviation = jnp.sqrt(h.var(axis=0, keepdims=True) + 1e-5)
    return (h - h.mean(axis=0, keepdims=True)) / deviation


def noise_by_place(x):
    return honest(x) + jax.random.normal(KEY, (len(x), 4))


MIXING = {
    "mean": lambda x: honest(x - x.mean(axis=0, keepdims=True) + 0.5),
    "batch norm": batch_norm,
    "softmax over the batch": lambda x: jnp.log(jax.nn.softmax(honest(x), axis=0)),
    "neighbour": lambda x: honest(x) + 0.1 * jnp.roll(honest(x), 1, axis=0),
    "first": lambda x: honest(x) + 0.2 * honest(x[:1]),
    "place": noise_by_place,
    "size": lambda x: honest(x) + jnp.array([[0, 1.0, 0, 0]]) * (len(x) > 2),
}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", MIXING)
def test_sees_rows_that_depend_on_the_batch(name, devices):
    options = {"key": KEY, "devices": jax.devices()[:devices]}
    (warning,) = evaluate(MIXING[name], (X, Y), {}, **options).warnings
    assert NEIGHBOURS in warning and "batch size" in warning


@pytest.mark.parametrize("name", ["mean", "batch norm", "place"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_sees_them_in_small_batches_too(name, batch_size):
    options = {"key": KEY, "devices": ONE, "batch_size": batch_size}
    warnings = evaluate(MIXING[name], (X, Y), {}, **options).warnings
    assert any(NEIGHBOURS in text for text in warnings)


def test_one_image_is_enough():
    assert any(NEIGHBOURS in text for text in found(batch_norm, X[:1], Y[:1]))


def test_autoattack_and_curves_say_it_as_well():
    ball = Linf(0.05)
    ensemble = attacks.autoattack(
        MIXING["mean"], X, Y, key=KEY, ball=ball, version="custom",
        attacks={"fgsm": attacks.fgsm}, devices=ONE,
    )  # fmt: skip
    curve = robust_accuracy_curve(
        MIXING["mean"], X, Y, attacks.fgsm, epsilons=[0.05], key=KEY, devices=ONE
    )
    for warnings in (ensemble.warnings, curve.warnings):
        assert any(NEIGHBOURS in text for text in warnings)
    assert NEIGHBOURS in repr(curve)


def test_keys_decide_the_noise_of_an_image_not_its_place():
    def by_image(x, keys):
        return honest(x) + jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)

    def by_batch(x, keys):
        return honest(x) + jax.random.normal(keys[0], (len(x), 4))

    assert found(by_image, eot=3) == ()
    (doubt,) = found(by_batch, eot=3)
    assert NEIGHBOURS in doubt and "own key" in doubt


def test_mixed_company_changes_statistics_and_keeps_every_second_image():
    x = jnp.asarray(X[:8])
    for low, high in ((0.0, 1.0), (-1.0, 2.0)):
        mixed = probe.mixed_company(x, (low, high))
        np.testing.assert_array_equal(mixed[1::2], x[::-1][1::2])
        strangers = np.asarray(mixed[::2])
        assert set(np.unique(strangers)) == {low, high}
        far = np.abs(strangers - np.asarray(x[::-1][::2]))[::2]
        assert (far >= (high - low) / 2).all()


# ---------------------------------------------------------------- gradients

VANISHING = {
    "rounded": lambda x: honest(jnp.round(20 * x) / 20),
    "integers": lambda x: honest((255 * x).astype(jnp.int32) / 255),
    "stopped": lambda x: honest(jax.lax.stop_gradient(x)),
    "saturated": lambda x: jnp.clip(1e4 * honest(x), -1, 1) * jnp.arange(1.0, 5)[None],
    "constant": lambda x: jnp.tile(jnp.array([[0.0, 3.0, 1.0, 1.0]]), (len(x), 1)),
}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", VANISHING)
def test_counts_the_images_without_a_gradient(name):
    model = VANISHING[name]
    correct = int((np.argmax(model(X), axis=1) == Y).sum())
    assert correct
    doubt = found(model)[-1]
    assert doubt.startswith(f"{correct} of {correct} images {VANISHED}")
    assert "attacks.square" in doubt and "BPDA" in doubt
    assert doubt in evaluate(model, (X, Y), fgsm(), key=KEY).warnings
    # the gradient is no matter where no attack uses it
    square = functools.partial(attacks.square, ball=Linf(0.05), queries=2)
    warnings = evaluate(model, (X, Y), {"square": square}, key=KEY).warnings
    assert not any(VANISHED in text for text in warnings)


def test_counts_only_images_that_have_no_gradient_and_are_classified_correctly():
    def half(x):  # bright images pass through a rounding
        bright = (x.mean(axis=(1, 2, 3)) > 0.5)[:, None, None, None]
        return honest(jnp.where(bright, jnp.round(20 * x) / 20, x))

    bright = X.mean(axis=(1, 2, 3)) > 0.5
    correct = np.argmax(half(X), axis=1) == Y
    labels = np.where(np.arange(COUNT) < 4, (Y + 1) % 4, Y)  # four are wrong
    correct &= np.arange(COUNT) >= 4
    expected = f"{(bright & correct).sum()} of {correct.sum()} images {VANISHED}"
    (doubt,) = found(half, y=labels)
    assert doubt.startswith(expected) and 0 < (bright & correct).sum() < correct.sum()
    # steep logits are no fault: the log-odds never saturate
    assert found(lambda x: 1000 * honest(x)) == ()


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 5])
def test_counts_gradients_that_are_not_finite(dtype, count):
    def norm(x):
        return jnp.stack([x[:, 2] - 0.1, jnp.linalg.norm(x[:, :2], axis=1)], axis=1)

    x = np.tile(np.array([[0, 0, 0.5]], dtype), (count, 1))
    x[1:, 0] = 0.25  # there it has a slope
    y = np.zeros(count, int)
    with jax.enable_x64(dtype == np.float64):
        (doubt,) = doubts(norm, x, y)
        (warning,) = evaluate(norm, (x, y), fgsm(0.3), key=KEY).warnings
    assert doubt == warning and doubt.startswith(f"1 of {count} images {BROKEN}")


def test_takes_gradients_of_a_randomised_model_in_all_draws():
    def sometimes(x, keys):  # each draw drops half of the images' slopes
        kept = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
        return honest(jnp.where(kept, x, jax.lax.stop_gradient(x)))

    def never(x, keys):
        return honest(jnp.round(20 * x + jax.vmap(jax.random.uniform)(keys).mean()))

    assert not any(VANISHED in text for text in found(sometimes, eot=20))
    assert any(VANISHED in text for text in found(never, eot=3))


def test_a_model_without_derivative_keeps_its_evaluation():
    def outside(x):
        shape = jax.ShapeDtypeStruct((len(x), 4), jnp.float32)
        answer = lambda v: 3 * np.tanh((v.reshape(len(v), -1) - 0.5) @ W)  # noqa: E731
        return jax.pure_callback(answer, shape, x, vmap_method="sequential")

    def noise(logits_fn, x, y, *, key, bounds):
        return jnp.clip(x + 0.1, *bounds)

    def scored(**options):
        return evaluate(outside, (X, Y), key=KEY, devices=ONE, **options)

    square = functools.partial(attacks.square, ball=Linf(0.05), queries=2)
    assert scored(attacks={"square": square}).warnings == ()
    (warning,) = scored(attacks={"noise": noise}).warnings
    assert "cannot be differentiated" in warning and "gradient_free" in warning
    assert doubts(outside, X, Y) == (warning,)


@pytest.mark.parametrize("count", [600, 1500])
def test_a_sample_of_the_gradients_is_spread_over_all_images(count):
    x = np.linspace(0, 1, 2 * count, dtype=np.float32).reshape(count, 2)[:, ::-1]

    def flat_at_the_end(x):
        return jnp.where(x[:, :1] > 0.75, 4 * jax.lax.stop_gradient(x), 4 * x)

    task = Task.make(
        flat_at_the_end, x, np.zeros(count, int), key=KEY, bounds=(0.0, 1.0)
    )
    seen = probe.slopes(task, np.arange(count)).zero
    assert len(seen) == 512 and abs(seen.mean() - 0.25) < 0.01


def test_one_compiled_program_more_at_most(monkeypatch):
    batches = []

    def count(model, x, y, keys, **static):
        batches.append(x.shape)
        return original(model, x, y, keys, **static)

    original = probe._slopes
    monkeypatch.setattr(probe, "_slopes", count)
    x = np.resize(X, (70, *X.shape[1:]))
    y = np.resize(Y, 70)
    options = {"key": KEY, "devices": ONE, "batch_size": 32}
    assert evaluate(honest, (x, y), fgsm(), **options).warnings == ()
    assert len(set(batches)) == 1 and len(batches) == 3


# ------------------------------------------------------------- logits and settings


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda x: jax.nn.softmax(200 * honest(x)), PROBABILITIES),
        (lambda x: jax.nn.softmax(honest(x)), PROBABILITIES),
        (Partial(lambda w, x: honest(x) * w, jnp.float32(np.nan)), NOT_FINITE),
        (lambda x: honest(x) + jnp.log(x[:, 0, 0] - 0.3), NOT_FINITE),
        (VANISHING["constant"], CONSTANT),
    ],
)
def test_sees_logits_that_are_none(model, expected):
    doubt = next(text for text in found(model) if expected in text)
    assert ":" in doubt  # what it means, and what to do
    assert "-1" not in doubt


@pytest.mark.parametrize(
    ("ball", "bounds", "expected"),
    [
        (Linf(8), (0, 1), "become the same one"),
        (Linf(0.5), (0, 1), "become the same one"),
        (L2(128.0), (0, 1), "become the same one"),
        (L1(12 * 255), (0, 1), "become the same one"),
        (L0(12), (0, 1), "become the same one"),
        (Linf(np.where(np.arange(COUNT) == 3, 8.0, 0.1)), (0, 1), "become the same"),
        (Linf(200), (0, 255), "become the same one"),
        (Linf(0), (0, 1), "hardly move"),
        (Linf(8 // 255), (0, 1), "hardly move"),
        (L0(0.5), (0, 1), "hardly move"),
        (Linf(8 / 255), (0, 255), "hardly move"),
        (L2(0.1), (0, 255), "hardly move"),
        (Linf(0.3), (0, 1), None),
        (Linf(0.1 / 255), (0, 1), None),
        (L2(0.5), (0, 1), None),
        (L1(5), (0, 1), None),
        (L0(11), (0, 1), None),
        (Linf(8), (0, 255), None),
        (Linf(16 / 255), (-1, 1), None),
    ],
)
def test_radii_that_cannot_be_meant(ball, bounds, expected):
    low, high = bounds
    x = (low + (high - low) * X).clip(low, high)

    def rescaled(x):
        return honest((x - low) / (high - low))

    warnings = found(rescaled, x, ball=ball, bounds=bounds)
    assert [expected in text for text in warnings] == ([True] if expected else [])
    # 8 of 255 levels, in the unit of these images
    levels = f"{8 * (high - low) / 255:.3g}"
    assert not warnings or isinstance(ball, L0) or warnings[0].endswith(levels)


def test_a_radius_is_named_once_for_all_attacks():
    suite = {"again": functools.partial(attacks.pgd, ball=Linf(8.0), steps=1)} | fgsm(8)
    (warning,) = evaluate(honest, (X, Y), suite, key=KEY, devices=ONE).warnings
    assert warning.startswith("Linf(8) lets all images")
    curve = robust_accuracy_curve(
        honest, X, Y, attacks.fgsm, epsilons=[0.1, 8], key=KEY, devices=ONE
    )
    assert curve.warnings == (warning,)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((0, 255), "0.39 %"), ((-100, 100), "0.5 %"), ((0, 19), None), ((-1, 1), None)],
)
def test_bounds_that_the_images_do_not_fill(bounds, expected):
    x = X.copy()
    x[0, 0, 0] = 0
    x[1, 0, 0] = 1
    y = np.asarray(jnp.argmax(honest(x), axis=1))
    warnings = found(honest, x, y, bounds=bounds, ball=Linf(8 / 255))
    if expected is None:
        assert warnings == ()
        return
    (warning,) = warnings
    assert f"between 0 and 1 and span {expected} of bounds" in warning
    assert warning in evaluate(honest, (x, y), fgsm(), key=KEY, bounds=bounds).warnings


# ------------------------------------------------------------------------- the call


def test_needs_a_key_for_no_model_and_takes_one():
    def noisy(x, keys):
        return honest(x) + jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)

    assert found(noisy, eot=2) == found(noisy, eot=2, key=jax.random.key(7)) == ()
    assert found(honest, key=jax.random.split(KEY, COUNT)) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ball": Linf}, r"ball must have a radius, as in Linf\(0.03\)"),
        ({"ball": 0.3}, "ball must be Linf"),
        ({"ball": Linf(-1.0)}, "ball.eps must be"),
        ({"bounds": (1, 0)}, "bounds must be"),
        ({"eot": 0}, "eot must be"),
        ({"key": 3}, "key must be"),
        ({"x": X + 1}, "x must lie inside bounds"),
        ({"y": 3}, "y must have shape"),
        ({"y": Y + 4}, "y must hold labels 0 to 3"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"x": X, "y": Y} | change
    with pytest.raises(ValueError, match=message):
        found(honest, arguments.pop("x"), arguments.pop("y"), **arguments)


def test_clean_verdicts_of_many_batches_are_those_of_one():
    def made(batch_size):
        return Task.make(
            honest, X, Y, key=KEY, bounds=(0.0, 1.0), batch_size=batch_size, devices=ONE
        )

    one = attack_all(made(COUNT), None, np.arange(COUNT))
    many = attack_all(made(8), None, np.arange(COUNT))
    np.testing.assert_array_equal(one.predicted, many.predicted)
    np.testing.assert_allclose(one.margin, many.margin, atol=1e-5)


def test_a_radius_that_covers_the_images_but_not_the_bounds():
    """As where digits from 0 to 16 are divided by 255."""
    x = (X - X.min()) / (X.max() - X.min()) * 0.0625
    y = np.asarray(jnp.argmax(honest(x), axis=1))
    (warning,) = found(honest, x, y, ball=Linf(0.1))
    assert "Linf(0.1) lets any image become any other, as all lie between 0" in warning
    assert found(honest, x, y, ball=Linf(0.03)) == ()
