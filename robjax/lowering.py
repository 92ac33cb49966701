"""Convolutions and poolings that stay fast inside compiled loops on a CPU.

XLA's CPU backend brings convolutions into the form its fast kernel accepts (NHWC
images, HWIO kernels) only in the entry computation (jax-ml/jax issue 12868). Inside
`lax.fori_loop`, `scan` or `while_loop` the gradient convolutions of *any* model, whose
kernels have input and output channels swapped, fall to a naive loop on one thread; and
the gradient of max-pooling (select-and-scatter) is slow everywhere. `fast` traces an
**already differentiated** function and replaces these operations by equal ones:

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
ever, and on any backend but the CPU it changes nothing.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

Rules = Mapping[str, Callable[..., Any]]

_NHWC = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 4
_ROWS = 8
_LARGEST_WINDOW = 32


def fast(f: Callable[..., Any], *, forward: bool = False) -> Callable[..., Any]:
    """Returns `f` with its convolutions and pooling gradients made fast on a CPU.

    `f` takes pytrees of arrays as positional arguments and should contain its own
    differentiation, as in ``fast(jax.value_and_grad(loss))``: what is differentiated
    *around* `fast` gets new gradient operations that nothing rewrites. `forward` is for
    functions without derivatives: their convolutions stay together with the activation
    and pooling after them, which XLA runs as one.
    """
    rules = _FORWARD_RULES if forward else _RULES

    @functools.wraps(f, updated=())
    def rewritten(*args):
        if jax.default_backend() != "cpu":
            return f(*args)
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), rules)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def exact(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `f`, a function without derivatives, as `fast` and exact enough to judge.

    GPUs and TPUs by default round the factors of float32 products to TF32 or bfloat16,
    whose 3 digits may decide which of two logits is larger. Where `f` itself asks for a
    precision, it keeps that.
    """

    @functools.wraps(f, updated=())
    def judge(*args):
        with jax.default_matmul_precision("float32"):
            return fast(f, forward=True)(*args)

    return judge


def _evaluate(
    jaxpr, consts: Sequence[Any], args: Sequence[Any], rules: Rules
) -> list[Any]:
    """Runs a jaxpr equation by equation, with the rules of this file."""
    values: dict[Any, Any] = {}

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        name, params = equation.primitive.name, equation.params
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
        body, consts = param.jaxpr, param.consts
    elif isinstance(param, core.Jaxpr) and not param.constvars:
        body, consts = param, ()
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


def _touches(jaxpr) -> bool:
    def bodies(param):
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


