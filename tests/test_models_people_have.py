"""Models, images and labels as people give them: what does not fit is told in one line.

Each mistake is a ValueError that says what to write instead, and what it says works.
"""

import functools
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
from flax import nnx
from jax.tree_util import Partial

from robjax import attacks, metrics, models
from robjax.balls import Linf
from robjax.checks import check_images, check_labels, check_logits
from robjax.model import as_logits_fn, count_classes

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = jnp.asarray(RNG.uniform(size=(4, 8, 8, 1)), jnp.float32)
Y = jnp.array([0, 1, 2, 0])
W = jnp.asarray(RNG.normal(size=(64, 3)), jnp.float32)


def flat(x):
    return x.reshape(x.shape[0], -1)


def linear(params, x):
    return flat(x) @ params


class InTrainMode(nn.Module):
    """Asks for `train`, and draws and mixes images if it is true."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(flat(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxNet(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(64, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(64, rngs=nnx.Rngs(1))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(flat(x))))

    def logits(self, x):
        return self(x)


class ChannelsFirst(eqx.Module):
    conv: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self):
        self.conv = eqx.nn.Conv2d(1, 2, 3, key=KEY)
        self.dense = eqx.nn.Linear(72, 3, key=KEY)

    def __call__(self, x):
        return self.dense(self.conv(x).ravel())


class Callable:
    def __init__(self, params):
        self.params = params

    def __call__(self, x):
        return linear(self.params, x)


def haiku_apply(params, rng, x):
    """As `hk.transform` makes it."""
    return linear(params, x)


def haiku_with_state(params, state, rng, x):
    """As `hk.transform_with_state` makes it."""
    return linear(params, x), state


LINEN = InTrainMode()
VARIABLES = jax.jit(functools.partial(LINEN.init, train=False))(KEY, X)
TORCH = type("Net", (), {"__module__": "torch.nn.modules.module", "__call__": id})()
SKLEARN = sklearn.linear_model.LogisticRegression().fit(np.asarray(flat(X)), Y)
DROPOUT = eqx.nn.Sequential(
    [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(64, 3, key=KEY), eqx.nn.Dropout(0.5)]
)


def single_logit(x):
    return linear(W, x)[:, 0]


MISTAKES: dict[str, tuple[Any, str]] = {
    # what a model returns
    "a dict": (
        lambda x: {"features": flat(x), "logits": linear(W, x)},
        r"one array, got dict; return its \['logits'\] alone",
    ),
    "logits and state": (
        lambda x: (linear(W, x), {"mean": jnp.zeros(3)}),
        r"one array, got tuple; return its \[0\] alone",
    ),
    "a list of scores": (lambda x: list(linear(W, x).T), "one array, got list"),
    "nothing": (lambda x: None, "one array, got NoneType"),
    "a single logit": (single_logit, r"shape \(4,\).*jnp.stack\(\[jnp.zeros"),
    "a column": (lambda x: single_logit(x)[:, None], r"shape \(4, 1\).*jnp.stack"),
    "classes": (lambda x: linear(W, x).argmax(1), "got int32.*return the scores"),
    "flags": (lambda x: linear(W, x) > 0, "got bool.*return the scores"),
    "transposed": (lambda x: linear(W, x).T, r"shape \(3, 4\); return logits.T"),
    "an image of one pixel": (
        lambda x: linear(W, x)[:, None, None],
        r"shape \(4, 1, 1, 3\); return logits.reshape\(len\(logits\), -1\)",
    ),
    "a sum": (lambda x: linear(W, x).sum(), r"got shape \(\)"),
    # what a model needs
    "no variables": (LINEN.apply, r"without variables: give .*Partial\(model.apply"),
    "no weights": (LINEN, r"without weights: give .*Partial\(model.apply"),
    "an unbound method of its own": (
        models.MLP(3).apply,
        r"MLP.apply without variables: give .*Partial\(model.apply",
    ),
    "no train": (
        Partial(LINEN.apply, VARIABLES),
        r"needs train=False: give functools.partial\(logits_fn, train=False\)",
    ),
    "train mode": (
        Partial(LINEN.apply, VARIABLES, train=True),
        r"needs train=False: give functools.partial\(logits_fn, train=False\)",
    ),
    "train mode inside": (
        lambda x: LINEN.apply(VARIABLES, x, train=True),
        "in train mode.*train=False",
    ),
    "NNX in train mode": (
        NnxNet(),
        r"call \.eval\(\) on it first \(at (norm|dropout)\)",
    ),
    "NNX in a closure": (
        (lambda module: lambda x: module(x))(NnxNet()),
        r"call \.eval\(\) on it first",
    ),
    "a method of NNX": (NnxNet().logits, r"call \.eval\(\) on it first"),
    "Equinox in train mode": (
        jax.vmap(DROPOUT),
        r"give eqx.nn.inference_mode\(model\)",
    ),
    "single images": (
        eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(64, 3, key=KEY)]),
        r"single images \[8, 8, 1\]: give jax.vmap\(logits_fn\)",
    ),
    "channels first": (
        jax.vmap(ChannelsFirst()),
        r"channels first: give lambda x: logits_fn\(jnp.moveaxis\(x, -1, 1\)\)",
    ),
    "single images, channels first": (
        ChannelsFirst(),
        r"channels first: give lambda x: jax.vmap\(logits_fn\)\(jnp.moveaxis",
    ),
    "rows of pixels": (
        lambda x: x @ W,
        r"rows of pixels: give lambda x: logits_fn\(x.reshape\(len\(x\), -1\)\)",
    ),
    "Haiku": (
        Partial(haiku_apply, W),
        r"key before the images.*Partial\(model.apply, params, None\)",
    ),
    "Haiku with state": (
        Partial(haiku_with_state, W, {}),
        r"returns \(logits, state\).*model.apply\(params, state, None, x\)\[0\]",
    ),
    "Haiku without params": (
        haiku_apply,
        r"arguments are \(params, rng, x\).*Partial\(logits_fn, params, None\)",
    ),
    "Haiku's pair": (
        SimpleNamespace(init=None, apply=haiku_apply),
        r"Partial\(model.apply, params, None\)",
    ),
    "unbound params": (
        linear,
        r"arguments are \(params, x\).*Partial\(logits_fn, params\)",
    ),
    "unbound params under jit": (
        jax.jit(linear),
        r"arguments are \(params, x\).*Partial\(logits_fn, params\)",
    ),
    "an argument without a value": (
        lambda x, train: linear(W, x),
        r"needs train=False: give functools.partial\(logits_fn, train=False\)",
    ),
    "another one": (
        lambda x, temperature: linear(W, x) / temperature,
        r"arguments are \(x, temperature\).*partial\(logits_fn, temperature=…\)",
    ),
    "one that is not used": (
        lambda x, flag: linear(W, x),
        r"arguments are \(x, flag\).*partial\(logits_fn, flag=…\)",
    ),
    "keys": (
        lambda x, keys: linear(W, x) + jax.vmap(jax.random.normal)(keys)[:, None],
        r"takes \(images, keys \[B\]\).*give eot=n",
    ),
    "one key": (
        lambda x, key: linear(W, x) + jax.random.normal(key, (1, 3)),
        r"one random key.*give lambda x, keys",
    ),
    # what is no model
    "PyTorch": (TORCH, r"Net of PyTorch: give .*from_torch\(module.eval"),
    "NumPy": (lambda x: np.asarray(x), "NumPy arrays of its images.*square_queries"),
    "scikit-learn": (SKLEARN, r"LogisticRegression: .*model.coef_.T.*square_queries"),
    "a method of scikit-learn": (SKLEARN.decision_function, "NumPy.*square_queries"),
    "a branch": (lambda x: x @ W if x.sum() > 0 else x, "branches.*jnp.where"),
    "a class": (InTrainMode, "the class InTrainMode: make an instance"),
    "a class of one's own": (Callable, "the class Callable: make an instance"),
    "weights": (VARIABLES, r"weights are no model; give .*Partial\(model.apply"),
    "a train state": (
        SimpleNamespace(apply_fn=LINEN.apply, params=VARIABLES),
        r"Partial\(state.apply_fn, \{'params': state.params\}\)",
    ),
    "nothing at all": (None, "callable from images to logits, got NoneType"),
    "a name": ("resnet", "callable from images to logits, got str"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_error_that_says_what_to_write(name):
    model, message = MISTAKES[name]
    with pytest.raises(ValueError, match=f"^logits_fn .*{message}"):
        attacks.fgsm(model, X, Y, ball=Linf(0.1))
    with pytest.raises(ValueError, match=f"^logits_fn .*{message}"):
        count_classes(as_logits_fn(model), X)


METRICS: dict[str, Any] = {
    "kl_components": lambda model: metrics.kl_components(model, X, X[::-1]),
    "kl_path": lambda model: metrics.kl_path(model, X, X[::-1], jnp.ones(2)),
    "kl_to_class_means": lambda model: metrics.kl_to_class_means(model, X, Y),
    "pairwise_kl": lambda model: metrics.pairwise_kl(model, X, Y),
    "class_pair_kl": lambda model: metrics.class_pair_kl(model, X, Y),
    "fisher_spectrum": lambda model: metrics.fisher_spectrum(model, X),
    "Lanczos": lambda model: metrics.fisher_spectrum(model, X, lanczos_steps=2),
    "saliency": lambda model: metrics.saliency.saliency(model, X, Y, width=1),
}


@pytest.mark.parametrize("mistake", ["a dict", "single images", "Haiku", "transposed"])
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_tell_a_mistake_as_attacks_do(metric, mistake):
    model, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=f"^logits_fn .*{message}"):
        METRICS[metric](model)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_take_models_that_read_the_values_of_their_weights(metric):
    rows = np.asarray(W)
    found = METRICS[metric](lambda x: flat(x) @ W / np.linalg.norm(rows))
    known = METRICS[metric](lambda x: flat(x) @ W / float(np.linalg.norm(rows)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "predict",
    [
        lambda x: x.reshape(len(x), 7),
        lambda x: x.detach(),
        lambda: 1,
        Partial(haiku_apply, W),
        LINEN,
    ],
)
def test_what_cannot_take_images_is_no_function_to_query(predict):
    with pytest.raises(ValueError, match=r"^predict .*\[4, 8, 8, 1\] of float32"):
        attacks.square_queries(predict, X, Y, key=KEY, ball=Linf(0.1), queries=2)


def two_classes(x):
    z = single_logit(x)
    return jnp.stack([jnp.zeros(len(z)), z.reshape(-1)], axis=1)


# What the messages say, written out.
MENDED: dict[str, Any] = {
    "a dict": lambda x: MISTAKES["a dict"][0](x)["logits"],
    "logits and state": lambda x: MISTAKES["logits and state"][0](x)[0],
    "a single logit": two_classes,
    "no variables": functools.partial(Partial(LINEN.apply, VARIABLES), train=False),
    "Equinox": jax.vmap(eqx.nn.inference_mode(DROPOUT)),
    "single images": jax.vmap(MISTAKES["single images"][0]),
    "channels first": lambda x: jax.vmap(ChannelsFirst())(jnp.moveaxis(x, -1, 1)),
    "rows of pixels": lambda x: MISTAKES["rows of pixels"][0](x.reshape(len(x), -1)),
    "Haiku": Partial(haiku_apply, W, None),
    "Haiku with state": lambda x: haiku_with_state(W, {}, None, x)[0],
    "keys": lambda x: MISTAKES["keys"][0](x, jnp.broadcast_to(KEY, len(x))),
    "params": Partial(jax.jit(linear), W),
    "an instance": Callable(W),
    "scikit-learn": lambda x: flat(x) @ SKLEARN.coef_.T + SKLEARN.intercept_[None],
}


def in_eval_mode():
    module = NnxNet()
    module.eval()
    return module


MENDED["NNX"] = in_eval_mode()
MENDED["NNX in a closure"] = lambda x: MENDED["NNX"](x)
MENDED["a method of NNX"] = MENDED["NNX"].logits


@pytest.mark.parametrize("name", MENDED)
def test_what_the_messages_say_works(name):
    model = MENDED[name]
    classes = 2 if name == "a single logit" else 3
    wrapped = as_logits_fn(model)
    assert count_classes(wrapped, X) == classes
    np.testing.assert_allclose(
        jax.jit(lambda f, x: f(x))(wrapped, X), model(X), rtol=1e-5, atol=1e-6
    )


def test_two_classes_of_one_logit_have_its_decision_and_its_gradient():
    """softmax([0, z]) is the logistic function of z."""
    np.testing.assert_allclose(
        jax.nn.softmax(two_classes(X))[:, 1], jax.nn.sigmoid(single_logit(X)), rtol=1e-6
    )


def test_a_randomised_model_where_none_is_meant():
    wrapped = as_logits_fn(functools.partial(linear, W))
    keys = jax.random.split(KEY, 4)
    with pytest.raises(ValueError, match="when eot is given: .*needs no eot"):
        count_classes(wrapped, X, keys)


def test_the_first_error_is_shown_only_where_nothing_else_is_known():
    with pytest.raises(ValueError, match="bind the others") as caught:
        count_classes(as_logits_fn(linear), X)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__

    def mistaken(x):
        raise TypeError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        count_classes(as_logits_fn(mistaken), X)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_logits_of_any_common_precision(dtype):
    model = as_logits_fn(lambda x: linear(W, x).astype(dtype))
    assert count_classes(model, X) == 3


def test_logits_of_float64():
    assert check_logits(np.zeros((4, 3)), 4).dtype == np.float64
    with jax.enable_x64(True):
        assert check_logits(jnp.zeros((4, 3), jnp.float64), 4).dtype == jnp.float64


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int32", "floating-point.*got int32.*return the scores"),
        ("complex64", "floating-point.*got complex64"),
        ("float8_e4m3fn", "got float8_e4m3fn: return logits.astype"),
    ],
)
def test_logits_of_other_types_are_refused(dtype, message):
    with pytest.raises(ValueError, match=message):
        check_logits(jnp.zeros((4, 3), dtype), 4)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[0], Y[0], r"x \[8, 8, 1\] is one image: give x\[None\]"),
        (X[0], Y[:1], r"x \[8, 8, 1\] is one image: give x\[None\]"),
        (X[0, 0], Y[:1], r"x must .*|logits_fn .*"),
        (flat(X)[0], Y[0], r"x must be .*one image is the batch x\[None\]"),
        (X.tolist(), Y, r"x must be an array.*got list: give np.asarray\(x\)"),
        (255 * X, Y, r"x must lie inside.*give x / 255, or bounds=\(0, 255\)"),
        (2 * X - 1, Y, "x must lie inside.*scale x to the bounds"),
        (jnp.uint8(255 * X), Y, "x must be floating point.*x / 255"),
        (X, Y[0], r"y must have shape.*if x is one image, give x\[None\]"),
        (X, jax.nn.one_hot(Y, 3), r"y must .*one-hot.*y.argmax\(axis=1\)"),
        (X, Y[:, None], r"y must .*give y\[:, 0\]"),
        (X, Y.astype(float), r"y must be integer.*y.astype\(int\)"),
        (X, Y + 1, "y must hold labels 0 to 2.*count from 0, give y - 1"),
        (X, Y[:3], r"y must have shape \(4,\)"),
    ],
)
def test_images_and_labels(x, y, message):
    with pytest.raises(ValueError, match=f"^(logits_fn .*)?{message}"):
        attacks.fgsm(Partial(linear, W), x, y, ball=Linf(0.1))


def test_one_image_to_a_model_that_takes_any_shape():
    with pytest.raises(ValueError, match=r"if x is one image, give x\[None\]"):
        attacks.fgsm(lambda x: flat(x)[:, :3], X[0], Y[0], ball=Linf(0.1))


def test_other_libraries_arrays():
    tensor = type("Tensor", (), {"__module__": "torch"})()
    with pytest.raises(ValueError, match=r"got Tensor: give np.asarray\(x\)"):
        check_images(tensor)
    with pytest.raises(ValueError, match="got Tensor"):
        check_labels(tensor, 4)
