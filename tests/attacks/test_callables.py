"""One MLP in eight spellings: every attack does the same to all of them.

Compiling every attack for every spelling would take minutes. So all spellings, wrapped
as an attack wraps them, go into one model that calls the one of a given number.
"""

import functools
import itertools
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import Partial

from robjax import attacks
from robjax.balls import L2, Linf
from robjax.model import as_logits_fn

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = jnp.asarray(RNG.uniform(size=(4, 3, 3, 1)), jnp.float32)
WIDTHS = (9, 5, 4)


def weights(seed):
    rng = np.random.default_rng(seed)
    return [
        (
            jnp.asarray(rng.normal(size=pair) / 2, jnp.float32),
            jnp.asarray(rng.normal(size=pair[1]) / 10, jnp.float32),
        )
        for pair in itertools.pairwise(WIDTHS)
    ]


def mlp(params, x):
    (w1, b1), (w2, b2) = params
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ w1 + b1[None]) @ w2 + b2[None]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return nn.Dense(4)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = (
            nnx.Linear(9, 5, rngs=rngs),
            nnx.Linear(5, 4, rngs=rngs),
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x.reshape(x.shape[0], -1)))
        return self.second(self.dropout(x))


class PerSample(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x.ravel())))


LINEN = Linen()


def variables(params):
    layers = [{"kernel": w, "bias": b} for w, b in params]
    return {"params": {f"Dense_{i}": layer for i, layer in enumerate(layers)}}


def in_nnx(params):
    module = Nnx(nnx.Rngs(0))
    for layer, (w, b) in zip((module.first, module.second), params, strict=True):
        layer.kernel, layer.bias = nnx.Param(w), nnx.Param(b)
    module.eval()
    return module


def in_equinox(params):
    def linear(w, b):
        layer = eqx.nn.Linear(*w.shape, key=KEY)
        return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (w.T, b))

    return PerSample(*(linear(w, b) for w, b in params))


def haiku_apply(params, rng, x):
    """As `hk.transform` makes it: parameters, a key or None, then the arguments."""
    assert rng is None
    return mlp([params["first"], params["second"]], x)


def in_haiku(params):
    return dict(zip(("first", "second"), params, strict=True))


FORMS = {
    "linen Partial": lambda p: Partial(LINEN.apply, variables(p)),
    "linen partial": lambda p: functools.partial(LINEN.apply, variables(p)),
    "linen bound": lambda p: LINEN.bind(variables(p)),
    "nnx": in_nnx,
    "equinox": lambda p: eqx.filter_vmap(in_equinox(p)),
    "haiku": lambda p: Partial(haiku_apply, in_haiku(p), None),
    "vmap": lambda p: jax.vmap(in_equinox(p)),
    "function": lambda p: lambda x: mlp(p, x),
}
PARAMS, OTHERS = weights(0), weights(1)
Y = jnp.argmax(mlp(PARAMS, X), axis=1)
TRACES = []


def choose(number, models, x):
    TRACES.append(None)
    return lax.switch(number, models, x)


def model(number, params):
    """The spelling of this number, among all of them."""
    forms = [as_logits_fn(form(params)) for form in FORMS.values()]
    return Partial(choose, jnp.int32(number), forms)


def no_labels(attack):
    return lambda logits_fn, x, y, **options: attack(logits_fn, x, **options)


bind: Any = functools.partial
linf: dict[str, Any] = {"ball": Linf(0.1), "key": KEY}
l2: dict[str, Any] = {"ball": L2(0.4), "key": KEY}
rough: dict[str, Any] = {"steps": 3, "reference_quirks": True}
ensemble: dict[str, Any] = {"version": "custom", "attacks": {"fgsm": attacks.fgsm}}
ATTACKS = {
    "fgsm": bind(attacks.fgsm, **linf),
    "mi_fgsm": bind(attacks.mi_fgsm, steps=3, **linf),
    "pgd": bind(attacks.pgd, steps=3, **linf),
    "kl_pgd": bind(no_labels(attacks.kl_pgd), steps=3, **linf),
    "apgd": bind(attacks.apgd, steps=5, **linf),
    "apgd_targeted": bind(attacks.apgd_targeted, steps=5, targets=2, **linf),
    "fab": bind(attacks.fab, steps=3, targets=2, **linf),
    "square": bind(attacks.square, queries=5, **linf),
    "deepfool": bind(attacks.deepfool, **rough, **l2),
    "ddn": bind(attacks.ddn, **rough, **l2),
    "fmn": bind(attacks.fmn, **rough, **linf),
    "carlini_wagner": bind(attacks.carlini_wagner, searches=2, **rough, **l2),
    "autoattack": bind(
        attacks.autoattack, **ensemble, devices=jax.local_devices()[:1], **linf
    ),
}


def assert_same(result, wanted):
    for field, value in result._asdict().items():
        other = getattr(wanted, field)
        if np.asarray(value).dtype.kind == "f":
            # at a boundary the loss is what rounding leaves of a difference
            atol = 1e-5 if field == "loss" else 1e-6
            np.testing.assert_allclose(value, other, atol=atol, rtol=1e-6)
        else:
            np.testing.assert_array_equal(value, other)


def test_no_attack_is_forgotten():
    names = {name for name in attacks.__all__ if name.islower()}
    no_attacks = {"gradient_free", "square_queries", "success_rate", "suite"}
    no_attacks |= {"likeliest", "limits", "paste", "to_target"}
    # they find or put one change for all images
    no_attacks |= {"patch", "patched", "perturbed", "universal"}
    made_of_others = {"minimal_distance"}
    # they take models as `square` does, and are slow to compile
    labels_alone = {"boundary_attack", "hop_skip_jump"}
    assert names - no_attacks - made_of_others - labels_alone == ATTACKS.keys()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_spelling_of_the_model_does_not_matter(name):
    attack = ATTACKS[name]
    results = [attack(model(i, PARAMS), X, Y) for i in range(len(FORMS))]
    for result in results[1:]:
        assert_same(result, results[0])
    before = len(TRACES)
    others = [attack(model(i, OTHERS), X, Y) for i in range(len(FORMS))]
    if name != "autoattack":  # other weights leave it other numbers of samples
        assert len(TRACES) == before  # new weights, nothing compiled
    assert (others[0].loss != results[0].loss).any()
    for result in others[1:]:
        assert_same(result, others[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_model_as_its_library_makes_it(form):
    for params in (PARAMS, OTHERS):
        result = ATTACKS["fgsm"](FORMS[form](params), X, Y)
        assert_same(result, ATTACKS["fgsm"](model(0, params), X, Y))
