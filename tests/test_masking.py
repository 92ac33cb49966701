"""The battery notices what hides a gradient, by the right check, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from benchmarks.masked import KINDS, mask
from robjax import data, masking, models, training
from robjax.balls import L1, L2, Linf
from robjax.masking import thresholds
from robjax.training import FitConfig, objectives

KEY = jax.random.key(0)
BALL = Linf(0.2)
SIZE = 32
ONE = jax.devices()[:1]
# the checks that compare attacks
ATTACKS = ("growth", "steps", "restarts", "losses", "square", "transfer", "full_box")


def images(size=SIZE, classes=10):
    test = data.load("digits", "test")
    chosen = np.flatnonzero(test.labels < classes)[:size]
    x = data.to_float(test.images[chosen], test.scale)
    return jnp.asarray(x), jnp.asarray(test.labels[chosen])


def train(model, objective, epochs=12):
    config = FitConfig(
        epochs=epochs,
        batch_size=64,
        optimizer="adam",
        learning_rate=3e-3,
        warmup_epochs=4,
    )
    state = training.fit(
        model,
        data.load("digits", "train"),
        objective=objective,
        config=config,
        devices=ONE,
        progress=False,
    )
    return Partial(model.apply, state.weights)


# one object, so that every test with these networks shares what is compiled
MLP = models.MLP(10, widths=(100, 100))
MADRY = functools.partial(objectives.adversarial, ball=BALL, steps=7, step_size=0.05)


@pytest.fixture(scope="module")
def network():
    return train(MLP, MADRY)


@pytest.fixture(scope="module")
def standard():
    return train(MLP, objectives.standard)


def check(model, x=None, y=None, *, key=KEY, ball=BALL, **options):
    if x is None:
        x, y = images()
    return masking.check(model, x, y, key=key, ball=ball, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_caught_by_the_right_check(network, kind):
    report = check(mask(network, kind))
    assert set(KINDS[kind].caught_by) & set(report.raised)
    assert report.masked and "gradient masking" in report.verdict


@pytest.mark.parametrize("kind", ["quantised input", "half stopped", "rivals tie"])
def test_also_behind_a_network_that_is_not_robust(standard, kind):
    report = check(mask(standard, kind))
    assert set(KINDS[kind].caught_by) & set(report.raised)


@pytest.mark.parametrize("kind", ["saturated logits", "softmax", "noise from one key"])
def test_only_the_cause_is_named_where_attacks_still_work(network, kind):
    assert check(mask(network, kind)).raised == KINDS[kind].caught_by


@pytest.mark.parametrize("eps", [0.02, 0.2, 0.5])
def test_honest_networks_raise_nothing(network, standard, eps):
    for model in (network, standard):
        # the wrapper without a defence, which shares what is compiled
        report = check(mask(model, None), ball=Linf(eps))
        assert not report.masked, str(report)
        assert report.warnings == ()


def test_an_honest_convolutional_network_raises_nothing():
    net = models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32)
    report = check(train(net, objectives.standard, epochs=5))
    assert report.judged.mean() > 0.8
    assert not report.masked, str(report)


def linear(w, x):
    return x.reshape(x.shape[0], -1) @ w


def least_squares(x, y, classes):
    """A linear classifier of the images themselves, in their precision."""
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    targets = np.eye(classes)[np.asarray(y)] - 1 / classes
    gram = rows @ rows.T + 0.1 * np.eye(len(x))
    return Partial(
        linear, jnp.asarray(10 * rows.T @ np.linalg.solve(gram, targets), x.dtype)
    )


def test_two_classes_in_l1_and_new_arrays_compile_nothing():
    traces, first = [], 0

    def model(w, x):
        traces.append(None)
        return linear(w, x)

    x, y = images(classes=2)
    x = x.reshape(SIZE, -1)
    for seed in range(3):
        model_of = Partial(model, *least_squares(x, y, 2).args)
        ball = L1(2.0 + 0.2 * seed)
        report = check(model_of, x, y, key=jax.random.key(seed), ball=ball)
        assert report.judged.all() and not report.masked, str(report)
        assert "losses/dlr" not in report.numbers
        assert "square" in report.flags  # on rows of numbers, too
        first = first or len(traces)
        x = x[:, ::-1]
    assert len(traces) == first


def test_three_classes_in_float64_and_flat_images_in_l2():
    with jax.enable_x64(True):
        x, y = images(classes=3)
        x = x.astype(jnp.float64).reshape(SIZE, -1)
        report = check(least_squares(x, y, 3), x, y, ball=L2(0.5))
    assert report.numbers["gradient"].dtype == np.float64
    assert report.judged.all() and not report.masked, str(report)
    assert "losses/dlr" in report.numbers


def noisy(network, scale, x, keys):
    draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))
    return network(x + scale * (draw(keys) - 0.5))


def test_declared_noise_is_averaged_and_too_few_draws_are_noticed(network):
    little = check(Partial(noisy, network, jnp.float32(0.1)), eot=4)
    assert not little.masked, str(little)
    much = check(Partial(noisy, network, jnp.float32(10.0)), eot=4)
    assert "eot" in much.raised and "random" not in much.raised


def test_flags_depend_on_the_sample_alone_and_repeat(network):
    x, y = images()
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(SIZE))
    model = mask(network, "half stopped")
    together, again = check(model), check(model, key=keys)
    order = np.random.default_rng(0).permutation(SIZE)
    apart = check(model, x[order], y[order], key=keys[order])
    for name, number in together.numbers.items():
        np.testing.assert_array_equal(number, again.numbers[name])
        if not name.startswith(("random", "batch")):
            close = np.isclose(
                number[order], apart.numbers[name], atol=1e-3, rtol=1e-2, equal_nan=True
            )
            # a sign that reassociation flips sends an attack elsewhere
            assert close.mean() > 0.9, name
    for name, flags in together.flags.items():
        assert (flags[order] != apart.flags[name]).sum() <= 1, name


def test_report(network):
    report = check(mask(network, "stopped gradient"))
    assert report.raised[0] == "zero_gradient"
    assert f"{SIZE} of {SIZE} images" in report.warnings[0]
    assert "BPDA" in report.warnings[0]
    text = str(report)
    assert text == report.table() and report.verdict in text
    assert repr(report) == f"MaskingReport({report.verdict})"
    assert all(name in text for name in report.flags)
    assert set(report.flags) <= set(masking.CHECKS)
    assert set(report.flags) <= set(report.numbers)
    for name, flags in report.flags.items():
        assert flags.shape == (SIZE,) and flags.dtype == bool, name
    for name in ATTACKS:
        assert not report.flags[name][~report.judged].any(), name


def test_a_surrogate_shows_what_the_gradient_hides(network):
    hidden = mask(network, "stopped gradient")
    report = check(hidden, surrogate=mask(network, None))
    fooled = report.numbers["transfer/progress"][report.judged] == 1
    alone = report.numbers["white-box"][report.judged] == 1
    assert "transfer" in report.raised and fooled.sum() > alone.sum()


def test_chance_is_allowed_for_among_the_images_that_are_attacked():
    """1,000 images of which 20 are attacked, and 8 of these flagged: not by chance."""
    judged, eight = np.arange(1000) < 20, np.arange(1000) < 8
    quiet, numbers = np.zeros(1000, bool), np.zeros(1000)
    # chance: 2 % and 3 standard errors, 0.4 + 1.9 of 20 and 20 + 13.4 of 1,000
    for name, meaning in masking.CHECKS.items():
        report = masking.MaskingReport({name: eight}, {name: numbers}, judged, ())
        assert report.masked == (meaning.exact or name in ATTACKS), name
        asked = 20 if name in ATTACKS else 1000
        assert all(f"(8 of {asked} images)" in text for text in report.warnings)
        report = masking.MaskingReport({name: quiet}, {name: numbers}, quiet, ())
        assert not report.masked


def test_the_gradient_at_the_image_itself_is_looked_at():
    """The length of the first two pixels has no slope at 0, where these images are."""

    def model(x):
        length = jnp.linalg.norm(x[:, :2], axis=1)
        return jnp.stack([x[:, 2] - 0.1, length], axis=1)

    x = jnp.tile(jnp.array([[0, 0, 0.5]]), (5, 1))
    report = check(model, x, jnp.zeros(5, int), ball=Linf(0.3))
    assert "finite" in report.raised and report.flags["finite"].all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_no_mask_and_hides_none(dtype):
    x, y = images(classes=4)
    honest = least_squares(x, y, 4)

    def model(x):
        return honest(x.astype(dtype)).astype(jnp.float32)

    report = check(model, x, y, ball=Linf(0.1))
    assert report.raised == () and "check it in float32, too" in str(report)
    report = check(lambda x: jax.nn.softmax(model(x).astype(dtype)), x, y, ball=BALL)
    assert "probabilities" in report.raised


def test_a_model_that_asks_for_the_size_of_the_batch():
    x, y = images(classes=4)
    honest = least_squares(x, y, 4)

    def model(x):
        return honest(x) + jnp.array([[0, 1.0, 0, 0]]) * (len(x) > 20)

    report = check(model, x, y, ball=Linf(0.1))
    assert report.flags["batch"].any() and "batch" in report.raised


def test_linear_models_raise_nothing_in_linf():
    x, y = images(classes=4)
    report = check(least_squares(x, y, 4), x, y, ball=Linf(0.1))
    assert report.judged.all() and not report.masked, str(report)
    assert {"square", "transfer", "full_box"} <= set(report.flags)
    assert "losses/dlr" in report.numbers and report.warnings == ()


def test_nothing_classified_correctly(network):
    x, _ = images()
    wrong = (jnp.argmax(network(x), axis=1) + 1) % 10
    report = check(mask(network, None), x, wrong)
    assert not report.judged.any() and "no attacks were compared" in str(report)
    assert not report.masked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ball": Linf(0.0)}, "ball.eps must be above 0"),
        ({"ball": 0.1}, "ball must be"),
        ({"queries": 0}, "queries must be"),
        ({"eot": 0}, "eot must be"),
        ({"eot": 2}, "logits_fn must take"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"key": 3}, "key must be"),
        ({"surrogate": 3}, "surrogate is a model, whose logits_fn must be"),
        ({"surrogate": lambda x: jnp.zeros((x.shape[0], 3))}, "surrogate must have"),
    ],
)
def test_bad_arguments(change, message):
    x, y = images()
    w = jnp.zeros((64, 10))
    with pytest.raises(ValueError, match=message):
        check(Partial(linear, w), x, y, **change)


def test_bad_labels_and_images():
    x, y = images()
    model = Partial(linear, jnp.zeros((64, 10)))
    with pytest.raises(ValueError, match="y must hold labels 0 to 9"):
        check(model, x, y + 10)
    with pytest.raises(ValueError, match="x must lie inside bounds"):
        check(model, 2 * x, y)


def test_thresholds():
    assert 1 <= thresholds.tolerated(8) < 2 and thresholds.tolerated(1000) < 40
    clean = np.array([-2.0, -2.0, -2.0, 1.0])
    met = np.array([-1.0, 3.0, -2.0, 5.0])
    np.testing.assert_array_equal(thresholds.progress(met, clean), [0.5, 1, 0, 0])
