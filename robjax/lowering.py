"""Convolutions and poolings that stay fast inside compiled loops on a CPU.

On XLA's CPU backend two kinds of operations are slow:

* **Convolutions inside `lax.fori_loop`, `scan` or `while_loop`.** The fast kernel takes
  NHWC images and HWIO kernels. XLA brings convolutions into this form in the entry
  computation only (jax-ml/jax issue 12868). The gradient convolutions of *any* model
  have input and output channels swapped, so in a loop they fall to a naive loop on one
  thread.
* **The gradient of max-pooling** (select-and-scatter), everywhere.

`fast` traces an **already differentiated** function and replaces these operations by
equal ones:

    convolution of images      transposed to NHWC · HWIO → NHWC
    … with a 1×1 kernel        a matrix product
    … of a dilated input       (gradient of a strided convolution) dense convolutions
                               whose output channels are the phases of the stride
    … with ≤ 4 output channels (gradient for the image) a matrix product for all taps,
    … smaller than its kernel  then a sum of shifted images
    select-and-scatter-add     (gradient of max-pooling) a running maximum over slices,
    select-and-gather-add      (tangent of max-pooling) with ties and NaN as in XLA

It acts while the caller traces, so jit, vmap, jvp, vjp, scan and pmap around it work as
ever. On any backend but the CPU it changes nothing. It leaves alone what is rare: empty
arrays, explicit shardings, and the bodies of `shard_map`, `pmap` and linear solvers.

Axes: B images, H × W pixels, h × w taps of a kernel, I input and O output channels.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

Rules = Mapping[str, Callable[..., jax.Array | None]]
"""Name of a primitive -> a function of its arguments and parameters.

The function returns the result of an equal operation, or None where it knows none.
"""

_Pairs = Sequence[tuple[int, int]]
"""For each axis the amounts of padding, low and high."""

_JIT = {"jit", "pjit"}
_BODIES = {"cond", "custom_jvp_call", "custom_vjp_call", "remat2", "scan", "while"}
"""Primitives whose bodies are rewritten.

