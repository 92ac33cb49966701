import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from robjax import attacks, data, losses
from robjax.balls import L0, L1, L2, Linf
from tests.oracles.linear_attacks import shortest

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
BALLS = {"Linf": Linf, "L2": L2, "L1": L1, "L0": L0}
SHORT: dict[Any, Any] = {
    attacks.deepfool: {"steps": 10},
    attacks.ddn: {"steps": 20},
    attacks.fmn: {"steps": 20},
    attacks.carlini_wagner: {"steps": 20, "searches": 3, "init_weight": 1.0},
}
NORMS = {
    attacks.deepfool: ["Linf", "L2", "L1"],
    attacks.ddn: ["L2"],
    attacks.fmn: ["Linf", "L2", "L1", "L0"],
    attacks.carlini_wagner: ["L2"],
}
CASES = [
    pytest.param(attack, norm, id=f"{attack.__name__}-{norm}")
    for attack, norms in NORMS.items()
    for norm in norms
]
ONE_EACH = [pytest.param(attack, "L2", id=attack.__name__) for attack in NORMS]
# half of the images have no grey pixels, so that the box is in the way
IMAGES = RNG.uniform(size=(8, 3, 4))
IMAGES[4:] = np.round(IMAGES[4:])
X = jnp.asarray(IMAGES, jnp.float32)


def linear(w, bias, x):
    return x.reshape(x.shape[0], -1) @ w + bias[None]


def linear_problem(classes, seed=0, outputs=10):
    """Weights, biases, labels; classes beyond the first few are out of reach."""
    rng = np.random.default_rng(seed)
    w, bias = rng.normal(size=(12, outputs)), rng.normal(size=outputs)
    bias[classes:] -= 100
    w, bias = jnp.asarray(w, jnp.float32), jnp.asarray(bias, jnp.float32)
    return Partial(linear, w, bias), jnp.argmax(linear(w, bias, X), axis=1)


MODEL, Y = linear_problem(10)


def run(
    attack, norm, model: Any = MODEL, x: Any = X, y: Any = Y, eps=100.0, **options: Any
):
    return attack(model, x, y, ball=BALLS[norm](eps), **SHORT[attack], **options)


def length(norm, delta):
    delta = np.asarray(delta, np.float64).reshape(len(delta), -1)
    order = {"Linf": np.inf, "L2": 2, "L1": 1, "L0": 0}[norm]
    return np.linalg.norm(delta, ord=order, axis=1)


@pytest.mark.parametrize(("attack", "norm"), ONE_EACH)
def test_two_logits_and_other_bounds(attack, norm):
    model, y = linear_problem(2, outputs=2)
    w, bias = model.args
    # the same model of images in (−1, 3) is four times as far from everything
    wide = Partial(linear, w / 4, bias + w.sum(0) / 4)
    options = {"init_weight": 16.0} if attack is attacks.carlini_wagner else {}
    short = {**SHORT[attack], **options}
    out = attack(wide, 4 * X - 1, y, ball=L2(100.0), bounds=(-1.0, 3.0), **short)
    np.testing.assert_allclose(
        out.distance, 4 * shortest(*model.args, X, y, norm), rtol=1e-4
    )
    assert out.x_adv.min() >= -1 and out.x_adv.max() <= 3


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_verdicts_are_those_of_a_fresh_forward_pass(attack, norm):
    y = (Y + (jnp.arange(8) == 3)) % 10  # one sample is misclassified
    far = np.asarray(run(attack, norm, y=y).distance)
    eps = float(np.median(far))
    out = run(attack, norm, y=y, eps=eps)
    np.testing.assert_array_equal(out.success, jnp.argmax(MODEL(out.x_adv), 1) != y)
    np.testing.assert_array_equal(out.success, out.distance <= eps)
    np.testing.assert_array_equal(out.success, out.first_success >= 0)
    np.testing.assert_allclose(out.distance, far)
    assert 0 < out.success.sum() < 8
    moved = length(norm, out.x_adv - X)
    np.testing.assert_allclose(np.where(out.success, out.distance, 0), moved, rtol=1e-5)
    assert out.x_adv.min() >= 0 and out.x_adv.max() <= 1
    np.testing.assert_allclose(out.loss, losses.margin(MODEL(out.x_adv), y), atol=1e-5)
    assert out.distance[3] == 0 and out.first_success[3] == 0 and out.queries[3] == 9
    assert (out.distance[jnp.arange(8) != 3] > 0).all()


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_deterministic_and_independent_of_neighbours(attack, norm):
    together = run(attack, norm, key=KEY)
    for a, b in zip(together, run(attack, norm), strict=True):
        np.testing.assert_array_equal(a, b)
    order = jnp.asarray([5, 2, 7, 7, 2, 0, 0, 2])
    apart = run(attack, norm, x=X[order], y=Y[order])
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_allclose(a[order], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("attack", "norm"), ONE_EACH)
def test_no_retracing_when_weights_radius_or_constants_change(attack, norm):
    traces = []

    def model(w, x):
        traces.append(None)
        return linear(w, jnp.zeros(10), x)

    name = {
        attacks.deepfool: "overshoot",
        attacks.ddn: "gamma",
        attacks.fmn: "step_size",
        attacks.carlini_wagner: "confidence",
    }[attack]
    short = {k: 1 for k in SHORT[attack] if k in ("steps", "searches")}
    w = MODEL.args[0]
    run = functools.partial(attack, reference_quirks=True, **short)
    run(Partial(model, w), X, Y, ball=L2(0.1), **{name: 0.1})
    before = len(traces)
    run(Partial(model, 2 * w), X, Y, ball=L2(jnp.float32(0.3)), **{name: 0.2})
    assert len(traces) == before


