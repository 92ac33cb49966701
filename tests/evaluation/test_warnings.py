"""What an evaluation warns of, and the arguments that it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import Linf
from robjax.evaluation import evaluate
from tests.evaluation.models import COUNT, KEY, linear, moved, pgd

# ------------------------------------------------------------------------- warnings


def test_verdicts_do_not_trust_the_attack(binary):
    logits_fn, images, labels, _ = binary

    def liar(logits_fn, x, y, *, key, bounds):
        return moved(x, x, jnp.ones(x.shape[0], bool))

    result = evaluate(logits_fn, (images, labels), {"liar": liar}, key=KEY)
    np.testing.assert_array_equal(result.attacks["liar"].robust, result.correct)
    (warning,) = result.warnings
    assert warning.startswith(f"liar: {result.correct.sum()} verdicts differ")


def test_a_success_that_does_not_count_has_no_first_step(binary):
    logits_fn, images, labels, _ = binary

    def far(logits_fn, x, y, *, key, bounds, ball):
        """Crosses the boundary, outside the ball for every other label."""
        x_adv = jnp.where((y == 0)[:, None, None, None], 1 - x, x)
        count = jnp.full(len(x), 7, jnp.int32)
        return moved(x, x_adv, jnp.ones(len(x), bool))._replace(first_success=count)

    for ball in (Linf(1.0), Linf(1e-3)):
        named = {"far": functools.partial(far, ball=ball)}
        result = evaluate(logits_fn, (images, labels), named, key=KEY)
        table = result.attacks["far"]
        assert (table.first_success[~result.correct] == 0).all()
        assert (table.first_success[table.robust] == -1).all()
        fooled = result.correct & ~table.robust
        assert (table.first_success[fooled] == 7).all()
        assert fooled.any() == (ball.eps == 1.0) and table.robust.any()


def test_warns_of_images_outside_the_bounds(binary):
    logits_fn, images, labels, _ = binary

    def overstep(logits_fn, x, y, *, key, bounds):
        x_adv = x.at[:, 0, 0, 0].set(jnp.where(y == 0, 1.5, 0.5))
        return moved(x, x_adv, jnp.argmax(logits_fn(x_adv), -1) != y)

    result = evaluate(logits_fn, (images, labels), {"overstep": overstep}, key=KEY)
    (warning,) = result.warnings
    outside = result.correct & (labels == 0)
    assert warning.startswith(f"overstep: {outside.sum()} images returned outside")
    assert result.attacks["overstep"].robust[outside].all()


def test_logits_that_are_not_finite_count_as_wrong(binary):
    logits_fn, images, labels, _ = binary
    brightest = images.reshape(COUNT, -1).max(axis=1)
    threshold = np.median(brightest)

    def fragile(x):
        broken = jnp.max(x, axis=(1, 2, 3)) > threshold
        return jnp.where(broken[:, None], jnp.nan, logits_fn(x))

    result = evaluate(fragile, (images, labels), {}, key=KEY)
    broken = brightest > threshold
    assert (result.predictions[broken] == -1).all()
    assert not result.correct[broken].any()
    (warning,) = result.warnings
    assert warning.startswith(f"{broken.sum()} of {COUNT} images have logits that")
    assert "not finite" in warning


def test_warns_of_a_constant_classifier():
    images = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2])

    def constant(x):
        return jnp.zeros((x.shape[0], 3)).at[:, 1].set(2.0)

    result = evaluate(constant, (images, labels), {}, key=KEY)
    (warning,) = result.warnings
    assert warning.startswith("every image is classified as 1")
    assert "warning: every image is classified as 1" in result.table()


def both_results(model, images, labels, named, **options):
    """The warnings of an evaluation and of AutoAttack, which must agree."""
    images, named = jnp.asarray(images), named or {"fgsm": attacks.fgsm}
    ball, options = Linf(0.05), {"key": KEY, "devices": jax.devices()[:1], **options}
    bound = {name: functools.partial(a, ball=ball) for name, a in named.items()}
    one = evaluate(model, (images, labels), bound, cascade=True, **options)
    other = attacks.autoattack(
        model, images, labels, ball=ball, version="custom", attacks=named, **options
    )
    assert one.warnings == other.warnings
    return one.warnings


def test_warns_of_outputs_that_are_random(binary):
    logits_fn, images, labels, _ = binary
    rng = np.random.default_rng(0)

    def model(scale, x):
        """Noise that no key decides."""
        shape = jax.ShapeDtypeStruct((x.shape[0], 2), x.dtype)
        noise = jax.pure_callback(
            lambda x: rng.normal(size=(len(x), 2)).astype(x.dtype),
            *(shape, jax.lax.stop_gradient(x)),
            vmap_method="sequential",
        )
        return logits_fn(x) + scale * jax.lax.stop_gradient(noise)

    given = (images, labels)
    (warning,) = evaluate(Partial(model, 0.1), given, {}, key=KEY).warnings
    assert warning.startswith("the same images give other logits in a second pass")
    assert evaluate(Partial(model, 0.0), given, {}, key=KEY).warnings == ()


def test_keyed_noise_repeats_itself(binary):
    logits_fn, images, labels, _ = binary

    def model(x, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        return logits_fn(x) + 0.1 * noise

    assert evaluate(model, (images, labels), {}, key=KEY, eot=3).warnings == ()


def test_warns_of_outputs_that_are_probabilities(network):
    logits_fn, images, labels = network

    def softmax(x):
        return jax.nn.softmax(logits_fn(x))

    (warning,) = both_results(softmax, images, labels, {})
    assert warning.startswith("the outputs are probabilities")
    # whose sum is rounded in half precision
    for dtype in (jnp.float16, jnp.bfloat16):
        found = both_results(lambda x: softmax(x).astype(dtype), images, labels, {})  # noqa: B023
        assert any(text.startswith("the outputs are probabilities") for text in found)
    # neither what is not below 0, nor what adds up to 1
    for model in (lambda x: 2 * softmax(x), lambda x: 3 * softmax(x) - 2 / 3):
        assert both_results(model, images, labels, {}) == ()


def test_warns_where_square_breaks_what_gradients_do_not(network):
    logits_fn, images, labels = network
    hidden = Partial(lambda f, x: f(jax.lax.stop_gradient(x)), logits_fn)
    square = functools.partial(attacks.square, queries=60)
    named = {"fgsm": attacks.fgsm, "black box": square}
    vanished, warning = both_results(hidden, images, labels, named)
    assert vanished.startswith(f"{COUNT} of {COUNT} images have an input gradient of")
    assert warning.startswith("black box: fooled ") and "masked" in warning
    # alone it shows nothing, and where gradients work it adds nothing
    assert both_results(hidden, images, labels, {"black box": square}) == ()
    assert both_results(logits_fn, images, labels, named) == ()


def test_an_attack_that_leaves_its_ball_is_reported():
    x, y = np.full((4, 3), 0.25, np.float32), np.zeros(4, np.int32)

    def cheat(logits_fn, x, y, *, key, bounds, ball):
        honest = attacks.fgsm(logits_fn, x, y, ball=ball, bounds=bounds)
        return honest._replace(x_adv=1 - x)

    model = Partial(linear, jnp.ones((3, 2)))
    suite = {"cheat": functools.partial(cheat, ball=Linf(0.01))}
    result = evaluate(model, (x, y), suite, key=KEY)
    assert any("4 images returned outside the ball" in w for w in result.warnings)
    np.testing.assert_allclose(result.attacks["cheat"].distance, 0.5)


# -------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "digits"}, "data must be"),
        ({"data": (np.zeros((4, 9), np.uint8), np.zeros(4, int))}, "data images"),
        ({"data": (np.full((4, 9), np.nan), np.zeros(4, int))}, "data images"),
        ({"data": (np.full((4, 9), 1.5), np.zeros(4, int))}, "data images"),
        ({"data": (np.zeros((0, 9)), np.zeros(0, int))}, "data images"),
        ({"data": (np.zeros((4, 9)), np.zeros(4))}, "data labels"),
        ({"data": (np.zeros((4, 9)), np.zeros(3, int))}, "data labels"),
        ({"data": (np.zeros((4, 9)), np.array([0, 1, 2, 0]))}, "data labels"),
        ({"data": (np.zeros((4, 9)), np.array([0, 1, -1, 0]))}, "data labels"),
        ({"key": 0}, "key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "key"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"devices": []}, "devices"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"logits_fn": 3}, "logits_fn"),
        ({"logits_fn": lambda x: x[:, 0]}, "logits"),
        ({"attacks": {"mine": 3}}, "attacks"),
        ({"attacks": {"mine": pgd(0.1, targeted=True)}}, "untargeted"),
        ({"attacks": {"mine": pgd(-0.1)}}, "eps"),
        ({"attacks": {"mine": pgd(float("nan"))}}, "eps"),
        ({"attacks": {"mine": pgd(0.1, steps=0)}}, "steps"),
    ],
)
def test_bad_input_is_named_before_anything_runs(change, message):
    def logits_fn(x):
        def fail(x):
            raise AssertionError("the model ran")

        shape = jax.ShapeDtypeStruct((x.shape[0], 2), x.dtype)
        return jax.pure_callback(fail, shape, x, vmap_method="sequential")

    arguments = {
        "logits_fn": logits_fn,
        "data": (np.zeros((4, 9)), np.zeros(4, int)),
        "attacks": {},
        "key": KEY,
    }
    arguments |= change
    with pytest.raises(ValueError, match=message):
        evaluate(
            arguments.pop("logits_fn"),
            arguments.pop("data"),
            arguments.pop("attacks"),
            **arguments,
        )
