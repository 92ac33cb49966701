"""Flax modules of every convention train alike, linen and NNX."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

from robjax import attacks, data, training
from robjax.balls import Linf
from robjax.training import FitConfig, objectives
from robjax.training.objectives import Network
from robjax.training.state import model_key
from robjax.training.trainable import trainable

RNG = np.random.default_rng(0)
DATA = data.from_arrays(RNG.uniform(size=(24, 1, 4, 1)), np.arange(24) % 3)
X = DATA.images[:6]
KEY = jax.random.key(3)
CONFIG = FitConfig(
    epochs=2, batch_size=8, learning_rate=0.1, momentum=0.0, weight_decay=0.0,
    schedule="constant",
)  # fmt: skip


def fit(model, config=CONFIG, devices=1, **options):
    return training.fit(
        model, DATA, config=config, devices=jax.devices()[:devices], progress=False,
        **options,
    )  # fmt: skip


def net(x, train):
    """Batch norm and dropout, in which the modes differ."""
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(
        nn.Dense(5, name="first")(x.reshape(len(x), -1))
    )
    x = nn.Dropout(0.5, deterministic=not train, name="drop")(nn.tanh(x))
    return nn.Dense(3, name="last")(x)


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return net(x, train)


class TrainRequired(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return net(x, train)


class TrainByDefault(nn.Module):
    @nn.compact
    def __call__(self, x, *, training: bool = True):
        return net(x, training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        return net(x, not deterministic)


class RandomByDefault(nn.Module):
    @nn.compact
    def __call__(self, images, deterministic=False):
        return net(images, not deterministic)


class RunningAverage(nn.Module):
    is_training: bool = True

    @nn.compact
    def __call__(self, x, use_running_average=True):
        assert self.is_training is not use_running_average
        return net(x, not use_running_average)


class Field(nn.Module):
    training: bool

    @nn.compact
    def __call__(self, x):
        return net(x, self.training)


class AnyKeywords(nn.Module):
    @nn.compact
    def __call__(self, x, **options):
        return net(x, options.get("train", False))


ALIKE = [
    Train(), TrainRequired(), TrainByDefault(), Deterministic(), RandomByDefault(),
    RunningAverage(), Field(True), Field(False), AnyKeywords(),
]  # fmt: skip


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Train().init)(KEY, X)


@pytest.fixture(scope="module")
def reference(variables):
    """Logits in both modes and the new statistics, by flax."""
    quiet = Train().apply(variables, X)
    options = {"train": True, "rngs": {"dropout": KEY}, "mutable": ["batch_stats"]}
    return quiet, *Train().apply(variables, X, **options)


@pytest.mark.parametrize("module", ALIKE, ids=lambda m: type(m).__name__)
def test_every_convention_has_the_same_two_modes(module, variables, reference):
    model = trainable(module)
    logits, _, updates = model.train(variables, X, KEY)
    found = model(variables, X), logits, updates
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, reference
    )
    np.testing.assert_allclose(model.bind(variables)(X), reference[0], atol=1e-6)
    assert np.max(np.abs(logits - found[0])) > 0.1


def test_equal_models_share_programs():
    traces = []

    @jax.jit
    def call(model, x):
        traces.append(1)
        return model(x)

    for module in (TrainRequired(), TrainRequired(), Nnx(0), Nnx(1)):
        model = trainable(module)
        variables = jax.tree.map(lambda leaf: leaf + 1.0, model.init(KEY, X))
        call(Partial(model, variables), X)
    assert len(traces) == 2


def test_dropout_trains_as_the_loop_by_hand(variables):
    """Batches, masks and updates of the trainer, written once more."""
    state = fit(Train(), variables=variables)

    @jax.jit
    def by_hand(variables, x, y, key):
        def loss(params):
            logits, updated = Train().apply(
                {**variables, "params": params}, x, train=True,
                rngs={"dropout": key}, mutable=["batch_stats"],
            )  # fmt: skip
            each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return each.mean(), updated

        gradient, updated = jax.grad(loss, has_aux=True)(variables["params"])
        moved = jax.tree.map(lambda w, g: w - 0.1 * g, variables["params"], gradient)
        return {"params": moved, **updated}

    for step in range(6):
        epoch, number = divmod(step, 3)
        rows = data.batch_indices(24, 8, seed=0, epoch=epoch)[number]
        key = model_key(jnp.uint32(0), jnp.int32(step))
        key = jax.random.fold_in(key, 0)  # of the first device
        variables = by_hand(variables, DATA.images[rows], DATA.labels[rows], key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        dict(variables), dict(state.variables),
    )  # fmt: skip


class Nnx(nnx.Module):
    """The network of `net` with parts in a list."""

    def __init__(self, seed, rate=0.5):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.layers[0](x.reshape(len(x), -1)))
        return self.last(self.drop(nnx.tanh(x)))


class LinenTwin(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5, name="first")(x.reshape(len(x), -1))
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, axis_name=self.axis_name,
            name="norm",
        )(x)  # fmt: skip
        return nn.Dense(3, name="last")(nn.tanh(x))


def as_linen(variables):
    params = variables["params"]
    return {
        "params": {
            "first": params["layers"]["0"],
            "norm": params["norm"],
            "last": params["last"],
        },
        "batch_stats": variables["batch_stats"],
    }


def test_nnx_trains_as_the_same_network_in_linen():
    module = Nnx(0, rate=0.0)
    start = as_linen(trainable(module).init(KEY, X))
    before = jax.device_get(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    one = fit(module, devices=1)
    two = fit(module, devices=2)  # batch norm over both
    linen = fit(LinenTwin(), devices=2, variables=start)
    for state in (as_linen(one.variables), as_linen(two.variables)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            state, dict(linen.variables),
        )  # fmt: skip
    # the module of the user stays as it was, and what comes back is one like it
    after = jax.device_get(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    trained = training.logits_fn(module, one.weights)
    assert isinstance(trained, Nnx)
    expected = LinenTwin().apply(jax.device_get(linen.variables), X)
    np.testing.assert_allclose(trained(X), expected, atol=1e-5)
    y = jnp.asarray(DATA.labels[:6])
    found = attacks.fgsm(trained, X, y, key=KEY, ball=Linf(0.1))
    assert found.x_adv.shape == X.shape


def test_nnx_with_dropout_is_random_in_training_alone():
    model = trainable(Nnx(0))
    variables = model.init(KEY, X)
    train = jax.jit(lambda key: model.train(variables, X, key)[0])
    first, again, other = train(KEY), train(KEY), train(jax.random.key(4))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 0.01
    # half of the features are dropped, the others doubled: the mean is that without
    keys = jax.random.split(KEY, 4000)
    mean = jax.jit(jax.vmap(lambda key: model.train(variables, X, key)[0]))(keys)
    quiet = trainable(Nnx(0, rate=0.0)).train(variables, X, None)[0]
    np.testing.assert_allclose(mean.mean(0), quiet, atol=0.15)
    np.testing.assert_array_equal(model(variables, X), model(variables, X))


def test_a_resumed_run_repeats_the_masks(tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_every=2)

    def stop(epoch, variables):
        if epoch == 2:
            raise KeyboardInterrupt
        return {}

    whole = fit(Nnx(0), config)
    with pytest.raises(KeyboardInterrupt):
        fit(Nnx(0), config, run_dir=tmp_path, on_epoch=stop)
    resumed = fit(Nnx(0), config, run_dir=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    with pytest.raises(ValueError, match="another variables"):
        fit(Nnx(1), config, run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="another model"):
        fit(Nnx(0, rate=0.4), config, run_dir=tmp_path, resume=True)


def test_each_pass_of_a_step_draws_anew(variables):
    network = Network(Train(), variables, key=KEY)
    first, after = network.train(X)
    second, _ = after.train(X)
    assert np.max(np.abs(first - second)) > 0.01
    # but an attack in train mode sees one function
    logits_fn = network.logits_fn("train")
    np.testing.assert_array_equal(logits_fn(X), logits_fn(X))


def test_objectives_find_the_features_of_nnx_modules():
    network = Network(Nnx(0, rate=0.0), trainable(Nnx(0)).init(KEY, X), key=KEY)
    logits, features, after = network.train_tapped(X, "layers/0")
    kernel = network.variables["params"]["layers"]["0"]["kernel"]
    np.testing.assert_allclose(features, X.reshape(6, -1) @ kernel, atol=1e-5)
    np.testing.assert_allclose(logits, network.train(X)[0], atol=1e-6)
    moved = after.variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(moved, 0.1 * features.mean(0), atol=1e-6)
    keys = jax.random.split(KEY, 6)
    y = jnp.asarray(DATA.labels[:6])
    losses, _, _ = objectives.siamese(
        network, X, y, keys=keys, strength=1.0, layer="layers/0"
    )
    assert losses.shape == (6,)


class OwnStatistics(nn.Module):
    @nn.compact
    def __call__(self, x):  # without a flag
        mean = self.variable("seen", "mean", jnp.zeros, (1, 4))
        x = x.reshape(len(x), -1)
        if self.is_mutable_collection("seen") and not self.is_initializing():
            mean.value = 0.5 * mean.value + 0.5 * x.mean(0, keepdims=True)
        return nn.Dense(3)(x - mean.value)


def test_any_collection_is_updated():
    state = fit(OwnStatistics(), dataclasses.replace(CONFIG, epochs=1, batch_size=24))
    expected = 0.5 * DATA.images.reshape(24, -1).mean(0)[None]
    np.testing.assert_allclose(state.variables["seen"]["mean"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="axis_name"):
        fit(OwnStatistics(), devices=2)


class Streams(nn.Module):
    """Draws one logit from each of three streams."""

    @nn.compact
    def __call__(self, x, train=False):
        if not train:
            return nn.Dense(3)(x.reshape(len(x), -1))
        assert self.has_rng("dropout")  # some models ask
        keys = [self.make_rng(name) for name in ("dropout", "noise", "params")]
        draws = jnp.stack([jax.random.uniform(key) for key in keys])
        return jnp.broadcast_to(draws, (len(x), 3))


def test_streams_of_any_name_draw_on_their_own():
    model = trainable(Streams())
    variables = model.init(KEY, X)
    first, other = (model.train(variables, X, key)[0] for key in jax.random.split(KEY))
    assert len({*np.ravel(first).tolist(), *np.ravel(other).tolist()}) == 6
