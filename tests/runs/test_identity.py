"""Functions and objects are told apart by what they do, and by nothing else."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import attacks, losses
from robjax.balls import Linf
from robjax.model import as_logits_fn
from robjax.runs import files
from robjax.runs.identity import checksum, describe, identify
from tests.runs.programs import PROGRAMS, run


@pytest.mark.parametrize("program", PROGRAMS)
def test_two_versions_of_a_program_differ_and_one_is_itself(program):
    def known(value):
        f = run(PROGRAMS[program], value)
        # a dictionary is no model
        model = None if isinstance(f, dict) else as_logits_fn(f)
        return identify(f), identify(model)

    one, same, other = map(known, (1.0, 1.0, 2.0))
    assert one == same
    assert one[0] != other[0]
    assert one[1] != other[1] or program == "subclass of dict"


def test_the_programs_do_what_their_versions_say():
    """Otherwise the test above would say little."""
    x = jnp.linspace(0.1, 1, 24).reshape(2, 12)
    for program, source in PROGRAMS.items():
        one, same, other = (run(source, value)(x) for value in (1.0, 1.0, 2.0))
        if program == "rule for gradients":
            one, other = (
                jax.grad(lambda v, f=f: f(v).sum())(x)
                for f in (run(source, 1.0), run(source, 2.0))
            )
            same = one
        np.testing.assert_array_equal(one, same, err_msg=program)
        assert np.abs(one - other).max() > 1e-3, program


SAME = {
    "comments and docstrings": (
        "def f(x):\n  'a docstring'\n  return x",
        "def f(x):\n  'another one'\n\n  # which\n  return x",
    ),
    "no docstring": (
        "def f(x): return (x, 'a')",
        "def f(x):\n  'b'\n  return (x, 'a')",
    ),
    "names of local variables": (
        "def f(x):\n  a = 2 * x\n  return a",
        "def f(x):\n  b = 2 * x\n  return b",
    ),
    "unrelated variables": (
        "W = 1\ndef f(x): return W * x.other",
        "W = 1\nother = 2\ndef f(x): return W * x.other",
    ),
    "other options of a script": (
        "args = argparse.Namespace(width=3, resume=False)\n"
        "def f(x): return args.width * x",
        "args = argparse.Namespace(width=3, resume=True)\n"
        "def f(x): return args.width * x",
    ),
    "other options in a closure": (
        "def make(a): return lambda x: a.width * x\n"
        "f = make(argparse.Namespace(width=3, resume=False))",
        "def make(a): return lambda x: a.width * x\n"
        "f = make(argparse.Namespace(width=3, resume=True))",
    ),
    "counter of its own calls": (
        "calls = 0\ndef f(x):\n  global calls\n  calls += 1\n  return x",
        "calls = 7\ndef f(x):\n  global calls\n  calls += 1\n  return x",
    ),
    "log of its own calls": (
        "calls = []\ndef f(x):\n  calls.append(1)\n  return x",
        "calls = [1, 1]\ndef f(x):\n  calls.append(1)\n  return x",
    ),
    "log in a closure": (
        "def make(log): return lambda x: log.append(1) or x\nf = make([])",
        "def make(log): return lambda x: log.append(1) or x\nf = make([1])",
    ),
    "functions of a module that are not called": (
        "other = module('other', 'W = 1; V = 2')\ndef f(x): return other.W * x",
        "other = module('other', 'W = 1; V = 3')\ndef f(x): return other.W * x",
    ),
    "order of a dictionary": (
        "W = {'a': 1, 'b': 2}\ndef f(x): return W['a'] * x",
        "W = {'b': 2, 'a': 1}\ndef f(x): return W['a'] * x",
    ),
    "an equal copy": (
        "a = [1.0]\ndef make(u, v): return lambda x: u[0] * v[0] * x\nf = make(a, a)",
        "a = [1.0]\n"
        "def make(u, v): return lambda x: u[0] * v[0] * x\n"
        "f = make(a, list(a))",
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_does_not_change_what_a_function_does_does_not_count(kind):
    one, other = (identify(run(source)) for source in SAME[kind])
    assert one == other


def test_identities_do_not_depend_on_the_process():
    """Another process has other addresses and another order of sets; all programs."""
    code = (
        "import json, sys\n"
        "from robjax.runs.identity import identify\n"
        "from tests.runs.programs import PROGRAMS, run\n"
        "found = {name: identify(run(source)) for name, source in PROGRAMS.items()}\n"
        "found['builtin'] = identify({max, min, int, ('a', frozenset('xyz'))})\n"
        "json.dump(found, sys.stdout)\n"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    there = json.loads(process.stdout)
    # and this process has run other things before
    here = {name: identify(run(source)) for name, source in PROGRAMS.items()}
    here["builtin"] = identify({max, min, int, ("a", frozenset("xyz"))})
    assert here.keys() == there.keys()
    for name, identity in here.items():
        assert list(identity) == there[name], name


def test_the_order_of_functions_of_one_name_counts():
    def make(*layers):
        return lambda x: functools.reduce(lambda v, layer: layer(v), layers, x)

    one, two = (lambda x: x + 1), (lambda x: x + 2)
    made = [(one, two), (two, one), (one, two, one), (one, two, two)]
    known = [identify(make(*layers)) for layers in made]
    assert all(a != b for i, a in enumerate(known) for b in known[:i])


def test_a_log_that_is_read_counts():
    source = "calls = VALUES\ndef f(x):\n  calls.append(1)\n  return x * len(calls)"
    one, other = (run(source.replace("VALUES", log)) for log in ("[]", "[1, 1]"))
    assert identify(one) != identify(other)


def test_an_empty_cell_is_no_error():
    def make(full):
        if full:
            value = 1
        return lambda: value

    assert "<empty>" in describe(make(False))
    assert describe(make(True)) != describe(make(False))


def test_single_numbers_are_exact():
    one, other = 0.1234567890123, 0.1234567890124
    with jax.enable_x64(True):
        for array in (np.array, jnp.array, np.float64):
            assert describe(array(one)) != describe(array(other))
    assert describe(np.float32(1)) != describe(np.float64(1))
    assert describe(1) != describe(1.0) != describe(True)
    assert describe(0.0) != describe(-0.0)
    assert describe([1, 2]) != describe((1, 2))


def test_checksums_tell_shapes_and_dtypes_apart():
    array = np.arange(12, dtype=np.int8)
    assert checksum(array) != checksum(array.reshape(3, 4))
    assert checksum(array) != checksum(array.view(np.uint8))
    assert checksum([array[:2], array[2:]]) != checksum([array[:3], array[3:]])
    keys = jax.random.split(jax.random.key(0), 2)
    assert checksum(keys) != checksum(keys[:1])


def test_words_are_short_and_whole():
    weights = {f"layer{i}": np.full(3, i) for i in range(500)}
    other = weights | {"layer321": np.zeros(3)}
    assert len(describe(weights)) < 300
    assert describe(weights) == describe(dict(weights)) != describe(other)
    text = "a" * 5000
    assert len(describe(text)) < 300 and describe(text) != describe(text[:-1] + "b")


def test_no_addresses_however_they_are_written():
    class Loud:
        def __repr__(self):
            return f"<Loud at 0X{id(self):X} or {id(self)}>"

    for value in (
        object(),
        Loud(),
        [Loud()],
        np.random.default_rng(0),
        jax.devices()[0],
    ):
        for address in (f"{id(value):x}", f"{id(value):X}", str(id(value))):
            assert address not in describe(value)
    generators = [np.random.default_rng(3) for _ in range(2)]
    assert describe(generators[0]) == describe(generators[1])


def test_what_is_installed_is_a_name_and_what_is_of_robjax_its_own_code():
    known = identify(functools.partial(attacks.pgd, ball=Linf(0.1), loss=losses.margin))
    assert known.words == (
        "robjax.attacks.pgd.pgd(ball=Linf(0.1), loss=robjax.losses.margin)"
    )
    assert known.reads == {}
    assert {"robjax.attacks.pgd.pgd", "robjax.losses.margin"} <= known.code.keys()
    assert all(name.startswith("robjax.") for name in known.code)
    installed = {
        "jax.relu": jax.nn.relu,
        "jax.tanh": jnp.tanh,
        "numpy.linspace": np.linspace,
        "json.dumps": json.dumps,
        "max": max,
        "_functools.reduce": functools.reduce,
    }
    for name, value in installed.items():
        assert identify(value) == (name, {}, {})


def test_another_version_of_python_changes_the_code_alone():
    """Words and reads of programs are made of names and values, not of bytecode."""
    for source in PROGRAMS.values():
        known = identify(run(source))
        hashes = [text for text in known.code.values() if len(text) == 16]
        assert len(hashes) == len(known.code)
        assert not any(code in known.words for code in hashes)


def test_functions_typed_into_no_module_are_the_users():
    namespaces = [{"np": np}, {"np": np}]
    for namespace, value in zip(namespaces, (1, 2), strict=True):
        exec(f"class Net:\n  def __call__(self, x): return {value} * x", namespace)
    one, other = (identify(namespace["Net"]()) for namespace in namespaces)
    assert one.words == other.words and one.code != other.code


def test_traced_values_and_donated_arrays_can_be_described():
    seen = []
    jax.jit(lambda x: seen.append(describe({"x": x})) or x)(jnp.ones(3))
    assert seen == ["{'x': traced float32[3]}"]
    array = jnp.ones(3)
    array.delete()
    assert describe(array) == "deleted float32[3]"


def test_identities_survive_json(tmp_path):
    known = identify(run(PROGRAMS["attribute of a base class"]))
    files.save_json(tmp_path / "run.json", known)
    assert files.load_json(tmp_path / "run.json") == known._asdict()
