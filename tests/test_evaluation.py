"""robjax.evaluation against closed forms, and its independence of how it is run."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, data, evaluation
from robjax.balls import Linf
from robjax.evaluation import evaluate
from robjax.models import MLP

KEY = jax.random.key(0)
COUNT, SHAPE = 45, (3, 3, 1)


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def binary():
    """A linear two-class model, images that no box constrains, noisy labels."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(9, 2)).astype(np.float32)
    # one score for each class, centred so that the classes are balanced
    images = rng.uniform(0.3, 0.7, size=(COUNT, *SHAPE)).astype(np.float32)
    scores = linear(weights, images - 0.5)
    labels = np.where(rng.random(COUNT) < 0.8, scores.argmax(1), scores.argmin(1))
    return Partial(centred, jnp.asarray(weights)), images, labels, weights


def centred(weights, x):
    return linear(weights, x - 0.5)


@pytest.fixture(scope="module")
def network():
    """An untrained MLP whose attacks succeed on some of the images, and not others."""
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(COUNT, *SHAPE)).astype(np.float32)
    model = MLP(3, widths=(16,))
    variables = model.init(jax.random.key(3), jnp.asarray(images))
    logits_fn = Partial(model.apply, variables)
    labels = np.asarray(jnp.argmax(logits_fn(jnp.asarray(images)), axis=-1))
    return logits_fn, images, labels


def pgd(eps, steps=10, **options):
    return functools.partial(attacks.pgd, ball=Linf(eps), steps=steps, **options)


class FakeResult(NamedTuple):
    """What an attack returns, for attacks whose effect is known by construction."""

    x_adv: jax.Array
    success: jax.Array
    loss: jax.Array
    first_success: jax.Array
    distance: jax.Array
    queries: jax.Array


def moved(x, x_adv, success):
    """The result of moving x to x_adv and claiming `success` [B]."""
    count = x.shape[0]
    size = jnp.max(jnp.abs(x_adv - x).reshape(count, -1), axis=1)
    zeros = jnp.zeros(count, jnp.int32)
    return FakeResult(x_adv, success, size, zeros, size, zeros)


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_linear_model_matches_the_closed_form(binary, eps):
    logits_fn, images, labels, weights = binary
    # robust iff (w_y − w_k)·(x − ½) > ε‖w_y − w_k‖₁, in float64
    gap = weights[:, 0].astype(float) - weights[:, 1]
    sign = 1 - 2 * labels
    margin = sign * ((images.reshape(COUNT, -1).astype(float) - 0.5) @ gap)
    expected = margin > eps * np.abs(gap).sum()
    assert np.abs(margin - eps * np.abs(gap).sum()).min() > 1e-4  # no borderline case
    assert 0 < expected.mean() < (margin > 0).mean() < 1
    fgsm = functools.partial(attacks.fgsm, ball=Linf(eps))
    result = evaluate(
        logits_fn, (images, labels), {"fgsm": fgsm, "pgd": pgd(eps)}, key=KEY
    )
    np.testing.assert_array_equal(result.correct, margin > 0)
    np.testing.assert_array_equal(result.attacks["fgsm"].robust, expected)
    np.testing.assert_array_equal(result.attacks["pgd"].robust, expected)
    distance = np.where(result.correct, eps, 0)  # the others need no attack
    np.testing.assert_allclose(result.attacks["fgsm"].distance, distance, rtol=1e-5)
    share = expected.mean()
    assert result.robust_accuracy("pgd").mean == pytest.approx(share)
    stderr = np.sqrt(share * (1 - share) / COUNT)
    assert result.robust_accuracy().stderr == pytest.approx(stderr)
    assert result.warnings == ()


STRONG = {
    "apgd": functools.partial(attacks.apgd, steps=10),
    "fab": functools.partial(attacks.fab, steps=5),
    "square": functools.partial(attacks.square, queries=60),
}


@pytest.mark.parametrize("name", STRONG)
def test_a_wider_ball_leaves_less_of_a_network(network, name):
    logits_fn, images, labels = network

    def robust(eps):
        # an array is traced, so that one program serves all radii
        attack = functools.partial(STRONG[name], ball=Linf(jnp.float32(eps)))
        given = (images, labels)
        return evaluate(
            logits_fn, given, {name: attack}, key=KEY, devices=jax.devices()[:1]
        ).robust

    found = [robust(eps) for eps in (0.003, 0.03, 0.1, 0.2, 0.4, 1.0)]
    rates = [each.mean() for each in found]
    assert rates[0] > 0.8 and rates[-1] < 0.2 and len(set(rates)) > 3, rates
    assert rates == sorted(rates, reverse=True)
    if name == "fab":  # which looks for the nearest, whatever the radius
        for wide, narrow in zip(found[1:], found, strict=False):
            assert (wide <= narrow).all()


