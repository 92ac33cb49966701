"""Intervals: what is known of every value in a network, and how equations move it.

    [l, u]   every value that the images of the region can give lies in it

A rule maps the operands of an equation, each an interval or a constant, to an interval
around its result. Gowal et al. (arXiv 1810.12715) write it for layers; here it is
written for the primitives of JAX.

**Rounding.** Intervals hold what the network computes in floating point, not only what
it would compute with real numbers. With the unit roundoff u, one operation errs by
2u |result|, a function of the mathematical library by 16u, and a sum of n products by

    ρ(n) Σ |a_i b_i|,      ρ(n) = 4 (1 + √n) u

The worst order of summation could err by n u. Orders in use err by less than √n u for
random roundings and by the size of their blocks for equal ones; the tests drive both.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Interval(NamedTuple):
    """Lower and upper ends of values, two arrays of their shape."""

    lower: jax.Array
    upper: jax.Array


Operand = Interval | jax.Array
"""What an equation acts on: bounded values or constants."""


class Equation(NamedTuple):
    """A primitive with its parameters, called with the values of its operands.

    Attributes:
      name: of the primitive.
      function: operands -> result.
      params: of the primitive.
    """

    name: str
    function: Callable[..., jax.Array]
    params: Mapping[str, Any]

    def __call__(self, *values: Any) -> jax.Array:
        return self.function(*values)


def lower(operand: Operand) -> jax.Array:
    """The lower ends of an operand; a constant is its own.

    >>> float(lower(Interval(jnp.array(1.0), jnp.array(2.0))))
    1.0
    """
    return operand.lower if isinstance(operand, Interval) else operand


def upper(operand: Operand) -> jax.Array:
    """The upper ends of an operand; a constant is its own.

    >>> float(upper(Interval(jnp.array(1.0), jnp.array(2.0))))
    2.0
    """
    return operand.upper if isinstance(operand, Interval) else operand


def magnitude(operand: Operand) -> jax.Array:
    """The largest absolute value of an operand.

    >>> float(magnitude(Interval(jnp.array(-3.0), jnp.array(2.0))))
    3.0
    """
    return jnp.maximum(jnp.abs(lower(operand)), jnp.abs(upper(operand)))


def roundoff(dtype: DTypeLike, terms: int | None = None) -> float:
    """The unit roundoff u of a type, or ρ of a sum of so many terms.

    >>> roundoff(jnp.float32) == 2**-24, roundoff(jnp.float32, 9) == 2**-20
    (True, True)
    """
    unit = float(jnp.finfo(dtype).eps) / 2
    return unit if terms is None else 4 * (1 + math.sqrt(terms)) * unit


def rising(equation: Equation, *operands: Operand) -> Interval:
    """For what does not fall in any bounded operand: sums, shapes, ReLU, exp."""
    return Interval(equation(*map(lower, operands)), equation(*map(upper, operands)))


def falling(equation: Equation, x: Interval) -> Interval:
    """For what does not rise: −x, 1/√x."""
    return Interval(equation(x.upper), equation(x.lower))


def difference(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For a − b."""
    return Interval(equation(lower(a), upper(b)), equation(upper(a), lower(b)))


