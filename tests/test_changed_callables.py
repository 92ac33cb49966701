"""A callable that changed in place is another one, whatever changed in it."""

import functools
import sys
import types
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax.model import as_logits_fn
from tests.callables import Nnx, Runner, X, weights

GLOBAL: Any = None  # what tests bind their weights to
FACTOR: Any = 1.0


def rebound_cell(w):
    def rebind(other):
        nonlocal w
        w = other

    return lambda x: x @ w, rebind


def rebound_global(w):
    def rebind(other):
        global GLOBAL
        GLOBAL = other

    rebind(w)
    return lambda x: x @ GLOBAL, rebind


def read_by_a_helper(x):
    return x @ GLOBAL


def rebound_global_of_a_helper(w):
    _, rebind = rebound_global(w)
    return lambda x: read_by_a_helper(x), rebind


def changed_dict(w):
    params = {"w": w}
    return lambda x: x @ params["w"], functools.partial(params.__setitem__, "w")


def changed_in_place(w):
    held = np.array(w)

    def rebind(other):
        held[:] = other

    return lambda x: x @ held, rebind


class Net:
    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return x @ self.w

    def forward(self, x):
        return x @ self.w


def changed_object(w):
    net = Net(w)
    return net, functools.partial(setattr, net, "w")


def changed_object_in_place(w):
    net = Net(np.array(w))

    def rebind(other):
        net.w[:] = other

    return net, rebind


def changed_owner_of_a_method(w):
    net = Net(w)
    return net.forward, functools.partial(setattr, net, "w")


def changed_object_in_a_closure(w):
    net = Net(w)
    return lambda x: net.forward(x), functools.partial(setattr, net, "w")


def changed_global_object(w):
    global GLOBAL
    GLOBAL = types.SimpleNamespace(layers=[Net(w)])
    first = GLOBAL.layers[0]
    return lambda x: GLOBAL.layers[0](x), functools.partial(setattr, first, "w")


def changed_layer(w):
    net = types.SimpleNamespace(layers=[Net(w)])
    first = net.layers[0]
    return lambda x: net.layers[0](x), functools.partial(setattr, first, "w")


def changed_nnx(w):
    module = Nnx(w)

    def rebind(other):
        module.w[...] = other

    return module, rebind


def changed_nnx_in_a_closure(w):
    module, rebind = changed_nnx(w)
    return lambda x: module(x), rebind


def attribute_of_a_function(w):
    read_by_attribute.w = w
    return read_by_attribute, functools.partial(setattr, read_by_attribute, "w")


def read_by_attribute(x):
    return x @ read_by_attribute.w  # pyright: ignore[reportFunctionMemberAccess]


def module_of_the_user(w):
    module = sys.modules[__name__]
    source = "def model(x):\n    return x @ here.GLOBAL"
    names = {"__name__": "notebook", "here": module}
    exec(source, names)
    setattr(module, "GLOBAL", w)  # noqa: B010
    return names["model"], functools.partial(setattr, module, "GLOBAL")


@pytest.mark.parametrize(
    "make",
    [
        rebound_cell,
        rebound_global,
        rebound_global_of_a_helper,
        changed_dict,
        changed_in_place,
        changed_object,
        changed_object_in_place,
        changed_owner_of_a_method,
        changed_object_in_a_closure,
        changed_global_object,
        changed_layer,
        changed_nnx,
        changed_nnx_in_a_closure,
        attribute_of_a_function,
        module_of_the_user,
    ],
    ids=lambda make: make.__name__,
)
def test_the_same_function_with_other_weights_is_another_model(make):
    """Notebooks train on: `params` is bound anew, the model function is the same."""
    run = Runner()
    first = weights(0)
    second = weights(1)
    model, rebind = make(first)
    np.testing.assert_allclose(run(model), X @ first, rtol=1e-6)
    np.testing.assert_allclose(run(model), X @ first, rtol=1e-6)
    assert run.traces == 1
    rebind(second)
    np.testing.assert_allclose(run(model), X @ second, rtol=1e-6)


class Factor:
    """Multiplies; what by is found in another place in every test."""

    shared: Any = 1

    def __init__(self):
        self.factor: Any = 1

    def __call__(self, x):
        return self.factor * x

    def by_class(self, x):
        return self.shared * x

    def by_global(self, x):
        return FACTOR * x


class LinenFactor(nn.Module):
    def __call__(self, x):
        return FACTOR * x


class EquinoxFactor(eqx.Module):
    def __call__(self, x):
        return FACTOR * x


def set_global(value):
    global FACTOR
    FACTOR = value


def in_an_attribute():
    net = Factor()
    return net, functools.partial(setattr, net, "factor")


def in_an_attribute_of_a_closure():
    net = types.SimpleNamespace(factor=1)
    return lambda x: net.factor * x, functools.partial(setattr, net, "factor")


def in_a_list():
    factors = [1]
    return lambda x: factors[0] * x, functools.partial(factors.__setitem__, 0)


def in_a_default_list():
    factors: list[Any] = [1]

    def model(x, factors=factors):
        return factors[0] * x

    return model, functools.partial(factors.__setitem__, 0)


def in_a_dict():
    factors = {"x": 1}
    return lambda x: factors["x"] * x, functools.partial(factors.__setitem__, "x")


def in_a_class():
    Factor.shared = 1
    return Factor().by_class, functools.partial(setattr, Factor, "shared")


def in_a_class_of_a_closure():
    Factor.shared = 1
    return lambda x: Factor.shared * x, functools.partial(setattr, Factor, "shared")


def in_slots():
    slots: Any = type("Slots", (), {"__slots__": ("factor",)})
    net = slots()
    net.factor = 1
    return lambda x: net.factor * x, functools.partial(setattr, net, "factor")


def by_a_method():
    set_global(1)
    return Factor().by_global, set_global


def by_a_linen_module():
    set_global(1)
    return Partial(LinenFactor().apply, {}), set_global


def by_an_equinox_module():
    set_global(1)
    return EquinoxFactor(), set_global


def by_an_object_in_a_closure():
    set_global(1)
    module = EquinoxFactor()
    return lambda x: module(x), set_global


@pytest.mark.parametrize("value", [2, 2.5, np.float32(3), True], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        in_an_attribute,
        in_an_attribute_of_a_closure,
        in_a_list,
        in_a_default_list,
        in_a_dict,
        in_a_class,
        in_a_class_of_a_closure,
        in_slots,
        by_a_method,
        by_a_linen_module,
        by_an_equinox_module,
        by_an_object_in_a_closure,
    ],
    ids=lambda make: make.__name__,
)
def test_numbers_that_change_in_place_are_used(make, value):
    model, change = make()
    run = jax.jit(lambda fn, x: fn(x))
    x = X[:, :3]
    np.testing.assert_allclose(run(as_logits_fn(model), x), x)
    change(value)
    np.testing.assert_allclose(run(as_logits_fn(model), x), value * x, rtol=1e-6)


def test_numbers_and_functions_of_a_module_count():
    names = {"__name__": "notebook", "w": weights(0), "factor": 1.0}
    exec("def scale(x):\n    return factor * x", names)
    exec("def model(x):\n    return scale(x @ w)", names)
    run = Runner()
    model = names["model"]
    np.testing.assert_allclose(run(model), X @ names["w"], rtol=1e-6)
    names["factor"] = 2.0
    np.testing.assert_allclose(run(model), 2 * X @ names["w"], rtol=1e-6)
    exec("def scale(x):\n    return -factor * x", names)
    np.testing.assert_allclose(run(model), -2 * X @ names["w"], rtol=1e-6)