def _convolution(lhs, rhs, *, forward=False, dimension_numbers, **params):
    if lhs.ndim != 4:
        return None
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    images = lhs.transpose(lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
    kernel = rhs.transpose(*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
    out = _nhwc_convolution(images, kernel, forward, **params)
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return out.transpose(tuple(np.argsort(order)))


def _nhwc_convolution(
    images,
    kernel,
    forward,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    **params,
):
    """The convolution [B, H, W, I] · [h, w, I, O] → [B, H', W', O]."""
    dense = (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and tuple(rhs_dilation) == (1, 1)
        and params["preferred_element_type"] in (None, images.dtype)
    )
    size, strided = kernel.shape[:2], tuple(window_strides) != (1, 1)
    dilated = tuple(lhs_dilation) != (1, 1)
    product = functools.partial(_matmul, precision=params["precision"])
    if dense and size == (1, 1):
        if not dilated:  # fewer pixels first: drop those the stride skips
            images = _pad(images, padding, (1, 1))[
                :, :: window_strides[0], :: window_strides[1]
            ]
            return product(images, kernel[0, 0])
        out = _pad(product(images, kernel[0, 0]), padding, lhs_dilation)
        return out[:, :: window_strides[0], :: window_strides[1]]
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

    XLA's CPU backend would compute the gradient for the image, a sum of shifted images,
    anew within each of them, having dropped `lax.optimization_barrier` before; it does
    not look beyond a conditional.
    """
    if jax.default_backend() != "cpu" or array.size == 0:
        return array
    never = array[(0,) * array.ndim] > jnp.inf
    return lax.cond(never, jnp.zeros_like, lambda array: array, array)


def _matmul(images, matrix, *, precision):
    contract = (((images.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(images, matrix, contract, precision=precision)


def _pad(images, padding, dilation):
    """Zero padding of the two spatial axes; negative amounts crop."""
    amounts = [
        (low, high, step - 1)
        for (low, high), step in zip(padding, dilation, strict=True)
    ]
    zero = jnp.zeros((), images.dtype)
    return lax.pad(images, zero, [(0, 0, 0), *amounts, (0, 0, 0)])


def _taps(images, kernel, padding, product):
    """out[p] = Σ_t (images · K_t)[p + t]: one product for all taps t, then shifts."""
    height, width, _, channels = kernel.shape
    columns = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    responses = _pad(product(images, columns), padding, (1, 1))
    out_h, out_w = responses.shape[1] - height + 1, responses.shape[2] - width + 1
    shifted = [
        responses[:, i : i + out_h, j : j + out_w, tap * channels :][..., :channels]
        for tap, (i, j) in enumerate(np.ndindex(height, width))
    ]
    return functools.reduce(jnp.add, shifted)


def _phases(images, kernel, padding, dilation, params):
    """Convolution of an input with s−1 zeros between pixels, without the zeros.

    Output o = s·q + r sees input pixel q + m + c_r through tap t = t_r + s·m, where
    t_r = (low − r) mod s and c_r = (r + t_r − low)/s. All s² phases r become output
    channels of one dense convolution over q, and are interleaved afterwards.
    """
    out_size, columns, dense_padding = [], [], []
    for axis, ((low, high), step) in enumerate(zip(padding, dilation, strict=True)):
        taps, pixels = kernel.shape[axis], images.shape[axis + 1]
        out = (pixels - 1) * step + 1 + low + high - taps + 1
        phase = np.arange(step)
        first_tap = (low - phase) % step
        first_pixel = (phase + first_tap - low) // step
        start = first_pixel.min()
        length = (first_pixel - start + -(-(taps - first_tap) // step)).max()
        offset = np.arange(length)[:, None] - (first_pixel - start)
        tap = first_tap + step * offset  # [length, s]; taps out of range are zero
        columns.append(np.where((offset >= 0) & (tap < taps), tap, taps))
        count = -(-out // step)
        dense_padding.append((-start, count - 1 + length - 1 + start - (pixels - 1)))
        out_size.append((out, count))
    (rows, cols), (s_h, s_w) = columns, dilation
    # slices rather than a gather: no array constants, and cheap
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    padded = jnp.stack([padded[i] for i in rows.ravel()])
    padded = jnp.stack([padded[:, j] for j in cols.ravel()], axis=1)
    n, m, channels_in = rows.shape[0], cols.shape[0], kernel.shape[2]
    stacked = padded.reshape(n, s_h, m, s_w, channels_in, kernel.shape[3])
    stacked = stacked.transpose(0, 2, 4, 1, 3, 5)
    dense = lax.conv_general_dilated(
        _pad(images, dense_padding, (1, 1)),
        stacked.reshape(n, m, channels_in, -1),
        (1, 1),
        "VALID",
        dimension_numbers=_NHWC,
        **params,
    )
    (out_h, count_h), (out_w, count_w) = out_size
    out = dense.reshape(-1, count_h, count_w, s_h, s_w, kernel.shape[3])
    out = out.transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(-1, count_h * s_h, count_w * s_w, kernel.shape[3])
    return out[:, :out_h, :out_w]


def _members(array, window, strides):
    """For each offset in a window, its element in every window (no padding)."""
    ends = [n - w + 1 for n, w in zip(array.shape, window, strict=True)]
    return [
        lax.slice(array, o, [i + n for i, n in zip(o, ends, strict=True)], strides)
        for o in np.ndindex(*window)
    ]


def _pooling_gradient(
    source, operand, *, select_prim, window_dimensions, window_strides, padding, **_
):
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
    taken, shares = jnp.zeros(source.shape, bool), []
    for member in members:
        winner = (member == largest) & ~taken
        taken = taken | winner
        shares.append(jnp.where(winner, source, 0))
    return _interleave(shares, window, operand.shape)


def _pooling_tangent(
    tangents,
    operand,
    *,
    select_prim,
    window_dimensions,
    window_strides,
    padding,
    base_dilation,
    window_dilation,
):
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
    largest, chosen = values[0], changes[0]
    for value, change in zip(values[1:], changes[1:], strict=True):
        chosen = jnp.where(value > largest, change, chosen)
        largest = jnp.maximum(value, largest)
    return chosen


def _interleave(shares, window, shape):
    """Puts share[offset] back at every window's `offset`, zero where none reaches."""
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


def _weave(group, axis):
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
