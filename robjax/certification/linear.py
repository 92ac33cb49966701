"""Linear bounds: from the logits back to the image, equation by equation.

A row Λ asks for the minimum of ⟨Λ, v⟩ over all values v that a node can have. The walk
back replaces v by what bounds it:

    affine equation      its transpose at Λ (`jax.vjp`); the constant goes to the bias
    relaxed equation     the transpose of its lower function at max(Λ, 0), and of its
                         upper function at min(Λ, 0)
    any other            its interval

until only the image is left, whose region has an exact minimum. Zhang et al., NeurIPS
2018 (arXiv 1811.00866); for any graph, Xu et al., NeurIPS 2020 (arXiv 2002.12920).

**Domains.** Branch and bound asks for the minimum over a part of the region, where the
values of some nodes lie in given intervals [l, u], called cuts. Intervals and lines are
then of this part alone. And with multipliers β, γ ≥ 0 the cuts stand in for each other:

    min of ⟨Λ, v⟩ over the part ≥ min of ⟨Λ − β + γ, v⟩ over more + ⟨β, l⟩ − ⟨γ, u⟩

Wang et al., NeurIPS 2021 (arXiv 2103.06624), for cuts of ReLUs at 0.

Everything here is of one image and one row; `jax.vmap` does the rest.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robjax.certification.graph import Graph, Node
from robjax.certification.intervals import Interval, magnitude, roundoff
from robjax.certification.regions import Region, least_inner, total
from robjax.certification.relaxations import Relaxation
from robjax.certification.rules import in_first, in_one
from robjax.numerics import map_batched

Relaxations = Mapping[int, Relaxation]
Cuts = Mapping[int, Interval]
"""Node -> where its values lie, too; as multipliers: node -> β and γ."""


class Bounds(NamedTuple):
    """What is known of each node.

    Attributes:
      intervals: [nodes] of them.
      rounding: [nodes] how far each value may be rounded, in units of the value; None
        where there is no rounding.
    """

    intervals: list[Interval]
    rounding: list[jax.Array | None]

    def operands(self, node: Node) -> list[Interval | jax.Array]:
        """The operands of a node, as intervals and constants."""
        return node.among([self.intervals[i] for i in node.inputs])


def propagate(
    graph: Graph,
    region: Region,
    *,
    rows: int,
    tighten: bool,
    cuts: Cuts = MappingProxyType({}),
) -> Bounds:
    """Bounds every node: by intervals, and some by linear bounds.

    Args:
      graph: made by `record`.
      region: where the image is.
      rows: how many rows walk back together, which bounds the memory.
      tighten: bound what goes into a relaxed equation by linear bounds. Otherwise only
        what is affine in the image, and only in a region that is no box. Intervals that
        are exact stay as they are.
      cuts: of a domain; where it is empty, some interval has its ends crossed.
    """
    bounds = Bounds([_cut(region.box, cuts.get(0))], [None])
    affine = graph.affine_in_image()
    exact = graph.attained() if region.is_box else [False] * len(graph.nodes)
    wanted = graph.relaxed_inputs()
    lines: dict[int, Relaxation] = {}
    for index, node in enumerate(graph.nodes[1:], start=1):
        operands = bounds.operands(node)
        found = node.rule.bound(node.equation, *operands)
        error = None
        if jnp.issubdtype(node.type.dtype, jnp.floating):
            error = node.rule.rounding(node.equation, tuple(operands), found)
        if error is not None:
            found = Interval(found.lower - error.lower, found.upper + error.upper)
        bounds.intervals.append(_cut(found, cuts.get(index)))
        bounds.rounding.append(None if error is None else jnp.maximum(*error))
        loose = not exact[index] and (tighten or (affine[index] and not region.is_box))
        if index in wanted and node.affine and loose:
            narrowed = _narrowed(graph, bounds, lines, region, index, rows)
            bounds.intervals[index] = narrowed
        if tighten:
            lines |= relax(graph, bounds, at=index)
    return bounds


def relax(
    graph: Graph,
    bounds: Bounds,
    free: Mapping[int, jax.Array] | None = None,
    *,
    at: int | None = None,
) -> dict[int, Relaxation]:
    """The relaxations of the nodes that have one.

    Args:
      graph: made by `record`.
      bounds: of its nodes.
      free: slopes in [0, 1] of nodes, which alone are relaxed then.
      at: one node, which alone is relaxed then.
    """
    nodes = range(1, len(graph.nodes)) if at is None else (at,)
    found = {}
    for index in nodes if free is None else free:
        node = graph.nodes[index]
        floating = jnp.issubdtype(node.type.dtype, jnp.floating)
        if node.affine or node.rule.relax is None or not floating:
            continue
        slopes = {} if free is None else {"free": free[index]}
        lines = node.rule.relax(node.equation, *bounds.operands(node), **slopes)
        if lines is not None:
            found[index] = lines
    return found


def lower_bound(
    graph: Graph,
    bounds: Bounds,
    lines: Relaxations,
    region: Region,
    row: jax.Array,
    at: int,
) -> jax.Array:
    """A lower bound of ⟨row, v⟩ over all values v of a node.

    Args:
      graph, bounds, lines, row, at: as in `walk_back`.
      region: where the image is.

    Returns:
      A scalar.
    """
    bias, rows = walk_back(graph, bounds, lines, row, at)
    return bias + (region.minimum(rows[0]) if 0 in rows else 0)


def walk_back(
    graph: Graph,
    bounds: Bounds,
    lines: Relaxations,
    row: jax.Array,
    at: int,
    multipliers: Cuts = MappingProxyType({}),
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Replaces the values of a node by what bounds them, back to the image.

    Args:
      graph: made by `record`.
      bounds: of its nodes before `at`.
      lines: relaxations of some of them; the others are bounded by their intervals.
      row: Λ, of the shape of the node.
      at: number of the node.
      multipliers: β and γ for the intervals in `bounds` of some nodes.

    Returns:
      A scalar c, and the row Λ of every node on the way: ⟨row, v⟩ ≥ c + ⟨Λ₀, image⟩.
    """
    rows = {at: row}
    bias = jnp.zeros((), row.dtype)
    for index in range(at, -1, -1):
        if index in multipliers:
            zero = jnp.zeros((), row.dtype)
            rows[index], known = _constrained(
                rows.get(index, zero), multipliers[index], bounds.intervals[index]
            )
            bias += known
        if index == 0 or index not in rows:
            continue
        row = rows[index]
        node = graph.nodes[index]
        error = bounds.rounding[index]
        pieces = _pieces(node, lines.get(index), row)
        if not pieces:  # the interval holds the rounding already
            bias += total(_at_ends(row, bounds.intervals[index]))
        zeros = [jnp.zeros(t.shape, t.dtype) for t in _types(graph, node)]
        constants = []
        for function, part in pieces:
            constant, transpose = jax.vjp(function, *zeros)
            constants.append(constant if _has_constant(node) else jnp.zeros_like(row))
            for operand, share in zip(node.inputs, transpose(part), strict=True):
                rows[operand] = rows[operand] + share if operand in rows else share
        if pieces and (error is not None or _has_constant(node)):
            error = 0.0 if error is None else error
            bias += least_inner(row, constants[0], constants[-1], error)
    return bias, rows


