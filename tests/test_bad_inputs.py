"""Every argument of every public function, replaced by bad values one at a time.

A mistake must end in a `ValueError` of robjax that names the argument and shows what
was given, before anything big compiles: never in a traceback from inside JAX, never in
a result. The calls are those of tests/valid_calls.py. What is bad about an argument
follows from its name, or else from the value that is good.
"""

import ast
import inspect
import pathlib
import pkgutil
import re
import traceback
from importlib import import_module
from typing import NamedTuple

import jax
import numpy as np
import pytest

import robjax
from robjax import attacks, data, evaluation, losses, metrics, training
from robjax.balls import Linf
from robjax.certification import branch_and_bound, certify
from robjax.metrics import interactions, saliency, spurious, strong_robustness
from robjax.metrics.kl import split_kl
from robjax.runs import provenance
from robjax.theory import feature_spaces, gaussian, linear_regression
from robjax.training import callbacks
from tests import valid_calls
from tests.valid_calls import CALLS, KEY, LOGITS, X, Y

ROOT = pathlib.Path(robjax.__file__).parent
NAN = float("nan")
INF = float("inf")

COUNT = (0, -1, 2.5, True, "3", None, NAN, [2], 1j)
WHOLE = COUNT[1:]  # where 0 is allowed
NUMBER = (NAN, INF, "0.1", None, 1j, {})  # where −1 is allowed
POSITIVE = (*NUMBER, -1.0)
FLAG = ("no", None, 2, 0.5, [True])
FUNCTION = (None, "f", 3)
MODEL = (
    *FUNCTION,
    lambda x: x.sum(axis=(1, 2, 3)),
    lambda x: (valid_calls.model(x), x),
    lambda x: valid_calls.model(x).astype(int),
    lambda: LOGITS,
    lambda x: None,
)
KEYS = (3, "key", 0.5, np.zeros(2), [KEY], jax.random.split(KEY, 3), {})
BOUNDS = ((1, 0), (0, 0), (0, NAN), (0, 1, 2), 3, None, "01", ("a", "b"), (1j, 2), ())
BALL = (
    *(0.1, None, "Linf", Linf, (Linf(0.1),)),
    *(Linf(eps) for eps in (NAN, INF, -1, "a", None, np.full(3, 0.1))),
)
ATTACKS = (None, [], {"a": 3}, {"a": None}, {3: valid_calls.ATTACK}, "pgd")
DATA = (
    *(None, 3, "mnist", {}, X, (X,), (X, Y, Y)),
    *((X, Y[:1]), (X, Y - 1), (X, Y.astype(float)), (NAN * X, Y), (X[:0], Y[:0])),
)
FOLDER = (5, 0.5, __file__, {}, b"x")
OPTION = ("unknown", None, 3, "", ["unknown"])
NAME = (None, 3, "", ["unknown"])
DEVICES = ([], 3, "cpu", [3], [None])
OTHER = (None, "x", 3, {}, [])

BY_NAME = {
    **dict.fromkeys(("key", "keys"), KEYS),
    **dict.fromkeys(("logits_fn", "oracle_logits_fn", "surrogate"), MODEL),
    **dict.fromkeys(("attacks", "cheap", "full"), ATTACKS),
    **dict.fromkeys(("run_dir", "folder", "extends", "data_dir", "root"), FOLDER),
    **dict.fromkeys(("eot", "batch_size", "lanczos_steps", "power_steps"), COUNT),
    **dict.fromkeys(("seed", "epoch", "pad", "iterations", "checkpoint_every"), WHOLE),
    **dict.fromkeys(("target", "most", "visible", "broken", "sampled"), WHOLE),
    **dict.fromkeys(("bias", "b", "mean", "weight", "w1", "m", "tau", "rho"), NUMBER),
    **dict.fromkeys(("eta", "kept", "fill"), NUMBER),
    **dict.fromkeys(("step_size", "eps"), POSITIVE),
    "targets": COUNT,
    "bounds": BOUNDS,
    "ball": BALL,
    "features_fn": FUNCTION,
    "data": DATA,
    "devices": DEVICES,
    "norm": (NAN, 0, -1, 3, "2", "inf", None, [2]),
    "name": NAME,
    "y": WHOLE,
    "metric": NAME,
}
"""Bad values of arguments that are called so."""