def corners(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For what is monotone in each of two operands, either way, such as products."""
    firsts = a if isinstance(a, Interval) else (a,)
    seconds = b if isinstance(b, Interval) else (b,)
    values = [equation(first, second) for first in firsts for second in seconds]
    return Interval(
        functools.reduce(jnp.minimum, values), functools.reduce(jnp.maximum, values)
    )


def quotient(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For a / b; unbounded where b may be 0."""
    found = corners(equation, a, b)
    if not isinstance(b, Interval):
        return found
    free = (b.lower <= 0) & (b.upper >= 0)
    return Interval(
        jnp.where(free, -jnp.inf, found.lower), jnp.where(free, jnp.inf, found.upper)
    )


def bilinear(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For dot products and convolutions of one or two bounded operands.

    With centres c and radii r the result lies within |c_a| r_b + r_a |c_b| + r_a r_b of
    c_a c_b.
    """

    def halves(x: Operand) -> tuple[jax.Array, jax.Array | None]:
        if not isinstance(x, Interval):
            return x, None
        return (x.lower + x.upper) / 2, (x.upper - x.lower) / 2

    (centre_a, radius_a), (centre_b, radius_b) = halves(a), halves(b)
    radius = jnp.zeros(())
    if radius_a is not None:
        outer = jnp.abs(centre_b) + (0 if radius_b is None else radius_b)
        radius = equation(radius_a, outer)
    if radius_b is not None:
        radius = radius + equation(jnp.abs(centre_a), radius_b)
    centre = equation(centre_a, centre_b)
    return Interval(centre - radius, centre + radius)


def valley(at: float, equation: Equation, x: Interval) -> Interval:
    """For what falls up to `at` and rises after it: |x|, x², SiLU."""
    ends = equation(x.lower), equation(x.upper)
    lowest = equation(jnp.clip(at, x.lower, x.upper))
    return Interval(lowest, jnp.maximum(*ends))


def power(equation: Equation, x: Interval) -> Interval:
    """For xⁿ of an integer n."""
    exponent = equation.params["y"]
    if exponent >= 0:
        even = exponent % 2 == 0
        return valley(0.0, equation, x) if even else rising(equation, x)
    ends = equation(x.lower), equation(x.upper)
    free = (x.lower <= 0) & (x.upper >= 0)
    return Interval(
        jnp.where(free, -jnp.inf, jnp.minimum(*ends)),
        jnp.where(free, jnp.inf, jnp.maximum(*ends)),
    )


def at_least(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For a ≥ b and a > b, which may be false, true or either."""
    return Interval(equation(lower(a), upper(b)), equation(upper(a), lower(b)))


def at_most(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For a ≤ b and a < b."""
    return Interval(equation(upper(a), lower(b)), equation(lower(a), upper(b)))


def chosen(equation: Equation, which: Operand, *cases: Operand) -> Interval:
    """For a choice of cases; where it is open, the hull of all of them."""
    if not isinstance(which, Interval):
        return rising(equation, which, *cases)
    settled = which.lower == which.upper
    known = rising(equation, which.lower, *cases)
    return Interval(
        jnp.where(
            settled, known.lower, functools.reduce(jnp.minimum, map(lower, cases))
        ),
        jnp.where(
            settled, known.upper, functools.reduce(jnp.maximum, map(upper, cases))
        ),
    )


def finite(equation: Equation, x: Interval) -> Interval:
    """For whether x is finite; known where both ends are."""
    both = equation(x.lower) & equation(x.upper)
    return Interval(both, jnp.ones_like(both))


def indexed(equation: Equation, x: Operand, *places: Operand) -> Interval:
    """For entries of x at places that are constants."""
    if any(isinstance(place, Interval) for place in places):
        raise ValueError(
            "logits_fn must not choose places by values of the image, which no rule "
            f"bounds, as {equation.name!r} does"
        )
    return rising(equation, x, *places)


def converted(equation: Equation, x: Interval) -> Interval:
    """For a change of dtype that keeps the order of values.

    Floats that no integer holds go to the nearest one, but integers are cut to bits.
    """
    dtype = equation.params["new_dtype"]
    kinds = jnp.floating, jnp.signedinteger
    given = x.lower.dtype
    cut = (
        jnp.issubdtype(given, jnp.integer)
        and jnp.issubdtype(dtype, jnp.integer)
        and jnp.iinfo(dtype).bits < jnp.iinfo(given).bits
    )
    if cut or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise ValueError(
            f"logits_fn must not make values of the image {dtype}, which no rule bounds"
        )
    return rising(equation, x)


def logical(equation: Equation, a: Operand, b: Operand) -> Interval:
    """For a and b, a or b, of conditions."""
    if lower(a).dtype != bool:
        raise ValueError(
            "logits_fn must not combine the bits of numbers, which no rule bounds, as "
            f"{equation.name!r} does"
        )
    return rising(equation, a, b)


Rounding = Callable[..., Interval | None]
"""(equation, operands, result) -> how far the ends may err, two arrays ≥ 0; or None."""


def exact(equation: Equation, operands: tuple[Operand, ...], result: Interval) -> None:
    """No arithmetic, no rounding: shapes, choices, maxima."""


def _relative(factor: float, floor: float = 0.0) -> Rounding:
    def rounding(
        equation: Equation, operands: tuple[Operand, ...], result: Interval
    ) -> Interval:
        share = factor * roundoff(result.lower.dtype)
        tiny = jnp.finfo(result.lower.dtype).tiny
        return Interval(*(share * (jnp.abs(end) + floor) + tiny for end in result))

    return rounding


operation = _relative(2.0)
"""One operation on each value."""

function = _relative(16.0)
"""A function of the mathematical library."""

scaled = _relative(1024.0)
"""A function that rounds its argument x to x log 2 or the like before exp."""

near_one = _relative(16.0, 1.0)
"""The same, where it errs by units of 1 rather than of its value."""


def powers(
    equation: Equation, operands: tuple[Operand, ...], result: Interval
) -> Interval | None:
    """xⁿ by up to n products."""
    return _relative(16.0 + 2 * abs(equation.params["y"]))(equation, operands, result)


def summation(
    equation: Equation, operands: tuple[Operand, ...], result: Interval
) -> Interval:
    """A sum; no sum has more terms than the larger of its arrays has entries."""
    bounded = [x.lower.size for x in operands if isinstance(x, Interval)]
    terms = max(*bounded, result.lower.size)
    share = roundoff(result.lower.dtype, terms)
    tiny = terms * float(jnp.finfo(result.lower.dtype).tiny)
    error = share * equation(*map(magnitude, operands)) + tiny
    return Interval(error, error)
