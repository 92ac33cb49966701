"""Linear bounds of what is not linear: two affine functions that enclose an equation.

    lower(v) ≤ f(v) ≤ upper(v)    for all v in [l, u]

The lines are those of CROWN, Zhang et al., NeurIPS 2018 (arXiv 1811.00866), section 3
and table 2, written for single primitives:

    ReLU        above the chord; below through 0, of slope 1 if u > −l, else 0
    convex      above the chord, below the tangent in the middle; concave the other way
    tanh, …     S-shaped: tangents through an end, found by bisection, or chords
    products    the planes of McCormick (Math. Programming 10, 1976)
    maxima      below the entry of largest lower end; above the largest upper end, or
                the entry itself where no other can exceed it

Every intercept is moved outwards by what rounding can do to its line.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from robjax.certification.intervals import (
    Equation,
    Interval,
    Operand,
    magnitude,
    roundoff,
)

_BISECTIONS = 20


class Relaxation(NamedTuple):
    """Two affine functions of the bounded operands of an equation."""

    lower: Callable[..., jax.Array]
    upper: Callable[..., jax.Array]


class Line(NamedTuple):
    """slope · x + intercept."""

    slope: jax.Array
    intercept: jax.Array


def _between(x: Interval, below: Line, above: Line) -> Relaxation:
    """The relaxation by two lines, moved outwards by what they may be rounded."""

    def moved(line: Line, way: int) -> Callable[[jax.Array], jax.Array]:
        size = jnp.abs(line.slope) * magnitude(x) + jnp.abs(line.intercept)
        intercept = line.intercept + way * 16 * roundoff(size.dtype) * size
        return lambda v: line.slope * v + intercept

    return Relaxation(moved(below, -1), moved(above, 1))


def _negated(lines: tuple[Line, Line]) -> tuple[Line, Line]:
    """Lines of −f(−x) out of those of f, whose interval was negated, too."""
    below, above = lines
    return Line(above.slope, -above.intercept), Line(below.slope, -below.intercept)


def _hinge(
    z: Interval, free: jax.Array | None, least: jax.Array | float
) -> tuple[Line, Line]:
    """Lines of max(z, least · z), 0 ≤ least < 1.

    `free` in [0, 1] places the slope of the lower line between `least` and 1.
    """
    l, u = z
    free = steeper(z) if free is None else free
    active = l >= 0
    inactive = u <= 0
    settled = jnp.where(active, 1.0, least).astype(l.dtype)
    # halves, lest u − l overflow
    chord = (u / 2 - least * l / 2) / jnp.where(active | inactive, 1, u / 2 - l / 2)
    slope = jnp.where(active | inactive, settled, chord)
    intercept = jnp.where(active | inactive, 0, (least - slope) * l)
    below = jnp.where(active | inactive, settled, least + (1 - least) * free)
    return Line(below, jnp.zeros_like(l)), Line(slope, intercept)


def steeper(z: Interval) -> jax.Array:
    """CROWN's choice of the lower line: 1 where u > −l, else 0."""
    return (z.upper > -z.lower).astype(z.lower.dtype)


def free_slopes(equation: Equation, *operands: Operand) -> jax.Array:
    """Where the lower line of a ReLU starts before it is optimised."""
    return steeper(_excess(equation, *operands)[0])


def _excess(
    equation: Equation, *operands: Operand
) -> tuple[Interval, Interval, jax.Array | float]:
    """The argument z of the hinge inside max, min or leaky ReLU; x; the constant."""
    x = next(o for o in operands if isinstance(o, Interval))
    constants = [o for o in operands if not isinstance(o, Interval)]
    if equation.name not in ("max", "min"):
        return x, x, 0.0
    (c,) = constants
    z = Interval(x.lower - c, x.upper - c)
    return (Interval(-z.upper, -z.lower) if equation.name == "min" else z), x, c


def kink(equation: Equation, *operands: Operand) -> jax.Array | float | None:
    """Where a function that is linear on either side bends; None for all others."""
    if equation.name not in ("max", "min", "leaky_relu", "abs"):
        return None
    return _excess(equation, *operands)[2]


