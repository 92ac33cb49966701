"""Weights from elsewhere, trained models from disk, and runs that go on."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from robjax import data, training
from robjax.models import MLP
from robjax.runs import checkpoints, files
from robjax.training import FitConfig, callbacks

RNG = np.random.default_rng(0)
LABELS = np.arange(32) % 2
DATA = data.from_arrays(
    np.clip(RNG.uniform(size=(32, 1, 3, 1)) * (1 + LABELS)[:, None, None, None], 0, 1),
    LABELS,
)
X = jnp.asarray(DATA.images[:5])
MODEL = MLP(2, widths=(6,))
CONFIG = FitConfig(
    epochs=2, batch_size=16, learning_rate=0.1, schedule="constant", ema_decay=0.5
)


def fit(run_dir=None, *, model=MODEL, config=CONFIG, **options):
    return training.fit(
        model, DATA, config=config, run_dir=run_dir, devices=jax.devices()[:1],
        progress=False, **options,
    )  # fmt: skip


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two epochs: its folder and its last state."""
    folder = tmp_path_factory.mktemp("first") / "run"
    return folder, fit(folder)


# ---------------------------------------------------------------- weights to start from


def test_training_starts_from_given_weights(first):
    given = jax.tree.map(np.asarray, first[1].variables)
    seen = []
    fit(variables=given, on_epoch=lambda epoch, v: seen.append(v) or {})
    assert_equal(seen[0], given)
    assert np.any(
        seen[1]["params"]["logits"]["bias"] != given["params"]["logits"]["bias"]
    )


def test_frozen_weights_stay_as_they_are(first, tmp_path):
    given = first[1].variables

    def part(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "new" if path[0].key == "logits" else "frozen", params
        )

    parts = {"new": optax.adam(0.1), "frozen": optax.set_to_zero()}
    optimizer = optax.partition(parts, part)
    state = fit(tmp_path, variables=given, optimizer=optimizer)
    before, after = given["params"], state.variables["params"]
    assert_equal(before["dense1"], after["dense1"])
    assert np.all(before["logits"]["bias"] != after["logits"]["bias"])
    again = fit(tmp_path, variables=given, optimizer=optimizer, resume=True)
    assert_equal(state, again)
    rates = [
        r["learning_rate"]
        for r in files.load_json_lines(tmp_path / "metrics.jsonl")[1:]
    ]
    assert rates == [pytest.approx(0.1)] * 2
    with pytest.raises(ValueError, match="another variables"):
        other = jax.tree.map(lambda w: w + 1, given)
        fit(tmp_path, variables=other, optimizer=optimizer, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["params"], "got the collections .*dense1"),
        (
            lambda v: {"params": {"logits": v["params"]["logits"]}},
            "dense1/.* is missing",
        ),
        (lambda v: {**v, "batch_stats": {"mean": np.ones(2)}}, "no batch_stats/mean"),
        (lambda v: jax.tree.map(lambda w: w[..., :1], v), r"has the shape \(1,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(first, change, message):
    with pytest.raises(ValueError, match=f"^variables must .*{message}"):
        fit(variables=change(jax.device_get(first[1].variables)))


# ------------------------------------------------------------------ models from disk


def test_a_model_in_one_line(first):
    folder, state = first
    expected = MODEL.apply(state.ema, X)
    for logits_fn in (training.load(folder), training.load(str(folder), MODEL)):
        np.testing.assert_array_equal(logits_fn(X), expected)
    np.testing.assert_array_equal(training.logits_fn(MODEL, state.weights)(X), expected)


def test_the_best_weights_or_the_last(tmp_path):
    state = fit(
        tmp_path,
        on_epoch=lambda epoch, variables: {"score": float(epoch == 1)},
        callbacks=[callbacks.best("score")],
    )
    assert np.any(MODEL.apply(state.weights, X) != MODEL.apply(state.ema, X))
    for logits_fn, weights in (
        (training.load(tmp_path), state.weights),
        (training.load(tmp_path, best=True), state.weights),
        (training.load(tmp_path, best=False), state.ema),
    ):
        np.testing.assert_array_equal(logits_fn(X), MODEL.apply(weights, X))


class Own(nn.Module):
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.activation(nn.Dense(4)(x.reshape(len(x), -1))))


class OwnNnx(nnx.Module):
    def __init__(self, seed, width=4):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, width, rngs=rngs)])
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.layers[0](x.reshape(len(x), -1))))


@pytest.mark.parametrize(("model", "again"), [(Own(), Own()), (OwnNnx(0), OwnNnx(1))])
def test_models_that_a_run_cannot_name(model, again, tmp_path):
    state = fit(tmp_path, model=model)
    with pytest.raises(ValueError, match=r"does not say .*load\(run_dir, model\)"):
        training.load(tmp_path)
    if isinstance(model, nn.Module):
        with pytest.warns(UserWarning, match="was .*relu.*, that given is .*tanh"):
            training.load(tmp_path, Own(nn.tanh))
    found = training.load(tmp_path, again)(X)
    np.testing.assert_array_equal(found, training.logits_fn(model, state.weights)(X))