WALKS = {
    attacks.deepfool: 11,  # the last point gets a forward pass, needed or not
    attacks.ddn: 20,
    attacks.fmn: 20,
    attacks.carlini_wagner: 61,  # so does the clean image
}


@pytest.mark.parametrize(("attack", "norm"), ONE_EACH)
def test_model_calls_are_those_reported_and_refinement_never_hurts(attack, norm):
    calls = []

    def model(x):
        jax.debug.callback(lambda: calls.append(None))
        return MODEL(x)

    options: dict[str, Any] = (
        {"abort_early": False} if attack is attacks.carlini_wagner else {}
    )
    plain = run(attack, norm, model, reference_quirks=True, **options)
    jax.effects_barrier()
    if attack is attacks.deepfool:
        assert len(calls) == plain.queries.max() + 1 <= WALKS[attack]
    else:
        assert len(calls) == WALKS[attack] and (plain.queries == len(calls)).all()
    calls.clear()
    refined = run(attack, norm, model, **options)
    jax.effects_barrier()
    assert len(calls) == refined.queries.max() + (attack is attacks.deepfool)
    assert (refined.queries == plain.queries + 8 + 27).all()  # rounding, then rounds
    # the authors' codes may end at a margin that another forward pass denies
    assert (refined.distance <= plain.distance * (1 + 1e-4)).all()
    assert jnp.isfinite(plain.distance).any()


@pytest.mark.parametrize(("attack", "norm"), [CASES[0], CASES[5]])
def test_early_exit_stops_at_the_first_success(attack, norm):
    out = run(attack, norm, early_exit=True)
    last = run(attack, norm)
    assert out.success.all() and (out.queries < last.queries).all()
    assert (out.distance >= last.distance).all()
    np.testing.assert_array_equal(jnp.argmax(MODEL(out.x_adv), axis=1) != Y, True)
    np.testing.assert_array_equal(out.first_success, last.first_success)


def test_confident_images_of_carlini_wagner():
    sure = run(attacks.carlini_wagner, "L2", confidence=1.0)
    w, bias = MODEL.args
    onehot = jax.nn.one_hot(Y, 10)
    # a margin of at least 1 is to a model misclassified whose label has 1 more
    shifted = [
        shortest(w, bias + row, X[i : i + 1], Y[i : i + 1], "L2")[0]
        for i, row in enumerate(onehot)
    ]
    np.testing.assert_allclose(sure.distance, shifted, rtol=1e-4)
    assert (losses.margin(MODEL(sure.x_adv), Y) >= 1)[sure.success].all()


BAD = {
    "ball": ({"ball": 0.3}, "ball must be "),
    "eps": ({"ball": L2(-1.0)}, "ball.eps must be finite and at least 0"),
    "steps": ({"steps": 0}, "steps must be a whole number"),
    "labels": ({"y": Y + 10}, "y must hold labels 0 to 9"),
    "images": ({"x": X + 1}, "x must lie inside bounds"),
    "model": ({"logits_fn": 3}, "logits_fn must be a callable"),
}
NUMBERS = {
    attacks.deepfool: ["overshoot"],
    attacks.ddn: ["gamma", "init_norm", "step_size"],
    attacks.fmn: ["gamma", "step_size"],
    attacks.carlini_wagner: ["step_size", "init_weight", "confidence"],
}


@pytest.mark.parametrize("attack", NORMS)
def test_bad_arguments_are_named(attack):
    numbers = {
        n: ({n: -1.0}, f"{n} must be finite and at least") for n in NUMBERS[attack]
    }
    for changes, message in (BAD | numbers).values():
        arguments = {"logits_fn": MODEL, "x": X, "y": Y, "ball": L2(0.1), **changes}
        positional = [arguments.pop(n) for n in ("logits_fn", "x", "y")]
        with pytest.raises(ValueError, match=message):
            attack(*positional, **arguments)