def extremum(
    equation: Equation, a: Operand, b: Operand, free: jax.Array | None = None
) -> Relaxation:
    """For max and min of a bounded value and a constant, or of two bounded values."""
    if isinstance(a, Interval) and isinstance(b, Interval):
        return _larger(a, b) if equation.name == "max" else _smaller(a, b)
    z, x, c = _excess(equation, a, b)
    lines = _hinge(z, free, 0.0)
    below, above = _negated(lines) if equation.name == "min" else lines

    def shifted(line: Line) -> Line:
        shift = jnp.where(line.slope == 1, 0, c * (1 - line.slope))  # c may be −∞
        return Line(line.slope, line.intercept + shift)

    return _between(x, shifted(below), shifted(above))


def leaky(
    equation: Equation,
    x: Interval,
    slope: jax.Array | float = 0.01,
    free: jax.Array | None = None,
) -> Relaxation:
    """For leaky ReLU of a slope in [0, 1]."""
    least = jnp.asarray(slope, x.lower.dtype)
    return _between(x, *_hinge(x, free, least))


def _larger(a: Interval, b: Interval) -> Relaxation:
    first = a.lower >= b.lower
    settled = jnp.where(first, a.lower >= b.upper, b.lower >= a.upper)
    most = jnp.maximum(a.upper, b.upper)

    def below(v: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.where(first, v, w)

    return Relaxation(below, lambda v, w: jnp.where(settled, below(v, w), most))


def _smaller(a: Interval, b: Interval) -> Relaxation:
    flipped = _larger(*(Interval(-x.upper, -x.lower) for x in (a, b)))
    return Relaxation(
        lambda v, w: -flipped.upper(-v, -w), lambda v, w: -flipped.lower(-v, -w)
    )


def _slope(f: Callable[[jax.Array], jax.Array], at: jax.Array) -> jax.Array:
    return jax.jvp(f, (at,), (jnp.ones_like(at),))[1]


def _tangent(f: Callable[[jax.Array], jax.Array], at: jax.Array) -> Line:
    slope = _slope(f, at)
    return Line(slope, f(at) - slope * at)


def _chord(f: Callable[[jax.Array], jax.Array], x: Interval) -> Line:
    """The line through both ends; above any convex function between them.

    Where the ends are close, the slope is that in the middle, and the line is moved up
    until it is above both ends.
    """
    l, u = x
    at_l, at_u = f(l), f(u)
    # there a chord's slope would be all rounding
    narrow = u - l <= 4 * roundoff(l.dtype) ** 0.5 * (1 + magnitude(x))
    slope = jnp.where(
        narrow, _slope(f, (l + u) / 2), (at_u - at_l) / jnp.where(narrow, 1, u - l)
    )
    return Line(slope, jnp.maximum(at_l - slope * l, at_u - slope * u))


def convex(equation: Equation, x: Interval) -> Relaxation:
    """For exp, x², |x| and softplus."""
    middle = (x.lower + x.upper) / 2
    return _between(x, _tangent(equation, middle), _chord(equation, x))


def concave(equation: Equation, x: Interval) -> Relaxation:
    """For log and √x."""

    def flipped(v: jax.Array) -> jax.Array:
        return -equation(v)

    chord = _chord(flipped, x)
    middle = (x.lower + x.upper) / 2
    below = Line(-chord.slope, -chord.intercept)
    return _between(x, below, _tangent(equation, middle))


def even_power(equation: Equation, x: Interval) -> Relaxation | None:
    """For xⁿ of an even n ≥ 0; other powers have no lines here."""
    exponent = equation.params["y"]
    return convex(equation, x) if exponent >= 0 and exponent % 2 == 0 else None


def s_shaped(equation: Equation, x: Interval) -> Relaxation:
    """For tanh, sigmoid and erf: f − f(0) is odd, convex below 0, concave above."""
    middle = equation(jnp.zeros_like(x.lower))

    def odd(v: jax.Array) -> jax.Array:
        return equation(v) - middle

    above = _above_s(odd, x)
    below = _above_s(odd, Interval(-x.upper, -x.lower))
    return _between(
        x,
        Line(below.slope, middle - below.intercept),
        Line(above.slope, middle + above.intercept),
    )


def _above_s(f: Callable[[jax.Array], jax.Array], x: Interval) -> Line:
    """An upper line of an odd function that is convex below 0 and concave above.

    Across 0 it is the tangent in d > 0 that goes through (l, f(l)), where there is such
    a d ≤ u, and the chord where there is none. Any tangent further out lies above f,
    too, so that the bisection keeps the outer end of its bracket.
    """
    l, u = x
    at_l = f(l)

    def clears(d: jax.Array) -> jax.Array:
        line = _tangent(f, d)
        return line.slope * l + line.intercept >= at_l

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]):
        inner, outer = bracket
        d = (inner + outer) / 2
        above = clears(d)
        return jnp.where(above, inner, d), jnp.where(above, d, outer)

    start = jnp.zeros_like(u), jnp.maximum(u, 0)
    _, d = lax.fori_loop(0, _BISECTIONS, halve, start)
    tangent = _tangent(f, jnp.where(l >= 0, (l + u) / 2, d))
    chord = _chord(f, x)
    use_tangent = (l >= 0) | ((u > 0) & clears(jnp.maximum(u, 0)))
    return Line(
        *(jnp.where(use_tangent, *pair) for pair in zip(tangent, chord, strict=True))
    )