def images(good, *, bounded):
    yield from (None, "x", 0.5, [[0.5]], good.ravel(), good[:0], good.astype(int))
    yield from (good + 1j, good.astype(object), NAN * good, good + INF)
    if bounded:
        yield from (good - 1, 7 * good)


def labels(good):
    yield from (None, "y", good.astype(float), good - 2, good[:1], np.eye(9)[good])
    yield from (good.astype(object), good + 1j, {}, 99 + good, [0.5, 1.5])


def array(good):
    good = np.asarray(good)
    yield from (None, "x", {}, object(), good[None, None, None], good.astype(object))
    yield from (good.astype(complex) + 1j, good[:0], [["a"]], [[1.0], [1.0, 2.0]])
    if good.dtype.kind == "f":
        yield NAN * good


def bad_values(name, good, *, bounded):
    """Bad values of an argument, from its name or from a good value of it."""
    if isinstance(good, np.ndarray):
        if good.dtype.kind == "f" and good.ndim > 2 and name != "masks":
            return images(good, bounded=bounded)
        return labels(good) if good.dtype == int and good.ndim == 1 else array(good)
    if name in BY_NAME:
        return BY_NAME[name]
    if isinstance(good, list | tuple) and not hasattr(good, "_fields"):
        return array(good)
    kinds = {bool: FLAG, int: COUNT, float: POSITIVE, str: OPTION}
    return kinds.get(type(good), FUNCTION if callable(good) else OTHER)


class Case(NamedTuple):
    """A function that is given a bad value for one of its arguments."""

    function: object
    name: str
    value: object

    def __str__(self):
        place = f"{self.function.__module__}.{self.function.__name__}"
        return f"{place}({self.name}={str(self.value)[:40]!r})"

    @property
    def is_fine(self):
        """Whether `FINE` says why the value is right after all."""
        return any(
            name == self.name
            and (functions is None or self.function in functions)
            and allowed(self.value)
            for functions, name, allowed, _ in FINE
        )


def cases():
    for function, call in CALLS.items():
        parameters = inspect.signature(function).parameters
        for name, parameter in parameters.items():
            if parameter.kind == parameter.VAR_KEYWORD:
                continue
            good = call.get(name, parameter.default)
            for value in bad_values(name, good, bounded="bounds" in parameters):
                case = Case(function, name, value)
                if not ((value is None and parameter.default is None) or case.is_fine):
                    yield case
        yield Case(function, "nonsense", 1)


def anything(value):
    return True


def is_nan(value):
    floating = isinstance(value, np.ndarray) and value.dtype.kind in "fc"
    return floating and bool(np.isnan(value).all())


def is_object(value):
    return isinstance(value, np.ndarray) and value.dtype == object


def is_array(value):
    return (
        isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.size > 0
    )


def is_array_of(*values):
    return lambda given: is_array(given) and given.tolist() == list(values)


def has_radii(value):
    return isinstance(value, Linf) and np.ndim(value.eps) > 0


def either(*values):
    return lambda given: any(type(given) is type(v) and given == v for v in values)


LOSSES = tuple(f for f in CALLS if f.__module__ == "robjax.losses")
VALUES = (
    interactions.log_odds,
    interactions.log_softmax,
    interactions.logit,
    interactions.other_categories,
)
NO_DRAWS = (
    attacks.carlini_wagner,
    attacks.ddn,
    attacks.deepfool,
    attacks.fmn,
    attacks.perturbed,
)
RISKS = (linear_regression.adversarial_risk, linear_regression.risk_gradient)
ACCURACIES = (
    gaussian.linear_table,
    gaussian.robust_accuracy,
    gaussian.standard_accuracy,
)
TABLES = (gaussian.shift_slack, gaussian.table_accuracies)
KL = (losses.kl, split_kl)
PAIRS = (metrics.class_pair_kl, metrics.pairwise_kl, metrics.kl_to_class_means)
ANY_ARGUMENT = {
    provenance.checksum,
    provenance.describe,
    provenance.identify,
    provenance.versions,
}
"""Functions that take anything, or nothing."""