def test_balls_that_an_attack_does_not_know_are_named():
    def run(attack, ball: Any, **options):
        attack(MODEL, X, Y, key=KEY, ball=ball, **options)

    for attack in (attacks.ddn, attacks.carlini_wagner):
        with pytest.raises(ValueError, match=r"ball must be L2\(eps\), got Linf"):
            run(attack, Linf(0.1))
    several = r"ball must be Linf\(eps\), L2\(eps\) or L1\(eps\), got L0"
    everything = [attacks.pgd, attacks.fgsm, attacks.apgd, attacks.fab, attacks.square]
    for attack in (*everything, attacks.deepfool, attacks.autoattack):
        with pytest.raises(ValueError, match=several):
            run(attack, L0(3))
    with pytest.raises(ValueError, match="classes must be a whole number of at least"):
        run(attacks.deepfool, L2(1.0), classes=1)


# --- on a network -------------------------------------------------------------------


def network(weights, x):
    first, shift, second, bias = weights
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ first + shift[None])
    return hidden @ second + bias[None]


@pytest.fixture(scope="module")
def digits():
    """A small network, trained on the digits, with 48 images it gets right."""
    train = data.load("digits", "train")
    x = jnp.asarray(train.images, jnp.float32) / train.scale
    y = jnp.asarray(train.labels)
    keys = jax.random.split(KEY, 2)
    weights = [
        jax.random.normal(keys[0], (64, 32)) / 8,
        jnp.zeros(32),
        jax.random.normal(keys[1], (32, 10)) / 6,
        jnp.zeros(10),
    ]
    optimiser = optax.adam(1e-2)

    def step(carry, _):
        weights, state = carry
        loss = lambda w: losses.cross_entropy(network(w, x), y).mean()  # noqa: E731
        updates, state = optimiser.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    @jax.jit
    def fit(weights):
        start = weights, optimiser.init(weights)
        return jax.lax.scan(step, start, None, length=100)[0][0]

    model = Partial(network, fit(weights))
    right = jnp.flatnonzero(jnp.argmax(model(x), axis=1) == y)[:48]
    return model, x[right], y[right]


PEERS = {
    "LinfDeepFoolAttack": (attacks.deepfool, "Linf"),
    "DDNAttack": (attacks.ddn, "L2"),
    "LInfFMNAttack": (attacks.fmn, "Linf"),
}


@pytest.mark.parametrize("name", PEERS)
def test_distances_are_no_larger_than_those_of_foolbox(digits, name):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    model, x, y = digits
    attack, norm = PEERS[name]
    theirs = getattr(foolbox.attacks, name)(steps=30)
    with jax.numpy_rank_promotion("allow"):
        found = theirs(foolbox.JAXModel(model, bounds=(0, 1)), x, y, epsilons=None)[1]
    fooled = np.asarray(jnp.argmax(model(found), axis=1) != y)
    distance = np.where(fooled, length(norm, found - x), np.inf)
    run = functools.partial(attack, model, x, y, ball=BALLS[norm](1e3), steps=30)
    ours, plain = (
        np.asarray(run().distance),
        np.asarray(run(reference_quirks=True).distance),
    )
    assert np.median(ours) <= 1.01 * np.median(distance)
    assert (ours <= 1.01 * distance).mean() >= 0.95
    assert (ours <= plain).all()
    if attack is not attacks.deepfool:  # whose steps end inside the box here
        # without the refinements the walks are the same
        assert np.isclose(plain, distance, rtol=1e-3).mean() >= 0.9


def rarely_fooled():
    """A network that misclassifies one in 10,000 random images, and images of it."""
    rng = np.random.default_rng(4)
    first = rng.normal(size=(12, 40)) / 2
    shift = rng.normal(size=40)
    second = rng.normal(size=(40, 3)) / 3
    logits = np.maximum(rng.random((200_000, 12)) @ first + shift, 0) @ second
    ahead = np.quantile(logits[:, 1:].max(1) - logits[:, 0], 0.9999)
    layers = (first, shift, second, np.array([ahead, 0, 0]))
    return layers, rng.random((60, 12))


def hidden_relu(layers, x):
    first, shift, second, bias = layers
    return jax.nn.relu(x @ first + shift[None]) @ second + bias[None]


@pytest.mark.parametrize(("attack", "norm"), [*ONE_EACH, (attacks.fab, "L1")])
def test_finds_something_where_misclassified_images_are_rare(attack, norm):
    layers, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), rarely_fooled())
    model = Partial(hidden_relu, layers)
    y = jnp.zeros(len(x), jnp.int32)
    options = SHORT.get(attack, {})
    result = attack(model, x, y, ball=BALLS[norm](100.0), **options)
    assert result.success.all()
    assert (jnp.argmax(model(result.x_adv), 1) != y).all()
