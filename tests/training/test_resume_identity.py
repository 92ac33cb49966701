"""A training run is taken up with the same model, objective and data, and no others."""

import shutil

import jax
import numpy as np
import optax
import pytest

from robjax import data, training
from robjax.models import MLP
from robjax.runs import checkpoints, files
from robjax.training import objectives
from robjax.training.journal import Journal, describe_run
from robjax.training.state import create_state
from tests.runs.programs import run

CONFIG = training.FitConfig(epochs=1, batch_size=16, learning_rate=0.05)
RNG = np.random.default_rng(0)
OWN = data.from_arrays(
    RNG.integers(0, 100, (32, 2, 3, 2), dtype=np.uint8),
    RNG.integers(0, 3, 32).astype(np.int32),
    num_classes=3,
)

OBJECTIVES = {
    "variable": """
from robjax.training import objectives
beta = VALUE
def f(network, images, labels, *, keys, strength):
    loss, metrics, network = objectives.standard(
        network, images, labels, keys=keys, strength=strength)
    return beta * loss, metrics, network
""",
    "code": """
from robjax.training import objectives
def f(network, images, labels, *, keys, strength):
    loss, metrics, network = objectives.standard(
        network, images, labels, keys=keys, strength=strength)
    return VALUE * loss, metrics, network
""",
    "keyword-only default value": """
from robjax.training import objectives
def f(network, images, labels, *, keys, strength, beta=VALUE):
    loss, metrics, network = objectives.standard(
        network, images, labels, keys=keys, strength=strength)
    return beta * loss, metrics, network
""",
    "attribute of a class": """
from robjax.training import objectives
class Weighted:
    beta = VALUE
    def __call__(self, network, images, labels, *, keys, strength):
        loss, metrics, network = objectives.standard(
            network, images, labels, keys=keys, strength=strength)
        return self.beta * loss, metrics, network
f = Weighted()
""",
    "__slots__ and repr of its own": """
from robjax.training import objectives
class Weighted:
    __slots__ = ("beta",)
    def __init__(self, beta): self.beta = beta
    def __repr__(self): return "Weighted()"
    def __call__(self, network, images, labels, *, keys, strength):
        loss, metrics, network = objectives.standard(
            network, images, labels, keys=keys, strength=strength)
        return self.beta * loss, metrics, network
f = Weighted(VALUE)
""",
    "loss inside": """
from robjax.training import objectives
def loss(logits, labels): return VALUE * logits.sum(axis=1)
def f(network, images, labels, *, keys, strength):
    logits, network = network.train(images)
    return loss(logits, labels), {}, network
""",
}
MODELS = {
    "variable": """
from flax import linen as nn
def flat(x): return x.reshape(len(x), -1)
scale = VALUE
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False): return scale * nn.Dense(4)(flat(x))
f = Net()
""",
    "code": """
from flax import linen as nn
def flat(x): return x.reshape(len(x), -1)
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False): return VALUE * nn.Dense(4)(flat(x))
f = Net()
""",
    "attribute of a class": """
from flax import linen as nn
def flat(x): return x.reshape(len(x), -1)
class Net(nn.Module):
    scale = VALUE
    @nn.compact
    def __call__(self, x, train=False): return self.scale * nn.Dense(4)(flat(x))
f = Net()
""",
    "code of a part": """
from flax import linen as nn
def flat(x): return x.reshape(len(x), -1)
class Part(nn.Module):
    def __call__(self, x): return VALUE * x
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False): return nn.Dense(4)(Part()(flat(x)))
f = Net()
""",
    "field that is a function": """
import typing
from flax import linen as nn
def flat(x): return x.reshape(len(x), -1)
class Net(nn.Module):
    layer: typing.Callable
    @nn.compact
    def __call__(self, x, train=False): return nn.Dense(4)(self.layer(flat(x)))
f = Net(lambda x: VALUE * x)
""",
    "what no description sees": """
from flax import linen as nn
def flat(x): return x.reshape(len(x), -1)
W = VALUE
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False): return globals()["W"] * nn.Dense(4)(flat(x))
f = Net()
""",
}


def fit(folder, *, model=None, objective=objectives.standard, own=OWN, resume=False):
    return training.fit(
        model or MLP(4, widths=(5,)), own, objective=objective, config=CONFIG,
        run_dir=folder, resume=resume, devices=jax.devices()[:1], progress=False,
    )  # fmt: skip


def start():
    model = MLP(4, widths=(5,))
    images = data.to_float(OWN.images[:1], OWN.scale)
    return create_state(model, images, optax.adam(1e-3), CONFIG)


@pytest.mark.parametrize("program", OBJECTIVES)
def test_only_the_same_objective_is_taken_up(program, tmp_path):
    fit(tmp_path, objective=run(OBJECTIVES[program]))
    fit(tmp_path, objective=run(OBJECTIVES[program]), resume=True)
    with pytest.raises(ValueError, match="holds a run with another objective"):
        fit(tmp_path, objective=run(OBJECTIVES[program], 2.0), resume=True)


@pytest.mark.parametrize("program", MODELS)
def test_only_the_same_model_is_taken_up(program, tmp_path):
    fit(tmp_path, model=run(MODELS[program]))
    fit(tmp_path, model=run(MODELS[program]), resume=True)
    with pytest.raises(ValueError, match="holds a run with another model"):
        fit(tmp_path, model=run(MODELS[program], 2.0), resume=True)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"scale": 200.0}, "scale"),
        ({"num_classes": 4}, "num_classes"),
        ({"images": OWN.images.astype(np.int16)}, "data"),
        ({"labels": OWN.labels[::-1].copy()}, "data"),
    ],
)
def test_only_the_same_data_are_taken_up(change, name, tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match=f"another {name}"):
        fit(tmp_path, own=OWN._replace(**change), resume=True)


def test_only_the_same_optimizer_is_the_same_description(tmp_path):
    def describe(optimizer):
        model = MLP(4, widths=(5,))
        return describe_run(model, OWN, objectives.standard, CONFIG, optimizer)

    journal = Journal(tmp_path, describe(optax.adam(1e-3)), resume=False)
    journal.open(start())
    journal.save(start(), {})
    journal.close()
    Journal(tmp_path, describe(optax.adam(1e-3)), resume=True)
    for other in (optax.adam(2e-3), optax.sgd(1e-3), None):
        with pytest.raises(ValueError, match="another optimizer"):
            Journal(tmp_path, describe(other), resume=True)


def test_the_outputs_are_computed_for_a_folder_only(tmp_path):
    called = []
    description = {"model_outputs": lambda: called.append(1) or np.ones((8, 4))}
    Journal(None, description, resume=False)
    assert not called
    Journal(tmp_path, description, resume=False)
    assert called


# ------------------------------------------------------------------ lost descriptions


def test_checkpoints_that_do_not_say_of_which_run_they_are(tmp_path):
    checkpoints.save_checkpoint(tmp_path / "checkpoints", 2, start())
    with pytest.raises(ValueError, match="run_dir=.* do not say of which run"):
        fit(tmp_path, resume=True)


def test_records_without_their_checkpoints(tmp_path):
    fit(tmp_path)
    file = tmp_path / "metrics.jsonl"
    shutil.rmtree(tmp_path / "checkpoints")
    # a run may be killed between the first record of an epoch and its checkpoint
    state = fit(tmp_path, resume=True)
    assert int(state.step) == 2
    records = files.load_json_lines(file)
    files.append_json_line(file, records[-1] | {"epoch": 2, "step": 4})
    before = file.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="run_dir=.* records of 2 epochs, but no"):
        fit(tmp_path, resume=True)
    assert file.read_bytes() == before