def test_what_cannot_be_loaded_is_said(first, tmp_path):
    folder, _ = first
    with pytest.raises(ValueError, match="the weights in .* must fit .* shape"):
        training.load(folder, MLP(2, widths=(5,)))
    with pytest.raises(ValueError, match="the weights in .* must fit .* has no params"):
        training.load(folder, OwnNnx(0))
    with pytest.raises(ValueError, match="run_dir=.* holds no checkpoint"):
        training.load(tmp_path)
    checkpoints.save_checkpoint(tmp_path / "checkpoints", 1, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="do not say of which run"):
        training.load(tmp_path)


# ------------------------------------------------------------------ runs that go on


def test_two_epochs_and_two_more_are_four(first, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=4)
    whole = fit(tmp_path / "whole", config=config)
    longer = fit(tmp_path / "longer", config=config, extends=first[0])
    assert_equal(longer, whole)
    found = {
        name: files.load_json_lines(tmp_path / name / "metrics.jsonl")
        for name in ("whole", "longer")
    }
    assert [r["epoch"] for r in found["longer"]] == [2, 3, 4]
    assert found["longer"][0]["extends"] == str(first[0])
    for record, other in zip(found["longer"][1:], found["whole"][3:], strict=True):
        assert {**record, "images_per_second": 0} == {**other, "images_per_second": 0}
    # every checkpoint says from which state of which run it came
    latest = checkpoints.list_checkpoints(tmp_path / "longer" / "checkpoints")[-1]
    config_there = checkpoints.load_manifest(latest)["config"]
    origin = config_there["about"]["extends"]
    old = checkpoints.list_checkpoints(first[0] / "checkpoints")[-1]
    assert origin["folder"] == str(first[0]) and origin["step"] == 4
    assert origin["sha256"] in config_there["run"]["extends"]
    assert pathlib.Path(old).name.endswith("4")
    # resuming needs the same origin
    again = fit(tmp_path / "longer", config=config, extends=first[0], resume=True)
    assert_equal(again, whole)
    with pytest.raises(ValueError, match="another extends"):
        fit(tmp_path / "longer", config=config, resume=True)


def test_a_changed_run_goes_on_from_the_weights(first):
    seen = []
    config = dataclasses.replace(
        CONFIG, epochs=3, batch_size=8, optimizer="adam", ema_decay=None
    )
    state = fit(
        config=config, extends=first[0], on_epoch=lambda e, v: seen.append((e, v)) or {}
    )
    assert [epoch for epoch, _ in seen] == [2, 3]
    assert_equal(seen[0][1], first[1].variables)
    # four steps of the third epoch, of an optimizer that is new, late in the schedule
    assert int(state.step) == 12
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    assert sorted(int(count) for _, count in counts) == [4, 12]


def test_milestones_are_epochs_with_another_batch_size(first, tmp_path):
    config = dataclasses.replace(
        CONFIG, epochs=4, batch_size=8, schedule="steps", milestones=(3,)
    )
    fit(tmp_path, config=config, extends=first[0])
    found = files.load_json_lines(tmp_path / "metrics.jsonl")[1:]
    rates = [(record["epoch"], record["learning_rate"]) for record in found]
    assert rates == [(3, pytest.approx(0.1)), (4, pytest.approx(0.01))]


def test_a_run_that_goes_on_keeps_its_best_weights(first):
    config = dataclasses.replace(CONFIG, epochs=3)
    state = fit(config=config, extends=first[0], callbacks=[callbacks.best("accuracy")])
    assert int(state.callbacks[0].memory["epoch"]) == 3
    assert_equal(state.weights, state.ema)


def test_what_cannot_go_on_is_said(first, tmp_path):
    folder, state = first
    longer = dataclasses.replace(CONFIG, epochs=3)
    with pytest.raises(ValueError, match="epochs must be more than the 2"):
        fit(extends=folder)
    with pytest.raises(ValueError, match="variables must not be given with extends"):
        fit(extends=folder, variables=state.variables, config=longer)
    with pytest.raises(ValueError, match="the weights in .* must fit the model"):
        fit(model=MLP(2, widths=(5,)), extends=folder, config=longer)

    def stop(epoch, variables):
        raise KeyboardInterrupt

    every = dataclasses.replace(CONFIG, checkpoint_every=1, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, config=every, on_epoch=lambda e, v: {} if e == 0 else stop(e, v))
    with pytest.raises(ValueError, match="extends=.* stopped inside one: resume it"):
        fit(config=longer, extends=tmp_path)
