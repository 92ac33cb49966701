"""Whether two functions are told apart, for runs that are taken up again."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax.balls import L1, Linf
from robjax.runs import provenance
from robjax.runs.provenance import checksum, describe, versions


def weighted(beta):
    def objective(x):
        return beta * x

    return objective


def test_what_a_function_holds_belongs_to_it():
    assert describe(weighted(1)) == describe(weighted(1))
    assert describe(weighted(1)) != describe(weighted(5))
    one, other = (weighted(np.arange(3.0) + shift) for shift in (0, 1))
    assert describe(one) != describe(other)
    assert describe(functools.partial(one, x=1)) != describe(functools.partial(other))


def test_functions_of_one_name_in_two_files_differ():
    def twin(module):
        names = {"__name__": module}
        exec("def objective(x): return x", names)
        return names["objective"]

    assert describe(twin("a")) == "a.objective" != describe(twin("b"))


def test_functions_that_call_themselves_or_each_other():
    def count(x):
        return back(x - 1) if x else count

    def back(x):
        return count(x)

    assert isinstance(count, types.FunctionType)
    assert "count" in describe(count) and "back" in describe(count)


def test_no_addresses():
    assert " at 0x" not in describe(weighted(object()))


class Scaled:
    """A model as an object: nothing to see but what it holds."""

    def __init__(self, w):
        self.w, self.itself = w, self

    def __call__(self, x):
        return self.w * x

    def logits(self, x):
        return self(x)


WRAPPED = {
    "jit": lambda w: jax.jit(weighted(w)),
    "vmap": lambda w: jax.vmap(weighted(w)),
    "jit of vmap": lambda w: jax.jit(jax.vmap(weighted(w))),
    "checkpoint": lambda w: jax.checkpoint(weighted(w)),
    "default value": lambda w: lambda x, w=w: w * x,
    "object": Scaled,
    "method": lambda w: Scaled(w).logits,
    "jitted method": lambda w: jax.jit(Scaled(w).logits),
    "weights in a dictionary": lambda w: weighted({"dense": [w]}),
    "Partial": lambda w: jax.tree_util.Partial(weighted(w)),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers_do_not_hide_what_a_function_holds(wrapped):
    make, w = WRAPPED[wrapped], np.arange(3000.0)
    assert describe(make(w)) == describe(make(w.copy()))
    assert describe(make(w)) != describe(make(-w))
    # nor in the structure of a pytree, where functions are static
    one, other = (
        describe(jax.tree.structure(jax.tree_util.Partial(make(v)))) for v in (w, -w)
    )
    assert one != other


def test_long_arrays_are_not_abridged():
    """NumPy prints the ends of an array alone."""
    eps = np.full(2000, 0.1)
    one, other = describe(Linf(eps)), describe(Linf(np.where(eps.cumsum() < 99, 0, 1)))
    assert one != other and "[2000]" in one and len(one) < 60
    assert describe({"w": eps}) != describe({"w": 2 * eps})


def test_what_is_short_can_be_read():
    assert describe(Linf(0.1)) == "Linf(0.1)"
    assert describe(L1(2.0, density=0.5)) == "L1[(0.5)](2.0)"
    assert describe({"steps": (3, None, "ce")}) == "{'steps': (3, None, 'ce')}"
    assert describe(functools.partial(max, 3, key=None)) == "max(3, key=None)"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layers:
    widths: tuple[int, ...]


def test_static_values_and_rules_for_gradients_are_told_apart():
    def straight(slope):
        f = jax.custom_vjp(lambda x: jnp.round(x))
        f.defvjp(lambda x: (f(x), None), lambda _, g: (slope * g,))
        return f

    assert describe(straight(1)) == describe(straight(1)) != describe(straight(2))
    one, other = Layers((3, 4)), Layers((3, 5))
    assert "(3, 4)" in describe(one) and describe(one) != describe(other)
    one, other = (describe(jax.tree.structure({"m": each})) for each in (one, other))
    assert one != other


def test_checksums_of_bfloat16():
    one = jnp.ones((2, 3), jnp.bfloat16)
    assert checksum(one) == checksum(one + 0) != checksum(-one)


def test_no_paths_of_files_that_jit_leaves_on_what_wraps_it():
    assert "/" not in describe(jax.custom_jvp(jax.jit(weighted(1))))


def test_versions_name_what_a_result_depends_on():
    found = versions()
    assert found["packages"]["jax"] == jax.__version__
    assert found["device"] == "8 x cpu"


def test_no_flipped_bit_of_a_description_passes(tmp_path):
    def begin(**options):
        return provenance.open_run(
            tmp_path,
            lambda: {"eps": 0.125, "attacks": provenance.identify(np.tanh)},
            parts="*.npz",
            **options,
        )

    begin(resume=False)
    file = tmp_path / "run.json"
    content = file.read_bytes()
    refused = 0
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 7)
        file.write_bytes(changed)
        try:
            begin(resume=True)
        except ValueError as error:
            assert "run.json" in str(error) and "name another folder" in str(error)
            refused += 1
        else:  # a space for another
            assert json.loads(changed) == json.loads(content)
    assert refused > len(content) // 10
