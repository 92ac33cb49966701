"""Attacks from labels alone: as near as the exact distance, never above the budget."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L1, L2, Linf
from robjax.evaluation import evaluate
from robjax.evaluation.attack import uses_gradients
from robjax.model import from_labels
from tests.oracles.linear_attacks import shortest

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BALLS = {"L2": L2, "Linf": Linf}
CASES = [
    (attacks.hop_skip_jump, "L2"),
    (attacks.hop_skip_jump, "Linf"),
    (attacks.boundary_attack, "L2"),
]
each_case = pytest.mark.parametrize(("attack", "norm"), CASES)
# a third of the pixels at the ends of the box
X = np.clip(RNG.uniform(-0.25, 1.25, size=(8, 6, 4)), 0, 1).astype(np.float32)
W = RNG.normal(size=(24, 2)).astype(np.float32)
BIAS = np.float32([-np.median(X.reshape(8, -1) @ (W[:, 0] - W[:, 1])), 0])
Y = np.argmax(X.reshape(8, -1) @ W + BIAS, axis=1)


def labels(w, bias, x):
    """The label as logits: nothing but the class can be read off."""
    return jax.nn.one_hot(jnp.argmax(x.reshape(len(x), -1) @ w + bias[None], axis=1), 2)


MODEL = Partial(labels, W, BIAS)


@each_case
def test_within_five_percent_of_the_exact_distance(attack, norm):
    y = np.where(np.arange(8) == 3, 1 - Y, Y)  # one sample is misclassified
    exact = np.where(y == Y, shortest(W, BIAS, X, Y, norm), 0)
    eps = exact * np.where(np.arange(8) % 2, 0.999, 1.05)
    ball = BALLS[norm](jnp.asarray(eps, jnp.float32))
    out = attack(MODEL, X, y, key=KEY, ball=ball)
    assert (out.distance >= exact * (1 - 1e-5)).all()
    assert (out.distance <= exact * 1.05).all()
    np.testing.assert_array_equal(out.success, (np.arange(8) % 2 == 0) | (y != Y))
    np.testing.assert_array_equal(out.queries, np.where(y == Y, 10_000, 1))
    np.testing.assert_array_equal(out.first_success >= 0, out.success)
    assert out.first_success[3] == 0 and out.distance[3] == 0
    delta = np.asarray(out.x_adv - X, np.float64).reshape(8, -1)
    order = {"L2": 2, "Linf": np.inf}[norm]
    length = np.linalg.norm(delta, ord=order, axis=1)
    np.testing.assert_allclose(length, np.where(out.success, out.distance, 0), 1e-5)
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    assert not uses_gradients(attack)


@pytest.mark.parametrize(("attack", "norm"), CASES[::2])
def test_more_queries_never_give_less_and_compile_nothing(attack, norm):
    traces = []

    def counted(w, bias, x):
        traces.append(None)
        return labels(w, bias, x)

    run = functools.partial(attack, Partial(counted, W, BIAS), X, Y, key=KEY)
    one = run(ball=BALLS[norm](9.0), queries=1)
    before = len(traces)
    few, many = (run(ball=BALLS[norm](8.0), queries=count) for count in (60, 400))
    assert len(traces) == before
    assert np.isinf(one.distance).all() and not one.success.any()
    np.testing.assert_array_equal(one.x_adv, X)
    assert (many.distance <= few.distance).all()
    assert (many.distance < few.distance).any()
    assert few.queries.tolist() == [60] * 8 and many.queries.tolist() == [400] * 8


def test_given_images_are_tried_before_noise():
    """Noise stays close to grey, which this model takes for class 0."""

    def corner(x):
        return jax.nn.one_hot((x.reshape(len(x), -1).min(axis=1) > 0.9).astype(int), 2)

    x, y = jnp.full((2, 6, 4), 0.25), jnp.zeros(2, int)
    run = functools.partial(
        attacks.boundary_attack, corner, x, y, key=KEY, ball=L2(9.0), queries=60
    )
    starts = jnp.stack([jnp.zeros((6, 4)), jnp.ones((6, 4))])
    out = run(starts=starts)
    assert out.success.all() and out.first_success.tolist() == [2, 2]
    assert (out.distance < np.sqrt(24) * 0.75).all()  # nearer than the image given
    with pytest.raises(ValueError, match=r"\[M, 6, 4\], got shape \(1, 6, 5\)"):
        run(starts=jnp.ones((1, 6, 5)))
    with pytest.raises(ValueError, match="starts must lie inside bounds"):
        run(starts=2 * starts)


def test_a_python_function_is_shown_the_reported_number_of_images(tmp_path):
    shown = []

    def predict(images):
        assert type(images) is np.ndarray
        shown.append(len(images))
        images *= 2  # its own copy
        return np.argmax(images.reshape(len(images), -1) @ W / 2 + BIAS, axis=1)

    model = from_labels(predict, 2)
    run = functools.partial(attacks.boundary_attack, ball=L2(0.2))
    options = {"key": KEY, "batch_size": 4, "devices": jax.devices()[:1]}
    attack = {"walk": functools.partial(run, queries=30)}
    evaluation = evaluate(model, (X, Y), attack, run_dir=tmp_path, **options)
    table = evaluation.attacks["walk"]
    assert table.queries.tolist() == [31] * 8  # the verdict among them
    # a batch that is lost is attacked again, with the same result
    (tmp_path / "01-walk" / sorted(p.name for p in (tmp_path / "01-walk").iterdir())[1]
     ).unlink()  # fmt: skip
    shown.clear()
    again = evaluate(model, (X, Y), attack, run_dir=tmp_path, resume=True, **options)
    for one, other in zip(table, again.attacks["walk"], strict=True):
        np.testing.assert_array_equal(one, other)
    probes = sum(count == 1 for count in shown)  # one for each trace
    assert 4 * 31 <= sum(shown) - probes <= 4 * 31 + 2 * 8  # and the doubts


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: x[:, 0], "labels of predict must be integers, got float32"),
        (lambda x: np.zeros(7, int), r"must have shape \(1,\), one for each image"),
        (lambda x: np.full(len(x), 2), "must lie between 0 and 1, got values from 2"),
    ],
)
def test_labels_that_are_none(predict, message):
    with pytest.raises(ValueError, match=message):
        attacks.boundary_attack(
            from_labels(predict, 2), X, Y, key=KEY, ball=L2(1.0), queries=9
        )


def test_arguments():
    with pytest.raises(ValueError, match="predict must be a function of images"):
        from_labels(3, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_classes must be a whole number of at"):
        from_labels(len, 1)
    run = functools.partial(attacks.hop_skip_jump, MODEL, X, Y, key=KEY)
    with pytest.raises(ValueError, match=r"ball must be L2\(eps\) or Linf\(eps\)"):
        run(ball=L1(1.0))
    with pytest.raises(ValueError, match="queries must be a whole number of at least"):
        run(ball=L2(1.0), queries=0)
    with pytest.raises(ValueError, match="draws must be a whole number of at least 2"):
        run(ball=L2(1.0), draws=1)
    with pytest.raises(ValueError, match="source_step must be finite and at least 0"):
        attacks.boundary_attack(MODEL, X, Y, key=KEY, ball=L2(1.0), source_step=-1.0)
