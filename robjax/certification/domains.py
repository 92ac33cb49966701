"""Domains of branch and bound: parts of a region, their bounds and their halves.

A domain holds the images of the region for which the values of some nodes lie in given
intervals, its cuts. At first these are the bounds of CROWN. Halving a domain cuts one
value of one node in two: the input of a ReLU at its kink, that of any other function in
the middle, or a pixel. Every image of the domain is in one half at least.

**Where to halve.** The bound loses at each value what lies between the function and its
lines, weighed by the row. That is counted at the cut, where lines mostly are furthest,
and a little at the ends. The value that loses most is halved. A pixel is halved where
more is lost at nodes of several operands, such as products and pooling, or nothing is.

    β-CROWN    Wang et al., NeurIPS 2021, arXiv 2103.06624: cuts at the kinks of ReLUs
    GenBaB     Shi et al., TACAS 2025, arXiv 2405.21063: cuts of any nonlinearity

Everything here is of one image and one difference; `jax.vmap` does the rest.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robjax.balls import Linf
from robjax.certification import relaxations
from robjax.certification.graph import Graph, Node
from robjax.certification.intervals import Interval
from robjax.certification.linear import Bounds, Relaxations, propagate, relax, walk_back
from robjax.certification.methods import (
    Slopes,
    each_row,
    first_slopes,
    known,
    optimised,
    to_unit,
)
from robjax.certification.regions import Region
from robjax.certification.relaxations import Relaxation
from robjax.numerics import finite_or_zero

Cuts = dict[int, Interval]

Free = tuple[Slopes, Cuts]
"""Slopes and multipliers."""

_ENDS = (
    0.01  # what is lost at the ends counts so much: it decides where nothing else is
)
_FEW = 16  # of so few pixels it is better to halve one then


class Domain(NamedTuple):
    """A part of a region, and where the search for its bound starts.

    Attributes:
      cuts: node -> interval of its values; node 0 is the image.
      slopes: of ReLUs.
      multipliers: node -> β and γ for its cuts.
    """

    cuts: Cuts
    slopes: Slopes
    multipliers: Cuts


class Bounded(NamedTuple):
    """What is known of a domain.

    Attributes:
      lower: of z_y − z_i; ∞ where the domain is empty.
      point: [*S] the image of the region where the linear bound is least.
      halves: of the domain.
    """

    lower: jax.Array
    point: jax.Array
    halves: tuple[Domain, Domain]


def whole(graph: Graph, region: Region, rows: int) -> tuple[Domain, jax.Array]:
    """The whole region as a domain, and whether halves of it mean anything.

    They do not where a value may be NaN, which is on neither side of a cut.

    Args:
      graph: made by `record` from a batch of one image.
      region: where the image is.
      rows: how many rows walk back together.
    """
    bounds = propagate(graph, region, rows=rows, tighten=True)
    lines = relax(graph, bounds)
    floating = [
        index
        for index in sorted({0, *graph.relaxed_inputs()})
        if jnp.issubdtype(graph.nodes[index].type.dtype, jnp.floating)
    ]
    cuts = {index: bounds.intervals[index] for index in floating}
    sources = {graph.nodes[i].inputs[0] for i in lines if _one(graph, i, lines)}
    if region.kind is not Linf:
        sources.add(0)
    none = {i: jax.tree.map(jnp.zeros_like, cuts[i]) for i in sources}
    assert isinstance(graph.output, int)
    found = Domain(cuts, first_slopes(graph, bounds, lines), none)
    return found, known(bounds, graph.output)


def bound(
    graph: Graph,
    region: Region,
    domain: Domain,
    label: jax.Array,
    other: jax.Array,
    steps: int,
) -> Bounded:
    """Bounds z_label − z_other over a domain, by the best slopes and multipliers.

    Args:
      graph: made by `record` from a batch of one image; its output is a node.
      region: where the image is.
      domain: made by `whole` or halved.
      label, other: classes.
      steps: of Adam.
    """
    output = graph.output
    assert isinstance(output, int)
    logits = graph.nodes[output].type
    ones = jnp.eye(logits.shape[1], dtype=logits.dtype)
    row = (ones[label] - ones[other])[None]
    if region.is_box:
        region = region._replace(box=domain.cuts[0])
    bounds = propagate(graph, region, rows=1, tighten=False, cuts=domain.cuts)
    lines = relax(graph, bounds)

    def walk(
        free: Free,
    ) -> tuple[jax.Array, dict[int, jax.Array], Relaxations]:
        slopes, multipliers = free
        chosen = {**lines, **relax(graph, bounds, slopes)}
        bias, rows = walk_back(graph, bounds, chosen, row, output, multipliers)
        rows.setdefault(0, jnp.zeros(region.image.shape, row.dtype))
        return bias, rows, chosen

    def least(free: Free) -> jax.Array:
        bias, rows, _ = walk(free)
        return bias + region.minimum(rows[0])

    start = each_row((domain.slopes, domain.multipliers), 1)
    (value,), free = optimised(jax.vmap(least), start, steps, _in_range)
    slopes, multipliers = jax.tree.map(lambda leaf: leaf[0], free)
    _, rows, chosen = walk((slopes, multipliers))
    # the derivative of a minimum of linear functions is where it is attained
    point = jnp.clip(jax.grad(region.minimum)(rows[0]), *region.box)
    crossed = [
        jnp.any(interval.lower > interval.upper) for interval in bounds.intervals
    ]
    value = jnp.where(known(bounds, output) & ~jnp.isnan(value), value, -jnp.inf)
    losses, at = _losses(graph, bounds, chosen, rows, domain.cuts)
    below, above = _halved(bounds, domain.cuts, losses, at)
    return Bounded(
        jnp.where(jnp.any(jnp.stack(crossed)), jnp.inf, value),
        point,
        (Domain(below, slopes, multipliers), Domain(above, slopes, multipliers)),
    )


def _in_range(free: Free) -> Free:
    slopes, multipliers = free
    return to_unit(slopes), jax.tree.map(jax.nn.relu, multipliers)


def _one(graph: Graph, index: int, lines: Relaxations) -> bool:
    """Whether each value of a relaxed node depends on one value of one other node."""
    node = graph.nodes[index]
    if index not in lines or len(node.inputs) != 1:
        return False
    source = graph.nodes[node.inputs[0]].type
    same = source.shape == node.type.shape
    floating = jnp.issubdtype(source.dtype, jnp.floating)
    return same and floating and node.rule.relax is not relaxations.pooling


def _halved(
    bounds: Bounds,
    cuts: Cuts,
    losses: dict[int, jax.Array],
    at: dict[int, jax.Array],
) -> tuple[Cuts, Cuts]:
    """The cuts of both halves: the value that loses most is at most, at least `at`."""
    place = jnp.argmax(jnp.concatenate([jnp.ravel(losses[index]) for index in cuts]))
    below, above, before = {}, {}, 0
    for index in cuts:
        lower, upper = bounds.intervals[index]
        chosen = (before + jnp.arange(lower.size) == place).reshape(lower.shape)
        below[index] = Interval(lower, jnp.where(chosen, at[index], upper))
        above[index] = Interval(jnp.where(chosen, at[index], lower), upper)
        before += lower.size
    return below, above


def _losses(
    graph: Graph,
    bounds: Bounds,
    lines: Relaxations,
    rows: dict[int, jax.Array],
    cuts: Cuts,
) -> tuple[dict[int, jax.Array], dict[int, jax.Array]]:
    """What is lost at each value that can be cut, and where each would be cut."""
    intervals = {index: bounds.intervals[index] for index in cuts}
    losses = {index: jnp.zeros_like(ends.lower) for index, ends in intervals.items()}
    at = {index: ends.lower / 2 + ends.upper / 2 for index, ends in intervals.items()}
    inner, elsewhere = jnp.zeros(()), jnp.zeros(())
    ends_count = _ENDS if intervals[0].lower.size > _FEW else 0.0
    for index, row in rows.items():
        node = graph.nodes[index]
        if node.affine or index == 0:
            continue
        inputs = [bounds.intervals[i] for i in node.inputs]
        middle = [ends.lower / 2 + ends.upper / 2 for ends in inputs]
        lost = functools.partial(
            _lost, node, row, lines.get(index), bounds.intervals[index]
        )
        if not _one(graph, index, lines):
            elsewhere += jnp.sum(lost(*middle))
            continue
        (source,) = node.inputs
        kink = relaxations.kink(node.equation, *bounds.operands(node))
        at[source] = middle[0] if kink is None else jnp.broadcast_to(kink, row.shape)
        lower, upper = intervals[source]
        score = lost(at[source]) + ends_count * (lost(lower) + lost(upper))
        score = jnp.where((lower < at[source]) & (at[source] < upper), score, 0)
        losses[source] += score
        inner += jnp.sum(score)
    weight = jnp.abs(rows[0])
    weight += jnp.maximum(0.01 * jnp.mean(weight), 1e-6)
    pixels = weight * (intervals[0].upper - intervals[0].lower)
    most = jnp.where(inner > elsewhere, -1.0, jnp.inf)
    losses[0] = jnp.where(pixels >= jnp.max(pixels), most, -1.0)
    return losses, at


def _lost(
    node: Node,
    row: jax.Array,
    lines: Relaxation | None,
    interval: Interval,
    *inputs: jax.Array,
) -> jax.Array:
    """By how much the values of a node exceed their bounds, weighed by its row."""
    value = node.of_inputs(*inputs)
    below, above = interval if lines is None else (line(*inputs) for line in lines)
    lost = row * (value - jnp.where(row > 0, below, above))
    return jnp.where(row == 0, 0, jnp.maximum(finite_or_zero(lost), 0))