def test_robust_needs_correct_and_worst_case_needs_all(binary):
    logits_fn, images, labels, _ = binary

    def flip_dark(logits_fn, x, y, *, key, bounds):
        """Reflects images darker than ½ on average, which flips a centred score."""
        dark = jnp.mean(x, axis=(1, 2, 3)) < 0.5
        x_adv = jnp.where(dark[:, None, None, None], 1 - x, x)
        return moved(x, x_adv, jnp.argmax(logits_fn(x_adv), -1) != y)

    def flip_bright(logits_fn, x, y, *, key, bounds):
        bright = jnp.mean(x, axis=(1, 2, 3)) >= 0.5
        x_adv = jnp.where(bright[:, None, None, None], 1 - x, x)
        return moved(x, x_adv, jnp.argmax(logits_fn(x_adv), -1) != y)

    both = {"dark": flip_dark, "bright": flip_bright}
    result = evaluate(logits_fn, (images, labels), both, key=KEY)
    dark = images.mean(axis=(1, 2, 3)) < 0.5
    np.testing.assert_array_equal(result.attacks["dark"].robust, result.correct & ~dark)
    np.testing.assert_array_equal(
        result.attacks["bright"].robust, result.correct & dark
    )
    assert result.accuracy.mean > 0.5
    assert result.robust_accuracy().mean == 0


def test_no_attacks_gives_clean_accuracy(binary):
    logits_fn, images, labels, _ = binary
    result = evaluate(logits_fn, (images, labels), {}, key=KEY)
    np.testing.assert_array_equal(result.robust, result.correct)


# ---------------------------------------------------- the same table however it is run


def assert_same(one, other):
    np.testing.assert_array_equal(one.predictions, other.predictions)
    for name, table in one.attacks.items():
        again = other.attacks[name]
        np.testing.assert_array_equal(table.robust, again.robust)
        np.testing.assert_array_equal(table.first_success, again.first_success)
        np.testing.assert_allclose(table.margin, again.margin, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(table.distance, again.distance, atol=1e-6)


def random_attacks():
    """Too few small steps to forget the random start, which so decides the verdicts."""
    return {"pgd": pgd(0.2, steps=2, step_size=0.02, restarts=2, momentum=0.5)}


@pytest.mark.parametrize("batch_size", [1, 7, 44])
def test_any_batch_size_gives_the_same_table(network, batch_size):
    logits_fn, images, labels = network
    whole, split = (
        evaluate(
            logits_fn,
            (images, labels),
            random_attacks(),
            key=KEY,
            batch_size=size,
            devices=jax.devices()[:1],
        )
        for size in (COUNT, batch_size)
    )
    assert_same(whole, split)


def test_the_draws_matter(network):
    """Otherwise equal tables would say nothing about the keys."""
    logits_fn, images, labels = network
    one, other = (
        evaluate(
            logits_fn,
            (images, labels),
            random_attacks(),
            key=jax.random.key(seed),
            devices=jax.devices()[:1],
        )
        for seed in (0, 1)
    )
    margin, again = (table.attacks["pgd"].margin for table in (one, other))
    assert not np.allclose(margin, again, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 simulated devices")
def test_eight_devices_give_the_table_of_one(network):
    logits_fn, images, labels = network
    one, eight = (
        evaluate(
            logits_fn,
            (images, labels),
            random_attacks(),
            key=KEY,
            batch_size=20,
            devices=jax.devices()[:count],
        )
        for count in (1, 8)
    )
    assert_same(one, eight)


def test_a_dataset_of_bytes_equals_its_floats(network):
    logits_fn, _, labels = network
    rng = np.random.default_rng(2)
    images = rng.integers(0, 17, size=(COUNT, *SHAPE), dtype=np.uint8)
    own = data.from_arrays(images, labels.astype(np.int32), num_classes=3, scale=16.0)
    floats = (images / np.float32(16), labels)
    one, other = (
        evaluate(logits_fn, given, random_attacks(), key=KEY, devices=jax.devices()[:1])
        for given in (own, floats)
    )
    assert_same(one, other)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_padding_is_never_counted(batch_size):
    """Only the last of five images is wrong, and padding repeats an image."""
    images = np.linspace(0, 1, 5, dtype=np.float32)[:, None]
    labels = np.array([0, 0, 0, 0, 0])

    def logits_fn(x):
        return jnp.concatenate([0.9 - x, x - 0.9], axis=1)

    result = evaluate(logits_fn, (images, labels), {}, key=KEY, batch_size=batch_size)
    np.testing.assert_array_equal(result.predictions, [0, 0, 0, 0, 1])
    assert result.accuracy.mean == pytest.approx(0.8)


def test_batches_weights_and_eps_do_not_trace_again(network):
    logits_fn, images, labels = network
    traces = []

    def counted(variables, x):
        traces.append(x.shape)
        return logits_fn.func(variables, x)

    def run(scale, eps, count):
        variables = jax.tree.map(lambda w: scale * w, logits_fn.args[0])
        given = (images[:count], labels[:count])
        named = {"pgd": pgd(eps, steps=2)}
        model = Partial(counted, variables)
        evaluate(model, given, named, key=KEY, batch_size=8, devices=jax.devices()[:1])
        return len(traces)

    first = run(1.0, 0.1, COUNT)
    assert run(0.5, 0.2, 21) == first  # batches of 8, the last with padding


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
    assert warning.startswith(f"{broken.sum()} images have logits that are not finite")


def test_warns_of_a_constant_classifier():
    images = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2])

    def constant(x):
        return jnp.zeros((x.shape[0], 3)).at[:, 1].set(2.0)

    result = evaluate(constant, (images, labels), {}, key=KEY)
    assert result.warnings == ("every image is classified as 1",)
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
    # neither what is not below 0, nor what adds up to 1
    for model in (lambda x: 2 * softmax(x), lambda x: 3 * softmax(x) - 2 / 3):
        assert both_results(model, images, labels, {}) == ()


