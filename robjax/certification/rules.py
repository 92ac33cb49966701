"""One rule for each primitive of JAX: its interval, and what is linear in it.

`RULES` has them by name. `certify(…, rules={**RULES, "name": Rule(…)})` adds one:

    Rule(rising)                         any function that does not fall
    Rule(rising, relax=concave)          with linear bounds, for CROWN
    Rule(rising, affine=always)          affine in its bounded operands: its transpose
                                         comes from `jax.vjp`, and nothing is lost

Some functions of `jax.nn` are taken whole, in `FUNCTIONS`, because their parts would
give looser bounds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from robjax.certification import relaxations
from robjax.certification.intervals import (
    Interval,
    Rounding,
    at_least,
    at_most,
    bilinear,
    chosen,
    converted,
    corners,
    difference,
    exact,
    falling,
    finite,
    function,
    indexed,
    logical,
    near_one,
    operation,
    power,
    powers,
    quotient,
    rising,
    scaled,
    summation,
    valley,
)
from robjax.certification.relaxations import Relaxation

Mask = tuple[bool, ...]
"""For each operand whether it is bounded; the others are constants."""


def never(bounded: Mask) -> bool:
    """Not affine."""
    return False


def always(bounded: Mask) -> bool:
    """Affine in all operands together: sums, shapes."""
    return True


def in_one(bounded: Mask) -> bool:
    """Linear in each operand alone: products."""
    return sum(bounded) == 1


def in_first(bounded: Mask) -> bool:
    """Linear in the first operand while the others are constants: x / c."""
    return not any(bounded[1:])


def at_places(bounded: Mask) -> bool:
    """Affine in the first operand while the others are constants: x[i]."""
    return not any(bounded[1:])


def but_first(bounded: Mask) -> bool:
    """Affine in the operands after the first: choices by a known condition."""
    return not bounded[0]


class Rule(NamedTuple):
    """What certification knows of a primitive.

    Attributes:
      bound: (equation, *operands) -> Interval; an operand is an Interval or a constant.
      affine: which operands may be bounded for the equation to be affine in them.
      relax: (equation, *operands) -> Relaxation, or None where there is none; None: its
        interval bounds it.
      rounding: how far the ends of the interval may err.
      start: (equation, *operands) -> slopes in [0, 1] that `relax` takes as `free`, to
        be optimised; None: there are none.
    """

    bound: Callable[..., Interval]
    affine: Callable[[Mask], bool] = never
    relax: Callable[..., Relaxation | None] | None = None
    rounding: Rounding = function
    start: Callable[..., jax.Array] | None = None


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_HINGE = Rule(
    rising,
    relax=relaxations.extremum,
    rounding=exact,
    start=relaxations.free_slopes,
)

RULES: dict[str, Rule] = {
    # shapes and choices, without arithmetic
    **_each(
        "broadcast_in_dim concatenate pad reshape rev slice split squeeze stack tile "
        "transpose unstack",
        Rule(rising, always, rounding=exact),
    ),
    **_each("dynamic_slice gather", Rule(indexed, at_places, rounding=exact)),
    "select_n": Rule(chosen, but_first, rounding=exact),
    "convert_element_type": Rule(converted, always, rounding=operation),
    "neg": Rule(falling, always, rounding=exact),
    # sums and products
    "add": Rule(rising, always, rounding=operation),
    "sub": Rule(difference, always, rounding=operation),
    "mul": Rule(corners, in_one, relaxations.product, operation),
    "div": Rule(quotient, in_first, rounding=operation),
    **_each(
        "cumsum reduce_sum reduce_window_sum", Rule(rising, always, rounding=summation)
    ),
    **_each(
        "conv_general_dilated dot_general", Rule(bilinear, in_one, rounding=summation)
    ),
    # maxima
    **_each("max min", _HINGE),
    **_each(
        "reduce_max reduce_window_max",
        Rule(rising, relax=relaxations.pooling, rounding=exact),
    ),
    **_each("clamp cummax cummin reduce_min", Rule(rising, rounding=exact)),
    # functions of single values
    **_each("erf tanh", Rule(rising, relax=relaxations.s_shaped)),
    "logistic": Rule(rising, relax=relaxations.s_shaped, rounding=near_one),
    **_each("exp expm1", Rule(rising, relax=relaxations.convex)),
    "exp2": Rule(rising, relax=relaxations.convex, rounding=scaled),
    **_each("log log1p", Rule(rising, relax=relaxations.concave, rounding=near_one)),
    "sqrt": Rule(rising, relax=relaxations.concave),
    "rsqrt": Rule(falling, relax=relaxations.convex),
    **_each("asinh atan cbrt", Rule(rising)),
    "sinh": Rule(rising, rounding=scaled),
    "erfc": Rule(falling, rounding=near_one),
    "abs": Rule(
        functools.partial(valley, 0.0), relax=relaxations.convex, rounding=exact
    ),
    "square": Rule(functools.partial(valley, 0.0), relax=relaxations.convex),
    "integer_pow": Rule(power, relax=relaxations.even_power, rounding=powers),
    **_each("ceil floor round sign", Rule(rising, rounding=exact)),
    # conditions
    **_each("ge gt", Rule(at_least, rounding=exact)),
    **_each("le lt", Rule(at_most, rounding=exact)),
    **_each("and or", Rule(logical, rounding=exact)),
    "is_finite": Rule(finite, rounding=exact),
    "not": Rule(falling, rounding=exact),
}
"""Name of a primitive -> its rule."""


class Function(NamedTuple):
    """A function of several primitives that has a rule of its own."""

    function: Callable[..., jax.Array]
    rule: Rule


_SILU_VALLEY = -1.2784645  # where x · sigmoid(x) is lowest

FUNCTIONS: dict[str, Function] = {
    "softplus": Function(
        jax.nn.softplus, Rule(rising, relax=relaxations.convex, rounding=near_one)
    ),
    "leaky_relu": Function(
        jax.nn.leaky_relu,
        Rule(
            rising,
            relax=relaxations.leaky,
            rounding=operation,
            start=relaxations.free_slopes,
        ),
    ),
    "silu": Function(
        jax.nn.silu,
        Rule(
            functools.partial(valley, _SILU_VALLEY),
            relax=relaxations.silu,
            rounding=near_one,
        ),
    ),
}
"""Name of a function under `jax.jit` -> itself, to be compared with, and its rule."""