FINE = (
    (NO_DRAWS, "key", anything, "not used, as they say: nothing is drawn"),
    ((attacks.apgd_targeted,), "targets", either([2]), "ranks may be listed"),
    ((attacks.to_target,), "target", either([2]), "one for each sample"),
    ((attacks.perturbed,), "delta", is_array, "it is projected onto the ball"),
    ((attacks.success_rate,), "first_success", is_array, "whole numbers, as many"),
    ((attacks.suite,), "ball", has_radii, "one for each sample of data not given yet"),
    ((attacks.fab,), "targets", either([2]), "ranks may be listed"),
    (LOSSES, "logits", is_nan, "a sample with NaN logits counts as misclassified"),
    (VALUES, "logits", is_nan, "the value of a game may be NaN"),
    ((attacks.likeliest,), "logits", is_nan, "NaN is a logit of a broken model"),
    ((losses.kl,), "logits_p", is_array, "axes broadcast, and NaN gives NaN"),
    ((losses.kl,), "logits_q", is_array, "axes broadcast, and NaN gives NaN"),
    ((split_kl,), "logits", is_array, "axes broadcast, and NaN gives NaN"),
    ((split_kl,), "change", is_array, "axes broadcast, and NaN gives NaN"),
    ((split_kl,), "logits_prime", is_array, "axes broadcast, and NaN gives NaN"),
    (KL, "axis", either(0, -1), "both are axes"),
    (PAIRS, "y", is_array_of(99, 100), "classes are compared, not counted"),
    ((interactions.auroc,), "positive", is_nan, "NaN gives NaN"),
    ((interactions.auroc,), "negative", is_nan, "NaN gives NaN"),
    ((interactions.dispersion,), "attributions", is_array, "[..., n]; NaN gives NaN"),
    ((interactions.fisher_ratio,), "a", is_nan, "NaN gives NaN"),
    ((interactions.fisher_ratio,), "b", is_nan, "NaN gives NaN"),
    (None, "pairs", either(3), "3 is a radius"),
    (None, "grid", is_object, "its entries are whole numbers"),
    (None, "orders", is_object, "its entries are whole numbers"),
    (None, "severities", is_object, "its entries are whole numbers"),
    ((interactions.image_game,), "x", is_array, "any shape; the grid must divide it"),
    ((interactions.image_game,), "baseline", either(3), "a number to fill with"),
    ((spurious.map_classes,), "logits_fn", callable, "it is not called yet"),
    ((spurious.dilate,), "iterations", either(0), "0 changes nothing"),
    ((strong_robustness.pair_agreement,), "x", is_array, "without bounds"),
    ((saliency.votes_along,), "reference", is_array, "it need not be in the bounds"),
    ((evaluation.robust_accuracy_curve,), "ball", either(Linf), "a kind of ball"),
    ((certify, branch_and_bound), "steps", either(0), "no step is a valid number"),
    ((branch_and_bound,), "domains", either(0), "an empty budget leaves it to CROWN"),
    ((branch_and_bound,), "rules", either({}), "refused once a primitive needs one"),
    ((data.augment,), "images", is_array, "pixels may be whole numbers"),
    ((data.balanced_indices,), "labels", is_array, "any classes, any number"),
    ((data.to_float,), "images", is_array, "[B, *S] of any dtype"),
    (
        (provenance.check_same_run,),
        "then",
        either({}),
        "the runs differ, and it says so",
    ),
    (
        (provenance.check_same_run,),
        "now",
        either({}),
        "the runs differ, and it says so",
    ),
    ((provenance.check_same_run,), "versions_then", either({}), "a warning says so"),
    ((provenance.check_same_run, provenance.open_run), "name", anything, "a message"),
    ((provenance.open_run,), "parts", anything, "without a folder it is not used"),
    ((provenance.open_run,), "group", anything, "without a folder it is not used"),
    ((feature_spaces.gaussian_arc,), "modulus", either(INF), "an infinite modulus"),
    ((feature_spaces.gaussian_arc,), "delta", either(INF), "no cap"),
    ((feature_spaces.norm_ratio,), "p", either(INF), "the norm L∞"),
    (None, "d", either(2.5, [2]), "the formulas hold for real d, one or several"),
    (ACCURACIES, "w", is_array, "[..., d + 1]"),
    (TABLES, "table", is_array, "[..., 2, 2]"),
    (RISKS, "w", is_array, "[..., d]"),
    ((linear_regression.phase_diagram,), "kappa", is_array, "any shape"),
    ((callbacks.mean_weights,), "start", either(0), "epochs count from 0"),
)
"""What is right after all: of which functions, which argument, which values; why."""


