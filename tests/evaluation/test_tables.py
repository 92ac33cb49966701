"""robjax.evaluation against closed forms, and its independence of how it is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, data, evaluation
from robjax.balls import Linf
from robjax.evaluation import evaluate
from tests.evaluation.models import COUNT, KEY, SHAPE, moved, pgd

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


def random_table(network, *, key=KEY, devices=1, **options):
    logits_fn, images, labels = network
    options |= {"key": key, "devices": jax.devices()[:devices]}
    return evaluate(logits_fn, (images, labels), random_attacks(), **options)


@pytest.mark.parametrize("batch_size", [1, 7, 44])
def test_any_batch_size_gives_the_same_table(network, batch_size):
    whole = random_table(network, batch_size=COUNT)
    assert_same(whole, random_table(network, batch_size=batch_size))


def test_the_draws_matter(network):
    """Otherwise equal tables would say nothing about the keys."""
    one, other = (random_table(network, key=jax.random.key(seed)) for seed in (0, 1))
    margin, again = (table.attacks["pgd"].margin for table in (one, other))
    assert not np.allclose(margin, again, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 simulated devices")
def test_eight_devices_give_the_table_of_one(network):
    one, eight = (
        random_table(network, batch_size=20, devices=count) for count in (1, 8)
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


def test_images_that_fooled_are_given_back_when_asked_for(binary):
    logits_fn, images, labels, _ = binary
    given = (images, labels)
    found = evaluate(
        logits_fn, given, {"pgd": pgd(0.05)}, key=KEY, batch_size=16, keep_images=True
    )
    assert found.x_adv is not None and found.x_adv.shape == images.shape
    predicted = np.asarray(logits_fn(jnp.asarray(found.x_adv))).argmax(1)
    np.testing.assert_array_equal(predicted == labels, found.robust)
    moved = np.abs(found.x_adv - images).max(axis=tuple(range(1, images.ndim)))
    np.testing.assert_array_equal(moved > 0, found.correct & ~found.robust)
    assert evaluate(logits_fn, given, {}, key=KEY).x_adv is None


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