Other bodies stay as they are. `shard_map` names axes that exist inside it only, and the
parts of a linear solver belong together.
"""

_NHWC = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 4
_ROWS = 8
_LARGEST_WINDOW = 32


def fast(f: Callable[..., Any], *, forward: bool = False) -> Callable[..., Any]:
    """Returns `f` with its convolutions and pooling gradients made fast on a CPU.

    >>> square = fast(jax.value_and_grad(lambda x: jnp.sum(x**2)))
    >>> value, gradient = square(jnp.array([1.0, 2.0]))
    >>> float(value), gradient.tolist()
    (5.0, [2.0, 4.0])

    Args:
      f: takes pytrees of arrays as positional arguments. It should contain its own
        differentiation, as in the example. What is differentiated *around* `fast`
        gets new gradient operations that nothing rewrites.
      forward: for functions without derivatives. Their convolutions stay together with
        the activation and pooling after them, which XLA runs as one.
    """
    rules = _FORWARD_RULES if forward else _RULES

    @functools.wraps(f, updated=())
    def rewritten(*args: Any) -> Any:
        if jax.default_backend() != "cpu":
            return f(*args)
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), rules)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def exact(f: Callable[..., Any], *, forward: bool = True) -> Callable[..., Any]:
    """Returns `f`, `fast` and exact enough to judge and to measure.

    By default GPUs and TPUs round the factors of float32 products to TF32 or bfloat16,
    of 3 digits. So `exact` asks for full float32. Where `f` itself asks for a
    precision, it keeps that. `forward=False` is for an `f` with derivatives in it.

    >>> logits = exact(lambda x: x @ jnp.array([[1.0], [1.0]]))
    >>> logits(jnp.array([[1.0, 0.0009765625]])).tolist()  # 2^-10
    [[1.0009765625]]
    """

    @functools.wraps(f, updated=())
    def judge(*args: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return fast(f, forward=forward)(*args)

    return judge


def _evaluate(
    jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], rules: Rules
) -> list[Any]:
    """Runs a jaxpr equation by equation, with the rules of this file."""
    values: dict[core.Var, Any] = {}

    def read(atom: core.Var | core.Literal) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    variables = (*jaxpr.constvars, *jaxpr.invars)
    values.update(zip(variables, (*consts, *args), strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        with equation.ctx.manager:
            outputs = _outputs(equation, inputs, rules)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _outputs(
    equation: core.JaxprEqn, inputs: Sequence[Any], rules: Rules
) -> Sequence[Any]:
    """Runs one equation, by a rule if one applies."""
    primitive, params = equation.primitive, equation.params
    if primitive.name in _JIT:
        inner = params["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, inputs, rules)
    if primitive.name in rules and _ordinary(equation):
        result = rules[primitive.name](*map(jnp.asarray, inputs), **params)
        if result is not None:
            return [result]
    if primitive.name in _BODIES:
        params = jax.tree.map(functools.partial(_rewrite, rules=rules), params)
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return outputs if primitive.multiple_results else [outputs]


def _ordinary(equation: core.JaxprEqn) -> bool:
    """Whether the rules know arrays like those of an equation.

    They do not know empty ones, 64 bits where JAX has them switched off, and shardings
    that are part of the type.
    """
    types: list[Any] = [v.aval for v in (*equation.invars, *equation.outvars)]
    known = all(t.dtype == jax.dtypes.canonicalize_dtype(t.dtype) for t in types)
    return known and all(t.size and not any(t.sharding.spec) for t in types)


def _rewrite(param: Any, rules: Rules) -> Any:
    """Rewrites a body of a loop, of a branch or of remat; returns the rest as it is."""
    if not isinstance(param, core.ClosedJaxpr | core.Jaxpr) or not _touches(param):
        return param
    closed = isinstance(param, core.ClosedJaxpr)
    body = param.jaxpr if closed else param
    consts = param.consts if closed else ()
    types = [variable.aval for variable in body.invars]
    fast = jax.make_jaxpr(lambda *a: _evaluate(body, consts, a, rules))(*types)
    return fast if closed else param if fast.consts else fast.jaxpr


def _touches(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> bool:
    """Whether a rule applies to an operation of the jaxpr or of one inside it."""
    inner = [
        param
        for equation in jaxpr.eqns
        if equation.primitive.name in _JIT | _BODIES
        for param in jax.tree.leaves(equation.params)
        if isinstance(param, core.ClosedJaxpr | core.Jaxpr)
    ]
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return any(map(_touches, inner)) or not names.isdisjoint(_RULES)


def _convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    forward: bool = False,
    dimension_numbers: lax.ConvDimensionNumbers,
    **params: Any,
) -> jax.Array | None:
    """A convolution of images with any order of axes, as one of NHWC · HWIO."""
    if lhs.ndim != 4:
        return None
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    images = lhs.transpose(lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
    kernel = rhs.transpose(*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
    out = _nhwc_convolution(images, kernel, forward, **params)
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return out.transpose(tuple(np.argsort(order)))


def _nhwc_convolution(
    images: jax.Array,
    kernel: jax.Array,
    forward: bool,
    *,
    window_strides: Sequence[int],
    padding: _Pairs,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    **params: Any,
) -> jax.Array:
    """The convolution [B, H, W, I] · [h, w, I, O] → [B, H', W', O]."""
    wanted = params["preferred_element_type"]
    dense = (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and tuple(rhs_dilation) == (1, 1)
        and jnp.issubdtype(images.dtype, jnp.inexact)
        and kernel.dtype == images.dtype
        and (wanted is None or wanted == images.dtype)
    )
    size = kernel.shape[:2]
    strided, dilated = (tuple(s) != (1, 1) for s in (window_strides, lhs_dilation))
    precision = params["precision"]
    if dense and size == (1, 1):
        s_h, s_w = window_strides
        if not dilated:  # fewer pixels first: drop those the stride skips
            pixels = _pad(images, padding, (1, 1))[:, ::s_h, ::s_w]
            return _matmul(pixels, kernel[0, 0], precision)
        out = _matmul(images, kernel[0, 0], precision)
        return _pad(out, padding, lhs_dilation)[:, ::s_h, ::s_w]
    if dense and dilated and not strided:
        return _phases(images, kernel, padding, lhs_dilation, precision)
    small = min(images.shape[1:3]) < max(size) or kernel.shape[3] <= _FEW_CHANNELS
    if dense and not dilated and not strided and small:
        return _taps(images, kernel, padding, precision)
    if dense and not (forward or dilated or strided):
        return _alone(images, kernel, padding, **params)
    geometry = window_strides, padding, lhs_dilation, rhs_dilation
    return lax.conv_general_dilated(images, kernel, *geometry, _NHWC, **params)


def _alone(
    images: jax.Array, kernel: jax.Array, padding: _Pairs, **params: Any
) -> jax.Array:
    """A dense convolution that nothing is fused with.

    XLA runs an evenly padded one on one thread, one with a row more on all cores.
    """
    (low, high), columns = padding
    more = int(images.shape[1] >= _ROWS)
    padding = (low, high + more), columns
    out = lax.conv_general_dilated(
        images, kernel, (1, 1), padding, dimension_numbers=_NHWC, **params
    )
    return out[:, : out.shape[1] - more]


def stored(array: jax.Array) -> jax.Array:
    """The same array, computed once however many operations use it.

    The gradient for the image is a sum of shifted images. XLA's CPU backend would
    compute it anew within each operation that uses it. `lax.optimization_barrier` does
    not prevent that, since XLA drops it before. A conditional does.

    >>> stored(jnp.array([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    if jax.default_backend() != "cpu" or array.size == 0:
        return array
    never = array[(0,) * array.ndim] > jnp.inf
    return lax.cond(never, jnp.zeros_like, lambda array: array, array)


def _matmul(
    images: jax.Array, matrix: jax.Array, precision: Any, dtype: Any = None
) -> jax.Array:
    """[B, H, W, I] · [I, O] → [B, H, W, O], of a dtype."""
    contract = (((images.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(
        images, matrix, contract, precision=precision, preferred_element_type=dtype
    )


def _pad(images: jax.Array, padding: _Pairs, dilation: Sequence[int]) -> jax.Array:
    """Zero padding of the two spatial axes; negative amounts crop."""
    inner = [(*pair, step - 1) for pair, step in zip(padding, dilation, strict=True)]
    zero = jnp.zeros((), images.dtype)
    return lax.pad(images, zero, [(0, 0, 0), *inner, (0, 0, 0)])


def _taps(
    images: jax.Array, kernel: jax.Array, padding: _Pairs, precision: Any
) -> jax.Array:
    """out[p] = Σ_t (images · K_t)[p + t]: one product for all taps t, then shifts."""
    height, width, _, channels = kernel.shape
    columns = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    # a convolution rounds to half precision once, not in every sum
    wide = jnp.float32 if jnp.finfo(images.dtype).bits < 32 else images.dtype
    responses = _pad(_matmul(images, columns, precision, wide), padding, (1, 1))
    out_h = responses.shape[1] - height + 1
    out_w = responses.shape[2] - width + 1
    shifted = [
        responses[:, i : i + out_h, j : j + out_w, tap * channels :][..., :channels]
        for tap, (i, j) in enumerate(np.ndindex(height, width))
    ]
    return functools.reduce(jnp.add, shifted).astype(images.dtype)


class _Run(NamedTuple):
    """Neighbouring phases r of `_phases`, on one axis, that see the same pixels.

    Attributes:
      taps: of each phase.
      padding: with which a convolution over these pixels has one output for each q.
    """

    taps: list[slice]
    padding: tuple[int, int]


def _runs(
    pixels: int, taps: int, padding: tuple[int, int], step: int
) -> tuple[list[_Run], int]:
    """The phases of one axis in order, and its size; the formulas are `_phases`'."""
    low, high = padding
    size = (pixels - 1) * step + 1 + low + high - taps + 1
    last_position = (size - 1) // step

    def seen(phase: int) -> tuple[int, int]:
        """The first pixel for q = 0, and how many there are."""
        tap = (low - phase) % step
        return (phase + tap - low) // step, len(range(tap, taps, step))

    runs = []
    for (first, count), run in itertools.groupby(range(step), seen):
        last = first + last_position + count - 1
        run_taps = [slice((low - phase) % step, None, step) for phase in run]
        runs.append(_Run(run_taps, padding=(-first, last - (pixels - 1))))
    return runs, size


def _phases(
    images: jax.Array,
    kernel: jax.Array,
    padding: _Pairs,
    dilation: Sequence[int],
    precision: Any,
) -> jax.Array:
    """Convolution of an input with s−1 zeros between pixels, without the zeros.

    Output o = s·q + r sees input pixel q + m + c_r through tap t = t_r + s·m, where
    t_r = (low − r) mod s and c_r = (r + t_r − low)/s. Phases r that see the same pixels
    become output channels of one dense convolution over q, and all are interleaved.
    None is given more pixels than it sees: zero taps would turn infinities into NaN.
    """
    (rows, height), (columns, width) = (
        _runs(images.shape[axis + 1], kernel.shape[axis], pair, step)
        for axis, (pair, step) in enumerate(zip(padding, dilation, strict=True))
    )
    parts = [
        [_run_pair(images, kernel, row, column, precision) for column in columns]
        for row in rows
    ]
    out = jnp.concatenate([jnp.concatenate(part, axis=4) for part in parts], axis=3)
    batch, q_h, q_w, s_h, s_w, channels = out.shape
    out = out.transpose(0, 1, 3, 2, 4, 5).reshape(batch, q_h * s_h, q_w * s_w, channels)
    return out[:, :height, :width]


def _run_pair(
    images: jax.Array, kernel: jax.Array, row: _Run, column: _Run, precision: Any
) -> jax.Array:
    """[B, H, W, I] · [h, w, I, O] → [B, q, q', r, r', O], the phases of two runs."""
    images = _pad(images, (row.padding, column.padding), (1, 1))
    kernels = [kernel[i, j] for i, j in itertools.product(row.taps, column.taps)]
    n, m, channels_in, channels_out = kernels[0].shape
    batch, height, width, _ = images.shape
    phases = (len(row.taps), len(column.taps), channels_out)
    shape = (batch, height - n + 1, width - m + 1, *phases)
    if n * m == 0:
        return jnp.zeros(shape, images.dtype)
    stacked = jnp.stack(kernels, axis=3).reshape(n, m, channels_in, -1)
    if n * m == 1:
        return _matmul(images, stacked[0, 0], precision).reshape(shape)
    out = _alone(images, stacked, ((0, 0), (0, 0)), precision=precision)
    return out.reshape(shape)


def _members(
    array: jax.Array, window: Sequence[int], strides: Sequence[int]
) -> list[jax.Array]:
    """For each offset in a window, its element in every window (no padding)."""
    ends = [n - w + 1 for n, w in zip(array.shape, window, strict=True)]
    return [
        lax.slice(array, o, [i + n for i, n in zip(o, ends, strict=True)], strides)
        for o in np.ndindex(*window)
    ]


def _rises(members: Iterable[jax.Array], largest: jax.Array) -> list[jax.Array]:
    """For each member in turn, whether XLA takes it for the largest so far.

    The one before stays where it is at least as large. So of equal numbers the first
    stays, and a NaN is taken for the largest until the next member comes.
    """
    rises = []
    for member in members:
        rises.append(~(largest >= member))
        largest = jnp.where(rises[-1], member, largest)
    return rises


def _simple(select: core.Primitive, window: Sequence[int], padding: _Pairs) -> bool:
    """Whether windows are those of a maximum, unpadded and small."""
    small = np.prod(window) <= _LARGEST_WINDOW
    return select.name == "ge" and not np.any(padding) and bool(small)


def _pooling_gradient(
    source: jax.Array,
    operand: jax.Array,
    *,
    select_prim: core.Primitive,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: _Pairs,
    **_: Any,
) -> jax.Array | None:
    """Gradient of max-pooling over windows that do not overlap and are not padded."""
    window = tuple(window_dimensions)
    if not _simple(select_prim, window, padding) or window != tuple(window_strides):
        return None
    first, *others = _members(operand, window, window)
    taken = jnp.zeros(source.shape, bool)
    shares = []
    for rise in reversed(_rises(others, first)):
        shares.append(jnp.where(rise & ~taken, source, 0))
        taken = taken | rise
    shares.append(jnp.where(taken, 0, source))
    return _interleave(shares[::-1], window, operand.shape)


def _pooling_tangent(
    tangents: jax.Array,
    operand: jax.Array,
    *,
    select_prim: core.Primitive,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: _Pairs,
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> jax.Array | None:
    """Tangent of max-pooling without padding: that of each window's first maximum."""
    window = tuple(window_dimensions)
    dilated = any(step != 1 for step in (*base_dilation, *window_dilation))
    if not _simple(select_prim, window, padding) or dilated:
        return None
    values = _members(operand, window, window_strides)
    changes = _members(tangents, window, window_strides)
    lowest = jnp.full_like(values[0], -jnp.inf)  # what XLA begins with, tangent 0
    chosen = jnp.zeros_like(changes[0])
    for rise, change in zip(_rises(values, lowest), changes, strict=True):
        chosen = jnp.where(rise, change, chosen)
    return chosen


def _interleave(
    shares: list[jax.Array], window: Sequence[int], shape: Sequence[int]
) -> jax.Array:
    """The inverse of `_members`: shares[offset] at that of each window, 0 elsewhere."""
    for axis, size in reversed(list(enumerate(window))):
        starts = range(0, len(shares), size)
        shares = [_weave(shares[i : i + size], axis) for i in starts]
    out = shares[0]
    short = [(0, full - have, 0) for full, have in zip(shape, out.shape, strict=True)]
    return lax.pad(out, jnp.zeros((), out.dtype), short)


def _weave(group: list[jax.Array], axis: int) -> jax.Array:
    """Arrays of one shape, entry by entry in turn along an axis."""
    shape = list(group[0].shape)
    shape[axis] *= len(group)
    return jnp.stack(group, axis=axis + 1).reshape(shape)


_RULES: Rules = {
    "conv_general_dilated": _convolution,
    "select_and_gather_add": _pooling_tangent,
    "select_and_scatter_add": _pooling_gradient,
}
_FORWARD_RULES: Rules = {
    **_RULES,
    "conv_general_dilated": functools.partial(_convolution, forward=True),
}
