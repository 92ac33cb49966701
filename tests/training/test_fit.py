"""The whole loop on real digits: learning, records, errors."""

import dataclasses
import functools
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robjax import data, training
from robjax.balls import Linf
from robjax.models import MLP, Linear
from robjax.runs import files
from robjax.training import objectives

ONE = jax.devices()[:1]
SHORT = training.FitConfig(
    epochs=2, batch_size=32, learning_rate=0.1, schedule="constant", warmup_epochs=1
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def few(digits):
    return data.subset(digits, 100)


def fit(model, dataset, **options):
    return training.fit(
        model, dataset, **{"devices": ONE, "progress": False, **options}
    )


def accuracy(model, state, dataset):
    x = data.to_float(dataset.images, dataset.scale)
    return np.mean(model.apply(state.weights, x).argmax(-1) == dataset.labels)


TRADES = functools.partial(objectives.trades, ball=Linf(0.1), steps=3, step_size=0.05)
MADRY = functools.partial(
    objectives.adversarial, ball=Linf(0.1), steps=3, step_size=0.05
)


@pytest.mark.parametrize("objective", [objectives.standard, MADRY, TRADES])
def test_learns_digits(digits, objective):
    config = dataclasses.replace(SHORT, epochs=12, ema_decay=0.9)
    model = MLP(10)
    state = fit(model, digits, objective=objective, config=config)
    assert accuracy(model, state, data.load("digits", "test")) > 0.9


def test_records_of_a_run(few, tmp_path):
    seen = []

    def on_epoch(epoch, variables):
        seen.append((epoch, variables))
        return {"squared": float(epoch**2)}

    state = fit(
        Linear(10),
        few,
        objective=MADRY,
        config=SHORT,
        run_dir=tmp_path,
        on_epoch=on_epoch,
    )
    records = files.load_json_lines(tmp_path / "metrics.jsonl")
    assert [r["epoch"] for r in records] == [0, 1, 2]
    assert [r["step"] for r in records] == [0, 3, 6]
    assert [r["squared"] for r in records] == [0.0, 1.0, 4.0]
    assert [r["strength"] for r in records[1:]] == [1.0, 1.0]
    names = {"loss", "grad_norm", "adversarial_accuracy", "learning_rate"}
    assert all(names <= r.keys() for r in records[1:])
    assert records[2]["learning_rate"] == pytest.approx(0.1)
    assert list((tmp_path / "tensorboard").glob("events*"))
    # what the callback kept is its own, and the last is what fit returns
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    chex.assert_trees_all_equal(seen[-1][1], state.weights)
    first = jax.device_get(seen[0][1])
    assert not np.array_equal(
        first["params"]["logits"]["kernel"],
        state.weights["params"]["logits"]["kernel"],
    )


def test_recorded_loss_is_the_mean_over_the_epoch(few, tmp_path):
    # With a rate of 0 the weights stay, and 96 of 100 samples make three batches.
    config = dataclasses.replace(SHORT, epochs=1, learning_rate=0.0)
    model = Linear(10)
    state = fit(model, few, config=config, run_dir=tmp_path)
    rows = data.batch_indices(100, 32, seed=0, epoch=0).ravel()
    z = np.asarray(
        model.apply(state.weights, data.to_float(few.images[rows], few.scale)),
        np.float64,
    )
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    expected = -log_p[np.arange(96), few.labels[rows]].mean()
    record = files.load_json_lines(tmp_path / "metrics.jsonl")[1]
    assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_an_objective_of_ones_own(few):
    def squared_error(network, images, labels, *, keys, strength):
        logits, network = network.train(images)
        error = ((logits - jax.nn.one_hot(labels, 10)) ** 2).sum(1)
        return error, {}, network

    config = dataclasses.replace(SHORT, epochs=30, learning_rate=0.02)
    state = fit(Linear(10), few, objective=squared_error, config=config)
    assert accuracy(Linear(10), state, few) > 0.9


def test_an_objective_that_returns_a_mean_is_refused(few):
    def mean(network, images, labels, **options):
        losses, metrics, network = objectives.standard(
            network, images, labels, **options
        )
        return losses.mean(), metrics, network

    with pytest.raises(AssertionError, match="shape"):
        fit(Linear(10), few, objective=mean, config=SHORT)


def test_an_optimizer_of_ones_own(few):
    state = fit(Linear(10), few, config=SHORT, optimizer=optax.sgd(0.0))
    start = fit(Linear(10), few, config=dataclasses.replace(SHORT, learning_rate=0.0))
    chex.assert_trees_all_equal(state.variables, start.variables)


def test_balanced_batches_reach_the_objective(tmp_path):
    labels = np.array([0] * 28 + [1] * 4)
    rare = data.from_arrays(np.zeros((32, 1, 2, 1)), labels)

    def counted(network, images, labels, **options):
        losses, _, network = objectives.standard(network, images, labels, **options)
        return losses, {"ones": labels.astype(losses.dtype)}, network

    for balanced, expected in ((True, 0.5), (False, 4 / 32)):
        folder = tmp_path / str(balanced)
        config = training.FitConfig(epochs=1, batch_size=16, balanced=balanced)
        fit(Linear(2), rare, objective=counted, config=config, run_dir=folder)
        record = files.load_json_lines(folder / "metrics.jsonl")[1]
        assert record["ones"] == pytest.approx(expected)


class RootOfDark(nn.Module):
    """Its weight has no finite gradient at the start."""

    @nn.compact
    def __call__(self, x, *, train=False):
        scale = self.param("scale", nn.initializers.zeros, (1,))
        return nn.Dense(10)(jnp.sqrt(scale[None] * x.reshape(len(x), -1)))


def test_the_first_step_does_not_blame_the_learning_rate(few):
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1; the weights are"):
        fit(RootOfDark(), few, config=SHORT)


def test_stops_at_a_value_that_is_not_finite(few, tmp_path):
    config = dataclasses.replace(
        SHORT, learning_rate=1e30, epochs=50, checkpoint_every=1
    )
    with pytest.raises(FloatingPointError, match=r"(loss|grad_norm) is .* in step \d"):
        fit(MLP(10, widths=(8,)), few, config=config, run_dir=tmp_path)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert all(value is not None for value in json.loads(line).values())


class TestBadArguments:
    def test_batch_larger_than_the_data(self, few):
        config = dataclasses.replace(SHORT, batch_size=128)
        with pytest.raises(ValueError, match="batch_size must be at most .* 100"):
            fit(Linear(10), few, config=config)

    def test_too_few_outputs(self, few):
        with pytest.raises(ValueError, match="model must have an output .* 10 classes"):
            fit(Linear(9), few, config=SHORT)

    def test_no_flax_module(self, few):
        with pytest.raises(ValueError, match="model must be a flax"):
            fit(lambda x: x, few, config=SHORT)

    @pytest.mark.parametrize("ball", [Linf(-0.1), Linf(np.nan), 0.1])
    def test_objective_without_a_radius(self, few, ball):
        objective = functools.partial(objectives.adversarial, ball=ball, steps=1)
        with pytest.raises(ValueError, match=r"objective's ball\.eps must be"):
            fit(Linear(10), few, objective=objective, config=SHORT)

    def test_labels_out_of_range(self, few):
        bad = few._replace(labels=few.labels + 1)
        with pytest.raises(ValueError, match="labels"):
            fit(Linear(10), bad, config=SHORT)

    def test_unwritable_run_folder(self, few, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match="run_dir"):
            fit(Linear(10), few, config=SHORT, run_dir=tmp_path / "file" / "run")

    def test_resume_without_a_folder(self, few):
        with pytest.raises(ValueError, match="run_dir"):
            fit(Linear(10), few, config=SHORT, resume=True)

    def test_model_that_returns_no_logits(self, few):
        class Maps(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                return nn.Dense(10)(x)

        with pytest.raises(ValueError, match="logits"):
            fit(Maps(), few, config=SHORT)


WEIGHT = 1.0


def weighted(network, images, labels, *, keys, strength):
    losses, metrics, network = objectives.standard(
        network, images, labels, keys=keys, strength=strength
    )
    return WEIGHT * losses, metrics, network


def test_an_objective_that_reads_another_number_is_another_objective(monkeypatch):
    images = np.uint8(255 * (np.arange(8) % 2)).reshape(8, 1, 1, 1)
    black_and_white = data.from_arrays(images, np.arange(8) % 2)
    config = training.FitConfig(epochs=1, batch_size=4, clip_norm=None)

    def trained():
        state = training.fit(
            MLP(2, widths=(4,)),
            black_and_white,
            objective=weighted,
            config=config,
            devices=jax.devices()[:1],
            progress=False,
        )
        return np.concatenate([np.ravel(w) for w in jax.tree.leaves(state.weights)])

    first = trained()
    monkeypatch.setitem(globals(), "WEIGHT", -5.0)
    assert not np.allclose(trained(), first)
