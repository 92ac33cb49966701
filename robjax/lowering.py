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
    … of a dilated input       (gradient of a strided convolution) one dense convolution
                               whose output channels are the phases of the stride
    … with ≤ 4 output channels (gradient for the image) a matrix product for all taps,
    … smaller than its kernel  then a sum of shifted images
    select-and-scatter-add     (gradient of max-pooling) equality masks, the first
                               maximum of a window winning, as in the original
    select-and-gather-add      (tangent of max-pooling) a running maximum over slices

It acts while the caller traces, so jit, vmap, jvp, vjp, scan and pmap around it work as
ever. On any backend but the CPU it changes nothing.

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

    Returns:
      A function that takes and returns what `f` does.
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


def exact(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `f`, a function without derivatives, `fast` and exact enough to judge.

    By default GPUs and TPUs round the factors of float32 products to TF32 or bfloat16.
    Their 3 digits may decide which of two logits is larger. So `exact` asks for full
    float32. Where `f` itself asks for a precision, it keeps that.

    >>> logits = exact(lambda x: x @ jnp.array([[1.0], [1.0]]))
    >>> logits(jnp.array([[1.0, 0.0009765625]])).tolist()  # 2^-10
    [[1.0009765625]]
    """

    @functools.wraps(f, updated=())
    def judge(*args: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return fast(f, forward=True)(*args)

    return judge


def _evaluate(
    jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], rules: Rules
) -> list[Any]:
    """Runs a jaxpr equation by equation, with the rules of this file."""
    values: dict[core.Var, Any] = {}

    def read(atom: core.Var | core.Literal) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        params = equation.params
        if name in ("jit", "pjit"):
            inner = params["jaxpr"]
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs, rules)
        elif name in rules and (result := rules[name](*inputs, **params)) is not None:
            outputs = [result]
        else:
            params = {key: _rewrite(value, rules) for key, value in params.items()}
            params = equation.primitive.get_bind_params(params)
            with equation.ctx.manager:
                outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rewrite(param: Any, rules: Rules) -> Any:
    """Rewrites the bodies of loops, branches and remat; returns the rest as it is."""
    if isinstance(param, tuple | list) and any(
        isinstance(item, core.ClosedJaxpr) for item in param
    ):
        return type(param)(_rewrite(item, rules) for item in param)
    if isinstance(param, core.ClosedJaxpr):
        body = param.jaxpr
        consts = param.consts
    elif isinstance(param, core.Jaxpr) and not param.constvars:
        body = param
        consts = ()
    else:
        return param
    if not _touches(body):
        return param
    shapes = [_shape(variable.aval) for variable in body.invars]
    closed = jax.make_jaxpr(lambda *a: _evaluate(body, consts, a, rules))(*shapes)
    if isinstance(param, core.ClosedJaxpr):
        return closed
    return param if closed.consts else closed.jaxpr


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _touches(jaxpr: core.Jaxpr) -> bool:
    """Whether a rule applies to an operation of the jaxpr or of one inside it."""

    def bodies(param: Any) -> Iterable[core.Jaxpr]:
        if isinstance(param, tuple | list):
            return itertools.chain.from_iterable(map(bodies, param))
        if isinstance(param, core.ClosedJaxpr):
            return [param.jaxpr]
        return [param] if isinstance(param, core.Jaxpr) else []

    return any(
        equation.primitive.name in _RULES
        or any(_touches(b) for p in equation.params.values() for b in bodies(p))
        for equation in jaxpr.eqns
    )


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
    dense = (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and tuple(rhs_dilation) == (1, 1)
        and params["preferred_element_type"] in (None, images.dtype)
    )
    size = kernel.shape[:2]
    strided = tuple(window_strides) != (1, 1)
    dilated = tuple(lhs_dilation) != (1, 1)
    product = functools.partial(_matmul, precision=params["precision"])
    if dense and size == (1, 1):
        if not dilated:  # fewer pixels first: drop those the stride skips
            pixels = _skip(_pad(images, padding, (1, 1)), window_strides)
            return product(pixels, kernel[0, 0])
        out = _pad(product(images, kernel[0, 0]), padding, lhs_dilation)
        return _skip(out, window_strides)
    if dense and dilated and not strided and 0 not in images.shape + kernel.shape:
        return _phases(images, kernel, padding, lhs_dilation, params)
    small = min(images.shape[1:3]) < max(size) or kernel.shape[3] <= _FEW_CHANNELS
    if dense and not dilated and not strided and small:
        return _taps(images, kernel, padding, product)
    convolve = functools.partial(
        lax.conv_general_dilated, dimension_numbers=_NHWC, **params
    )
    if dense and not (forward or dilated or strided) and images.shape[1] >= _ROWS:
        # XLA runs an evenly padded convolution that stands alone on one thread; with
        # one row more below it takes its other kernel, which uses all cores
        (low, high), columns = padding
        return convolve(images, kernel, (1, 1), [(low, high + 1), columns])[:, :-1]
    return convolve(images, kernel, window_strides, padding, lhs_dilation, rhs_dilation)


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


def _matmul(images: jax.Array, matrix: jax.Array, *, precision: Any) -> jax.Array:
    """[B, H, W, I] · [I, O] → [B, H, W, O]."""
    contract = (((images.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(images, matrix, contract, precision=precision)


def _skip(images: jax.Array, strides: Sequence[int]) -> jax.Array:
    """The pixels that a stride does not skip."""
    return images[:, :: strides[0], :: strides[1]]


def _pad(images: jax.Array, padding: _Pairs, dilation: Sequence[int]) -> jax.Array:
    """Zero padding of the two spatial axes; negative amounts crop."""
    amounts = [
        (low, high, step - 1)
        for (low, high), step in zip(padding, dilation, strict=True)
    ]
    zero = jnp.zeros((), images.dtype)
    return lax.pad(images, zero, [(0, 0, 0), *amounts, (0, 0, 0)])


def _taps(
    images: jax.Array,
    kernel: jax.Array,
    padding: _Pairs,
    product: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """out[p] = Σ_t (images · K_t)[p + t]: one product for all taps t, then shifts."""
    height, width, _, channels = kernel.shape
    columns = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    responses = _pad(product(images, columns), padding, (1, 1))
    out_h = responses.shape[1] - height + 1
    out_w = responses.shape[2] - width + 1
    shifted = [
        responses[:, i : i + out_h, j : j + out_w, tap * channels :][..., :channels]
        for tap, (i, j) in enumerate(np.ndindex(height, width))
    ]
    return functools.reduce(jnp.add, shifted)


class _AxisPhases(NamedTuple):
    """How the phases r < s of `_phases` look on one axis.

    Attributes:
      taps: int [length, s]; the tap of a phase at each offset of the dense kernel.
        The number of taps, which is no tap, stands where the tap is zero.
      padding: of the dense convolution.
      positions: how many q there are.
      size: pixels of the output, at most s · positions.
    """

    taps: np.ndarray
    padding: tuple[int, int]
    positions: int
    size: int


def _axis_phases(
    pixels: int, taps: int, padding: tuple[int, int], step: int
) -> _AxisPhases:
    """The phases of one axis; the formulas are those of `_phases`."""
    low, high = padding
    size = (pixels - 1) * step + 1 + low + high - taps + 1
    phase = np.arange(step)
    first_tap = (low - phase) % step
    first_pixel = (phase + first_tap - low) // step
    start = first_pixel.min()
    length = (first_pixel - start + -(-(taps - first_tap) // step)).max()
    offset = np.arange(length)[:, None] - (first_pixel - start)
    tap = first_tap + step * offset
    positions = -(-size // step)
    return _AxisPhases(
        taps=np.where((offset >= 0) & (tap < taps), tap, taps),
        padding=(-start, positions - 1 + length - 1 + start - (pixels - 1)),
        positions=positions,
        size=size,
    )


def _phases(
    images: jax.Array,
    kernel: jax.Array,
    padding: _Pairs,
    dilation: Sequence[int],
    params: Mapping[str, Any],
) -> jax.Array:
    """Convolution of an input with s−1 zeros between pixels, without the zeros.

    Output o = s·q + r sees input pixel q + m + c_r through tap t = t_r + s·m, where
    t_r = (low − r) mod s and c_r = (r + t_r − low)/s. All s² phases r become output
    channels of one dense convolution over q, and are interleaved afterwards.
    """
    rows, columns = (
        _axis_phases(images.shape[axis + 1], kernel.shape[axis], pair, step)
        for axis, (pair, step) in enumerate(zip(padding, dilation, strict=True))
    )
    stacked = _phase_kernel(kernel, rows.taps, columns.taps)
    dense = lax.conv_general_dilated(
        _pad(images, (rows.padding, columns.padding), (1, 1)),
        stacked.reshape(*stacked.shape[:3], -1),
        (1, 1),
        "VALID",
        dimension_numbers=_NHWC,
        **params,
    )
    s_h, s_w = dilation
    channels = kernel.shape[3]
    out = dense.reshape(-1, rows.positions, columns.positions, s_h, s_w, channels)
    out = out.transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(-1, rows.positions * s_h, columns.positions * s_w, channels)
    return out[:, : rows.size, : columns.size]


def _phase_kernel(
    kernel: jax.Array, row_taps: np.ndarray, column_taps: np.ndarray
) -> jax.Array:
    """The kernels of all phases, [h, w, I, O] → [n, m, I, s_h, s_w, O]."""
    n, s_h = row_taps.shape
    m, s_w = column_taps.shape
    _, _, channels_in, channels_out = kernel.shape
    # slices rather than a gather: no array constants, and cheap
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    padded = jnp.stack([padded[i] for i in row_taps.ravel()])
    padded = jnp.stack([padded[:, j] for j in column_taps.ravel()], axis=1)
    stacked = padded.reshape(n, s_h, m, s_w, channels_in, channels_out)
    return stacked.transpose(0, 2, 4, 1, 3, 5)


def _members(
    array: jax.Array, window: Sequence[int], strides: Sequence[int]
) -> list[jax.Array]:
    """For each offset in a window, its element in every window (no padding)."""
    ends = [n - w + 1 for n, w in zip(array.shape, window, strict=True)]
    return [
        lax.slice(array, o, [i + n for i, n in zip(o, ends, strict=True)], strides)
        for o in np.ndindex(*window)
    ]


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
    simple = (
        select_prim.name == "ge"
        and window == tuple(window_strides)
        and all(amounts == (0, 0) for amounts in padding)
    )
    if not simple:
        return None
    members = _members(operand, window, window)
    largest = functools.reduce(jnp.maximum, members)
    taken = jnp.zeros(source.shape, bool)
    shares = []
    for member in members:
        winner = (member == largest) & ~taken
        taken = taken | winner
        shares.append(jnp.where(winner, source, 0))
    return _interleave(shares, window, operand.shape)


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
    simple = (
        select_prim.name == "ge"
        and all(step == 1 for step in (*base_dilation, *window_dilation))
        and all(amounts == (0, 0) for amounts in padding)
        and np.prod(window) <= _LARGEST_WINDOW
    )
    if not simple:
        return None
    values = _members(operand, window, window_strides)
    changes = _members(tangents, window, window_strides)
    largest = values[0]
    chosen = changes[0]
    for value, change in zip(values[1:], changes[1:], strict=True):
        chosen = jnp.where(value > largest, change, chosen)
        largest = jnp.maximum(value, largest)
    return chosen


def _interleave(
    shares: list[jax.Array], window: Sequence[int], shape: Sequence[int]
) -> jax.Array:
    """The inverse of `_members`: puts shares[offset] back at each window's offset.

    Pixels that no window reaches get zero.
    """
    for axis in reversed(range(len(window))):
        if window[axis] == 1:
            continue
        groups = [
            shares[i : i + window[axis]] for i in range(0, len(shares), window[axis])
        ]
        shares = [_weave(group, axis) for group in groups]
    out = shares[0]
    short = [(0, full - have, 0) for full, have in zip(shape, out.shape, strict=True)]
    return lax.pad(out, jnp.zeros((), out.dtype), short)


def _weave(group: list[jax.Array], axis: int) -> jax.Array:
    """Arrays of one shape, entry by entry in turn along an axis."""
    stacked = jnp.stack(group, axis=axis + 1)
    shape = list(group[0].shape)
    shape[axis] *= len(group)
    return stacked.reshape(shape)


_RULES: Rules = {
    "conv_general_dilated": _convolution,
    "select_and_gather_add": _pooling_tangent,
    "select_and_scatter_add": _pooling_gradient,
}
_FORWARD_RULES: Rules = {
    **_RULES,
    "conv_general_dilated": functools.partial(_convolution, forward=True),
}