def product(equation: Equation, x: Interval, y: Interval) -> Relaxation:
    """For x y of two bounded values."""
    low_x = x.lower
    low_y, high_y = y
    size = magnitude(x) * magnitude(y)
    slack = 16 * roundoff(size.dtype) * size
    return Relaxation(
        lambda v, w: low_y * v + low_x * w - (low_x * low_y + slack),
        lambda v, w: high_y * v + low_x * w - (low_x * high_y - slack),
    )


def pooling(equation: Equation, x: Interval) -> Relaxation:
    """For the maximum over windows or axes.

    The derivative of the maximum at l is the entry of largest lower end.
    """

    def below(v: jax.Array) -> jax.Array:
        return jax.jvp(equation, (x.lower,), (v,))[1]

    most = equation(x.upper)
    settled = _settled(equation, x)
    return Relaxation(below, lambda v: jnp.where(settled, below(v), most))


def _settled(equation: Equation, x: Interval) -> jax.Array:
    """Where one entry of a window is at least as large as all others can be."""
    if equation.name != "reduce_window_max":
        return jnp.asarray(False)
    least = _windows(equation, x.lower)
    most = _windows(equation, x.upper)
    first = jnp.arange(len(least)).reshape((-1,) + (1,) * (least.ndim - 1))
    best = first == jnp.argmax(least, axis=0)[None]
    others = jnp.max(jnp.where(best, -jnp.inf, most), axis=0)
    return jnp.max(least, axis=0) >= others


def _windows(equation: Equation, x: jax.Array) -> jax.Array:
    """The entries of all windows: [entries of a window, *result]."""
    params = equation.params
    # the maximum over windows of one entry each, at every place in turn
    padding = [
        (low, high, base - 1)
        for (low, high), base in zip(
            params["padding"], params["base_dilation"], strict=True
        )
    ]
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), padding)
    sizes = jax.eval_shape(equation, x).shape
    strides = params["window_strides"]
    entries = []
    for place in itertools.product(*map(range, params["window_dimensions"])):
        start = [p * d for p, d in zip(place, params["window_dilation"], strict=True)]
        limit = [
            s + (size - 1) * stride + 1
            for s, size, stride in zip(start, sizes, strides, strict=True)
        ]
        entries.append(lax.slice(padded, start, limit, strides))
    return jnp.stack(entries)


_SILU_DEPTH = 0.2784646  # SiLU is at most this much below ReLU
_SILU_BENDS = 0.1, 0.5  # its second derivative lies in [−0.1, 0.5]


def silu(equation: Equation, x: Interval) -> Relaxation:
    """For x · sigmoid(x): near its chord where [l, u] is short, else near ReLU.

    A function whose second derivative is at most M lies at most M (u − l)² / 8 below
    its chord.
    """
    down, up = _SILU_BENDS
    below, above = _hinge(x, None, 0.0)
    chord = _chord(equation, x)
    sag = (x.upper - x.lower) ** 2 / 8
    near_below = up * sag < _SILU_DEPTH
    near_above = down * sag < jnp.minimum(-x.lower, x.upper) / 2
    ends = (equation(end) - chord.slope * end for end in x)
    low = functools.reduce(jnp.minimum, ends) - up * sag

    def pick(near: jax.Array, short: Line, long: Line) -> Line:
        return Line(*(jnp.where(near, *pair) for pair in zip(short, long, strict=True)))

    return _between(
        x,
        pick(
            near_below,
            Line(chord.slope, low),
            Line(below.slope, below.intercept - _SILU_DEPTH),
        ),
        pick(near_above, Line(chord.slope, chord.intercept + down * sag), above),
    )