class Compiled(BaseException):
    """Something of robjax, or a whole model, was about to be compiled."""


OWN = frozenset(
    node.name
    for path in ROOT.glob("**/*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
    and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
)
"""Names of functions that robjax compiles."""


def refuse_to_compile(event, duration, *, fun_name="", **_):
    if "jaxpr_to_mlir" in event and re.sub(r"jit\((.*)\)", r"\1", fun_name) in OWN:
        raise Compiled(fun_name)


def wrong_with(case):
    """What is wrong with how a function takes a bad value; None if nothing is."""
    call = CALLS[case.function] | {case.name: case.value}
    try:
        case.function(**call)
    except Compiled as error:
        return f"compiles {error}"
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        said = f"{type(error).__name__}: {error}"
        if case.name == "nonsense":
            return None if isinstance(error, TypeError) else said
        if not pathlib.Path(last.filename).is_relative_to(ROOT):
            return f"from {last.filename}: {said}"
        if not isinstance(error, ValueError):
            return f"no ValueError: {said}"
        if not re.search(rf"\b{case.name}\b", str(error)):
            return f"does not name it: {said}"
        if not re.search(rf"got|cannot be called with|{case.name}=", str(error)):
            return f"does not show it: {said}"
        return None
    return "accepted"


@pytest.fixture
def no_compilation():
    jax.monitoring.register_event_duration_secs_listener(refuse_to_compile)
    yield
    jax.monitoring.unregister_event_duration_listener(refuse_to_compile)


ALL = list(cases())


@pytest.mark.parametrize(
    "function", CALLS, ids=lambda f: f"{f.__module__}.{f.__name__}"
)
def test_no_bad_argument_is_taken_or_meets_jax(function, no_compilation):
    own = [case for case in ALL if case.function is function]
    wrong = [f"{case}: {why}" for case in own if (why := wrong_with(case))]
    assert own, f"{function.__name__} has no arguments"
    assert not wrong, "\n".join(wrong)


def test_every_public_function_has_a_call_and_many_cases():
    packages = [robjax.__name__]
    for module in pkgutil.walk_packages(robjax.__path__, "robjax."):
        packages += [module.name] if not module.name.endswith("__main__") else []
    public = {
        value
        for package in map(import_module, packages)
        for name in getattr(package, "__all__", [])
        if inspect.isfunction(value := getattr(package, name))
    }
    assert public - ANY_ARGUMENT == CALLS.keys()
    assert len(ALL) > 8000


def test_what_is_fine_is_about_arguments_that_are_there():
    for functions, name, _, why in FINE:
        for function in CALLS if functions is None else functions:
            taken = name in inspect.signature(function).parameters
            assert functions is None or taken, (function, name, why)


@pytest.mark.slow
def test_the_calls_are_right_as_far_as_the_first_compilation(no_compilation):
    reached = 0
    for function, call in CALLS.items():
        if function in (training.load, data.folders):
            continue  # there is nothing to load
        try:
            function(**call)
        except Compiled:
            reached += 1
    assert reached > 60
