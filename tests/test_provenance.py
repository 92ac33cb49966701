"""Whether two functions are told apart, for runs that are taken up again."""

import functools
import types

import numpy as np

from robjax.provenance import describe


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
