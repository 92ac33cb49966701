"""Undefended networks of any shape raise nothing; what is weak in them is a note."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.masked import mask, padded, train_mlps
from robjax import data, masking, models
from robjax.balls import Linf
from robjax.masking import thresholds
from robjax.masking.probes import Look
from robjax.masking.thresholds import Findings, Met

SIZE = 128


def images():
    test = data.load("digits", "test")
    x = data.to_float(test.images[:SIZE], test.scale)
    return jnp.asarray(x), jnp.asarray(test.labels[:SIZE])


def check(model, eps):
    return masking.check(model, *images(), key=jax.random.key(0), ball=Linf(eps))


def test_a_padded_mlp_is_the_same_function():
    x, _ = images()
    small = models.MLP(10, widths=(8, 8, 8))
    variables = jax.jit(small.init)(jax.random.key(1), x)
    large = models.MLP(10, widths=5 * (12,))
    z, pull = jax.vjp(lambda v: small.apply(variables, v), x)
    same, pull_same = jax.vjp(lambda v: large.apply(padded(variables, 5, 12), v), x)
    np.testing.assert_allclose(z, same, atol=1e-5)
    np.testing.assert_allclose(pull(z)[0], pull_same(z)[0], atol=1e-5)


# deep, narrow and hardly confident: one loss or another does nothing on some images,
# and steps of ε/4 run through many kinks
STANDARD = [(10, 14, 1), (10, 32, 1), (12, 20, 0), (12, 14, 0), (3, 8, 0), (1, 8, 1)]
ADVERSARIAL = [(4, 8, 0), (4, 8, 1), (8, 20, 0)]


@pytest.fixture(scope="module")
def standard():
    return dict(zip(STANDARD, train_mlps(STANDARD, 12, 32, False), strict=True))


@pytest.fixture(scope="module")
def adversarial():
    return dict(zip(ADVERSARIAL, train_mlps(ADVERSARIAL, 12, 32, True), strict=True))


def raises_nothing(model):
    for eps in (0.05, 0.2):
        report = check(mask(model, None), eps)
        assert report.judged.sum() > SIZE / 4
        assert not report.masked, str(report)


@pytest.mark.parametrize("shape", STANDARD)
def test_undefended_networks_of_any_shape_raise_nothing(standard, shape):
    raises_nothing(standard[shape])


@pytest.mark.parametrize("shape", ADVERSARIAL)
def test_hardly_confident_networks_raise_nothing(adversarial, shape):
    raises_nothing(adversarial[shape])


def test_a_loss_that_is_weak_on_an_honest_network_is_named_in_a_note(standard):
    report = check(mask(standard[10, 14, 1], None), 0.05)
    (note,) = report.notes
    assert note.startswith("dlr alone does nothing on") and note in str(report)
    assert report.warnings == () and "no sign of" in report.verdict


@pytest.mark.parametrize("shape", STANDARD)
@pytest.mark.parametrize("kind", ["rivals tie", "third falls"])
def test_traps_for_dlr_are_told_from_its_weakness(standard, shape, kind):
    for eps in (0.05, 0.2):
        report = check(mask(standard[shape], kind), eps)
        assert "losses" in report.raised, str(report)
        if report.raised == ("losses",):
            assert "accuracy under one loss alone" in report.verdict


@pytest.mark.parametrize("shape", [(12, 14, 0), (1, 8, 1)])
def test_ripples_are_told_from_the_kinks_of_deep_networks(standard, shape):
    for eps in (0.1, 0.2):
        assert "gradient" in check(mask(standard[shape], "ripples"), eps).raised


def made(**met):
    """What the checks of attacks find where each attack met these margins; clean −1."""
    look = Look(**dict.fromkeys(Look._fields, jnp.ones((4, 3))))
    fooled, nothing = np.ones(3), -np.ones(3)
    attacks = {"restarts": np.ones((4, 3)), "one_step": nothing, "quarter": nothing}
    attacks |= dict.fromkeys(("margin", "dlr", "whole"), fooled)
    attacks |= dict.fromkeys(("transfer", "square", "clean"), nothing)
    return thresholds.attacks(Met(**attacks | met), look)


def raised(findings):
    return [name for name, flags in findings.flags.items() if flags.any()]


def test_only_the_default_loss_is_a_flag_where_it_does_nothing():
    weak, clean = np.full(3, -0.9), -np.ones(3)
    assert raised(made()) == []
    assert raised(made(margin=weak, quarter=clean)) == []
    assert raised(made(dlr=weak)) == []
    assert raised(made(restarts=np.stack(4 * [weak]))) == ["losses"]
    # one of four starts works: the default still finds it
    lucky = np.stack([*3 * [weak], np.ones(3)])
    assert raised(made(restarts=lucky)) == []
    # no loss fools the model, so that the verdict is the same with each of them
    close = np.full(3, -0.1)
    everything = {"margin": close, "dlr": close, "restarts": np.stack(4 * [weak])}
    assert raised(made(**everything)) == []


def test_restarts_and_steps_are_flags_where_no_other_loss_works():
    weak = np.full(3, -0.9)
    lucky = np.stack([*3 * [weak], np.ones(3)])
    others = {"margin": weak, "dlr": weak}
    assert raised(made(restarts=lucky, **others)) == ["restarts"]
    found = made(restarts=np.stack(4 * [weak]), one_step=np.ones(3), **others)
    assert raised(found) == ["steps"]


def test_weak_losses_are_counted_among_the_images_that_were_attacked():
    judged = np.arange(100) < 50
    numbers = {
        "white-box": np.ones(100),
        "losses/cross-entropy": np.where(np.arange(100) < 10, 0.1, 1),
        "losses/margin": np.where(np.arange(100) < 3, 0.1, 1),
        "losses/dlr": np.where(judged, 1, 0.1),
    }
    (sentence,) = thresholds.weak_losses(Findings({}, numbers), judged)
    assert sentence.startswith("cross-entropy alone does nothing on 10 of 50 images")