def _pieces(
    node: Node, lines: Relaxation | None, row: jax.Array
) -> list[tuple[Callable[..., jax.Array], jax.Array]]:
    """Affine functions that stand for a node, each with its part of the row."""
    if node.affine:
        return [(node.of_inputs, row)]
    if lines is None:
        return []
    below, above = lines
    return [(below, jnp.maximum(row, 0)), (above, jnp.minimum(row, 0))]


def _cut(interval: Interval, cut: Interval | None) -> Interval:
    if cut is None:
        return interval
    return Interval(
        jnp.maximum(interval.lower, cut.lower), jnp.minimum(interval.upper, cut.upper)
    )


def _constrained(
    row: jax.Array, multiplier: Interval, interval: Interval
) -> tuple[jax.Array, jax.Array]:
    """The row Λ − β + γ, and ⟨β, l⟩ − ⟨γ, u⟩ less what roundings may have added."""
    beta, gamma = (
        jnp.where(jnp.isfinite(end), jnp.maximum(share, 0), 0)
        for share, end in zip(multiplier, interval, strict=True)
    )
    at_lower = jnp.where(beta > 0, beta * interval.lower, 0)
    at_upper = jnp.where(gamma > 0, gamma * interval.upper, 0)
    moved = row - beta + gamma
    rounded = 4 * roundoff(moved.dtype) * (jnp.abs(row) + beta + gamma)
    error = jnp.where(moved == row, 0, rounded * magnitude(interval))
    return moved, total(at_lower) + total(-at_upper) - jnp.sum(error)


def _types(graph: Graph, node: Node) -> list[jax.ShapeDtypeStruct]:
    return [graph.nodes[index].type for index in node.inputs]


def _has_constant(node: Node) -> bool:
    """Whether an equation's lines may be other than 0 where its inputs are 0.

    `at_places` is no product: places outside are filled with a constant.
    """
    products = node.rule.affine in (in_one, in_first)
    return not (node.affine and (products or len(node.inputs) == len(node.operands)))


def _at_ends(row: jax.Array, interval: Interval) -> jax.Array:
    """row · v at the end of each interval where it is least; 0 where row is 0."""
    end = jnp.where(row > 0, interval.lower, interval.upper)
    return jnp.where(row == 0, 0, row * end)


def _narrowed(
    graph: Graph,
    bounds: Bounds,
    lines: Relaxations,
    region: Region,
    index: int,
    rows: int,
) -> Interval:
    """The interval of a node, cut with what linear bounds say of each value."""
    before = bounds.intervals[index]
    shape = before.lower.shape
    bound = functools.partial(lower_bound, graph, bounds, lines, region, at=index)

    def ends(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = jnp.arange(before.lower.size)
        row = (places == value).astype(before.lower.dtype).reshape(shape)
        both = jax.vmap(bound)(jnp.stack([row, -row]))  # compiled once, not twice
        return both[0], -both[1]

    lower, upper = map_batched(
        jax.vmap(ends), jnp.arange(before.lower.size), batch_size=rows
    )
    return Interval(
        jnp.fmax(before.lower, lower.reshape(shape)),
        jnp.fmin(before.upper, upper.reshape(shape)),
    )