def test_warns_where_square_breaks_what_gradients_do_not(network):
    logits_fn, images, labels = network
    hidden = Partial(lambda f, x: f(jax.lax.stop_gradient(x)), logits_fn)
    square = functools.partial(attacks.square, queries=60)
    named = {"fgsm": attacks.fgsm, "black box": square}
    (warning,) = both_results(hidden, images, labels, named)
    assert warning.startswith("black box: fooled ") and "masked" in warning
    # alone it shows nothing, and where gradients work it adds nothing
    assert both_results(hidden, images, labels, {"black box": square}) == ()
    assert both_results(logits_fn, images, labels, named) == ()


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


# ------------------------------------------------------------------------------ files


def test_saves_the_table_and_prints_it(binary, tmp_path):
    logits_fn, images, labels, _ = binary
    result = evaluate(
        logits_fn, (images, labels), {"a": pgd(0.05), "b": pgd(0.1)}, key=KEY
    )
    path = tmp_path / "table.npz"
    result.save(path)
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["label"], labels)
        np.testing.assert_array_equal(saved["prediction"], result.predictions)
        for name, table in result.attacks.items():
            for column, values in table._asdict().items():
                np.testing.assert_array_equal(saved[f"{name}/{column}"], values)
    rows = result.table().splitlines()
    assert [row.split()[0] for row in rows] == ["accuracy", "clean", "a", "b", "worst"]
    assert f"{100 * result.accuracy.mean:.2f}" in rows[1]


def test_proportion_is_the_binomial_standard_error():
    assert evaluation.proportion(np.array([True, False, False, False])) == (
        0.25,
        pytest.approx(np.sqrt(0.25 * 0.75 / 4)),
    )


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


def test_a_radius_for_each_sample_follows_it_into_its_batch(binary):
    logits_fn, images, labels, _ = binary
    radii = np.linspace(0.01, 0.15, COUNT, dtype=np.float32)
    one = evaluate(
        logits_fn, (images, labels), {"pgd": pgd(jnp.asarray(radii))}, key=KEY,
        batch_size=7, devices=jax.devices()[:2],
    )  # fmt: skip
    for i in (0, 20, 44):
        alone = evaluate(
            logits_fn, (images, labels), {"pgd": pgd(float(radii[i]))}, key=KEY
        )
        assert one.attacks["pgd"].robust[i] == alone.attacks["pgd"].robust[i]
    tried = one.correct
    np.testing.assert_allclose(one.attacks["pgd"].distance[tried], radii[tried], 1e-5)
    suite = {"pgd": pgd(jnp.ones(4))}
    with pytest.raises(ValueError, match=r"ball\.eps must have shape"):
        evaluate(logits_fn, (images, labels), suite, key=KEY)
