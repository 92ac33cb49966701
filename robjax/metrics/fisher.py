"""Spectrum of the Fisher information of the input, sample by sample.

Notation: logits z(x) [K]; p = softmax z; J = ∂z/∂x (K×d, rows J_k);
S = diag(p) − ppᵀ; F = JᵀSJ = Σ_k p_k g_k g_kᵀ (d×d) with g_k = ∇_x log p_k(x);
A (K×d) with rows √p_k g_k, g_k = J_k − Σ_j p_j J_j, so that F = AᵀA.

F has rank K − 1 at most, and its non-zero eigenvalues are those of the K×K Gram
matrix AAᵀ. So K backward passes are enough, and no d×d matrix is built. With many
classes the Gram matrix is not built either: Lanczos iteration applies u ↦ A(Aᵀu), at
one backward and one forward-mode pass a step.

λ_max is the worst local growth of the KL divergence: the maximum over ‖δ‖₂ ≤ ε of
KL(p(x) ‖ p(x+δ)) is ½ε²λ_max to second order. It lies along Aᵀu/√λ_max, with u the
leading eigenvector of the Gram matrix.

**Confident networks.** With class t on top and a gap of s to the next logit, rows of A
are of the order of e^(−s/2), F of e^(−s) and ‖F‖² of e^(−2s), which in float32 is 0 for
s > 46. So A is computed without the factor e^(m/2), m = max_{k≠t} log p_k:

    J'_k = J_k − J_t        b = Σ_{k≠t} p_k e^(−m/2) J'_k
    A'_k = √p_k e^(−m/2) J'_k − √p_k b,  the first term of k = t being 0;  F = e^m A'ᵀA'

Source: Shi et al., arXiv 1906.02494, which builds F itself and tracks ‖F‖_F.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import lowering
from robjax.checks import check_count, check_logits
from robjax.metrics.finite import (
    check_measured,
    finite_samples,
    measure_again,
    summary,
    warn_not_finite,
    widened,
)
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import centre, finite_or_zero, map_batched, safe_norm
from robjax.samples import is_concrete
from robjax.traced import TracedCallable


class FisherSpectrum(NamedTuple):
    """Spectrum of F at each of B images, in nats per squared unit of the image.

    Attributes:
      eigenvalues: [B, K], or [B, lanczos_steps]; descending and ≥ 0.
      trace: [B] sum of the eigenvalues.
      frobenius: [B] ‖F‖_F.
      spectral: [B] λ_max.
      directions: [B, D, *S] unit eigenvectors of the D largest eigenvalues, the most
        adversarial directions to second order. Their signs are arbitrary; zero where
        the eigenvalue is 0 next to the largest.
      effective_rank: [B] trace² / ‖F‖_F²: 1 for one direction, at most K − 1; 0 where
        F = 0. Like `directions` it is known where F is below the smallest number.
    """

    eigenvalues: jax.Array
    trace: jax.Array
    frobenius: jax.Array
    spectral: jax.Array
    directions: jax.Array
    effective_rank: jax.Array

    def __repr__(self) -> str:
        """Medians over the images, NaN left out; not the arrays."""
        numbers = (self.spectral, self.trace, self.effective_rank)
        if not all(map(is_concrete, numbers)):
            return "FisherSpectrum(traced)"
        spectral, lost = summary(self.spectral, np.median)
        trace, rank = (summary(each, np.median)[0] for each in numbers[1:])
        return (
            f"FisherSpectrum({np.size(self.trace)} images{lost}, medians: λ_max "
            f"{spectral:.3g}, trace {trace:.3g}, effective rank {rank:.3g})"
        )

    @property
    def top_direction(self) -> jax.Array:
        """The most adversarial direction [B, *S], unit or zero."""
        return self.directions[:, 0]


class _Found(NamedTuple):
    """A spectrum, and whether probabilities and input gradients are finite, [B]."""

    spectrum: FisherSpectrum
    logits: jax.Array
    gradients: jax.Array


def fisher_spectrum(
    logits_fn: LogitsFn,
    x: jax.Array,
    *,
    directions: int = 1,
    lanczos_steps: int | None = None,
    batch_size: int = 64,
) -> FisherSpectrum:
    """Eigenvalues, norms and most adversarial directions of F at every image.

    There are two ways:

    * All K eigenvalues come from the Gram matrix. That costs K backward passes, and K·d
      numbers of memory per image.
    * With `lanczos_steps` the leading eigenvalues come from Lanczos iteration, at one
      backward and one forward-mode pass per step. `trace` and `frobenius` are then sums
      over these eigenvalues alone. They are lower bounds, which are exact from K − 1
      steps on unless eigenvalues repeat.

    A component of an input gradient that is not finite counts as 0. Images where that
    happens take the first way always. Half-precision images are measured in float32.

    Where the logits are the image itself, F = diag(p) − ppᵀ:

    >>> spectrum = fisher_spectrum(lambda x: x, jnp.zeros((1, 2)))
    >>> spectrum
    FisherSpectrum(1 images, medians: λ_max 0.5, trace 0.5, effective rank 1)
    >>> first, second = spectrum.top_direction[0]
    >>> bool(jnp.isclose(first, -second))
    True

    Args:
      logits_fn: images [B, *S] -> logits [B, K].
      x: [B, *S] images.
      directions: D, at least 1 and at most the number of eigenvalues.
      lanczos_steps: how many leading eigenvalues to compute by Lanczos iteration; 20 to
        50 do for K of 100 and more. None: all, from the Gram matrix.
      batch_size: images per chunk, bounds the memory.

    Returns:
      FisherSpectrum.

    Raises:
      ValueError: images not floating or not finite, a count below 1, or more directions
        than eigenvalues.

    Warns:
      UserWarning: the logits of some images are not finite, and their numbers NaN; or
        their input gradients are not.
    """
    x = check_measured(x)
    batch_size = check_count("batch_size", batch_size)
    if lanczos_steps is not None:
        check_count("lanczos_steps", lanczos_steps)
    directions = check_count("directions", directions)
    model = as_logits_fn(logits_fn)
    classes = count_classes(model, x)
    eigenvalues = lanczos_steps or classes
    if directions > eigenvalues:
        raise ValueError(f"directions must be at most {eigenvalues}, got {directions}")
    measure = functools.partial(_fisher_spectrum, model)
    spectrum, logits, gradients = measure(
        x, directions, lanczos_steps, batch_size, gram=lanczos_steps is None
    )
    if lanczos_steps is not None:
        spectrum = measure_again(
            spectrum,
            logits=logits,
            gradients=gradients,
            measure=lambda rows: (
                measure(x[rows], directions, lanczos_steps, 1, gram=True).spectrum
            ),
        )
    warn_not_finite(logits=logits, gradients=gradients)
    return spectrum


@functools.partial(jax.jit, static_argnums=(2, 3, 4), static_argnames="gram")
def _fisher_spectrum(
    logits_fn: TracedCallable,
    x: jax.Array,
    directions: int,
    steps: int | None,
    batch_size: int,
    *,
    gram: bool,
) -> _Found:
    def spectrum(x):
        if gram or steps is None:
            return _by_gram(logits_fn, x, directions, steps)
        return _by_lanczos(logits_fn, x, directions, steps)

    return map_batched(lowering.exact(spectrum, forward=False), x, batch_size)


def logits_and_jacobian(
    logits_fn: LogitsFn, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits [B, K] and ∂z/∂x [B, K, d]: one forward pass, K backward passes.

    Components that are not finite are returned as they are.

    >>> logits, jacobian = logits_and_jacobian(lambda x: 2 * x, jnp.ones((1, 2)))
    >>> jacobian.tolist()
    [[[2.0, 0.0], [0.0, 2.0]]]
    """
    batch_size = x.shape[0]
    logits, pullback = jax.vjp(logits_fn, x)
    check_logits(logits, batch_size)
    rows = jnp.eye(logits.shape[1], dtype=logits.dtype)

    def gradient_of_class(row):
        (gradient,) = pullback(jnp.broadcast_to(row[None], logits.shape))
        return gradient.reshape(batch_size, -1)

    return logits, jnp.moveaxis(jax.lax.map(gradient_of_class, rows), 0, 1)


def gram_rows(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    """A [B, K, d], F = AᵀA; differentiable in the weights of `logits_fn`.

    Components of ∂z/∂x that are not finite count as 0.

    >>> rows = gram_rows(lambda x: x, jnp.zeros((1, 2)))[0]
    >>> (rows.T @ rows).round(4).tolist()  # diag(p) − ppᵀ with p = (½, ½)
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    logits, jacobian = logits_and_jacobian(logits_fn, x)
    p, root = probabilities(logits)
    rows = centre(finite_or_zero(jacobian), p[:, :, None], axis=1)
    return root[:, :, None] * rows


def probabilities(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p and √p [B, K]; the gradient of √p stays finite where p underflows to 0.

    >>> p, root = probabilities(jnp.zeros((1, 4)))
    >>> p.tolist(), root.tolist()
    ([[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0.5, 0.5]])
    """
    log_p = jax.nn.log_softmax(logits)
    return jnp.exp(log_p), jnp.exp(log_p / 2)


class _Weights(NamedTuple):
    """What A′ is made of besides J, [B, K] each but `scale`; see the docstring above.

    Attributes:
      root: √p_k.
      ratio: √p_k e^(−m/2), 0 for k = t.
      share: p_k e^(−m/2), 0 for k = t.
      top: 1 for k = t, else 0.
      scale: [B] e^(m/2).
    """

    root: jax.Array
    ratio: jax.Array
    share: jax.Array
    top: jax.Array
    scale: jax.Array

    @classmethod
    def of(cls, logits: jax.Array) -> "_Weights":
        log_p = jax.nn.log_softmax(logits)
        top = jax.nn.one_hot(jnp.argmax(logits, 1), logits.shape[1], dtype=logits.dtype)
        log_rest = jnp.where(top > 0, -jnp.inf, log_p)
        lowest = jnp.finfo(logits.dtype).min  # classes that are ruled out have z = −∞
        m = jnp.maximum(jnp.max(log_rest, 1, keepdims=True), lowest)
        m = jax.lax.stop_gradient(m)
        return cls(
            root=jnp.exp(log_p / 2),
            ratio=jnp.exp((log_rest - m) / 2),
            share=jnp.exp(log_rest - m / 2),
            top=top,
            scale=jnp.exp(m[:, 0] / 2),
        )


def _widened(logits_fn: TracedCallable, x: jax.Array) -> jax.Array:
    return widened(check_logits(logits_fn(x), x.shape[0]))


def _by_gram(
    logits_fn: TracedCallable, x: jax.Array, count: int, steps: int | None
) -> _Found:
    """All eigenvalues, or `steps`, and `count` directions from the Gram matrix."""
    logits, raw = logits_and_jacobian(functools.partial(_widened, logits_fn), x)
    jacobian = finite_or_zero(raw)
    weights = _Weights.of(logits)
    top = jnp.argmax(weights.top, 1)
    jacobian = jacobian - jnp.take_along_axis(jacobian, top[:, None, None], 1)
    mean = jnp.einsum("bk,bkd->bd", weights.share, jacobian, precision="highest")
    rows = (
        weights.ratio[:, :, None] * jacobian - weights.root[:, :, None] * mean[:, None]
    )
    rows, largest = _scaled(rows, (1, 2))
    gram = jnp.einsum("bkd,bld->bkl", rows, rows, precision="highest")
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    eigenvalues = eigenvalues[:, ::-1]  # eigh's order is rising
    top_vectors = vectors[:, :, ::-1][:, :, :count]
    along = jnp.einsum("bkd,bkc->bcd", rows, top_vectors, precision="highest")
    trace = jnp.sum(rows * rows, (1, 2))
    frobenius = safe_norm(gram, (1, 2))
    if steps is not None:
        eigenvalues = _resized(jnp.maximum(eigenvalues, 0), steps)
        along = _resized(along, count)
        trace = jnp.sum(eigenvalues, 1)
        frobenius = _length(eigenvalues, 1)
    scale = largest * weights.scale
    spectrum = _result(eigenvalues, trace, frobenius, along, x, scale)
    return _Found(spectrum, finite_samples(weights.root), finite_samples(raw))


def _resized(values: jax.Array, size: int) -> jax.Array:
    """The first `size` entries along the second axis, with zeros for those missing."""
    missing = max(size - values.shape[1], 0)
    padding = [(0, missing if axis == 1 else 0) for axis in range(values.ndim)]
    return jnp.pad(values, padding)[:, :size]


def _scaled(values: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Values divided by the largest of an image, lest their squares be 0; and that."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(values), axes))
    divisor = jnp.where(largest > 0, largest, 1)
    return values / jnp.expand_dims(divisor, axes), largest


def _length(values: jax.Array, axis: int) -> jax.Array:
    """The Euclidean norm, also where the squares would be 0."""
    values, largest = _scaled(values, (axis,))
    return largest * safe_norm(values, axis)


def _by_lanczos(
    logits_fn: TracedCallable, x: jax.Array, count: int, steps: int
) -> _Found:
    """The leading `steps` eigenvalues and `count` directions by Lanczos iteration."""
    logits, push = jax.linearize(functools.partial(_widened, logits_fn), x)
    pull = jax.linear_transpose(push, x)
    weights = _Weights.of(logits)
    root, ratio, share, top, scale = weights

    def to_image(u):  # A′ᵀu
        inner = ratio * u - share * jnp.sum(root * u, 1, keepdims=True)
        (gradient,) = pull(inner - top * jnp.sum(inner, 1, keepdims=True))
        return gradient

    def apply_gram(u):  # A′(A′ᵀu)
        change = push(to_image(u))
        change = change - jnp.sum(top * change, 1, keepdims=True)
        return ratio * change - root * jnp.sum(share * change, 1, keepdims=True)

    basis, diagonal, off_diagonal = _lanczos(apply_gram, root, steps)
    ritz, vectors = jnp.linalg.eigh(_tridiagonal(diagonal, off_diagonal))
    leading = jnp.einsum("mbk,bmc->cbk", basis, vectors[:, :, ::-1][:, :, :count])
    ritz = jnp.maximum(ritz[:, ::-1], 0)
    along = jax.lax.map(to_image, leading).reshape(count, x.shape[0], -1)
    along = jnp.moveaxis(along, 0, 1)
    trace = jnp.sum(ritz, 1)
    spectrum = _result(ritz, trace, _length(ritz, 1), along, x, scale)
    # a gradient that is not finite leaves no number that is
    return _Found(spectrum, finite_samples(root), jnp.isfinite(trace))


def _result(
    eigenvalues: jax.Array,
    trace: jax.Array,
    frobenius: jax.Array,
    along: jax.Array,
    x: jax.Array,
    scale: jax.Array,
) -> FisherSpectrum:
    """The spectrum of scale² A″ᵀA″.

    Args:
      eigenvalues: [B, n] of A″A″ᵀ, falling.
      trace: [B].
      frobenius: [B].
      along: [B, D, d] the leading A″ᵀu.
      x: [B, *S] images.
      scale: [B].
    """
    eigenvalues = jnp.maximum(eigenvalues, 0)
    length = _length(along, 2)[:, :, None]
    # ‖A″ᵀu‖ = √λ; below this it is rounding
    rounding = 10 * eigenvalues.shape[1] * jnp.finfo(along.dtype).eps
    real = length > rounding * jnp.sqrt(eigenvalues[:, :1])[:, :, None]
    directions = jnp.where(real, along / jnp.where(real, length, 1), 0)
    ratio = trace / jnp.where(frobenius > 0, frobenius, 1)
    eigenvalues = eigenvalues * scale[:, None] * scale[:, None]
    return FisherSpectrum(
        eigenvalues=eigenvalues,
        trace=trace * scale * scale,
        frobenius=frobenius * scale * scale,
        spectral=eigenvalues[:, 0],
        directions=directions.reshape(*along.shape[:2], *x.shape[1:]),
        effective_rank=ratio * ratio,
    )


def _lanczos(
    apply: Callable[[jax.Array], jax.Array], null_vector: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lanczos with full reorthogonalisation, every sample on its own.

    An exhausted Krylov space continues with zero vectors, which add zero eigenvalues.

    Args:
      apply: the symmetric matrix of each sample times a vector, [B, K] -> [B, K].
      null_vector: [B, K] a unit vector of the kernel, which is kept out of the basis.
      steps: n.

    Returns:
      The basis [n, B, K], and of the tridiagonal matrix in it the diagonal [B, n] and
      the off-diagonal [B, n − 1].
    """
    batch_size, classes = null_vector.shape
    # A fixed start: generic, so that no eigenvector is orthogonal to it by symmetry.
    start = jax.random.normal(jax.random.key(0), (classes,), null_vector.dtype)

    def orthogonal(w, basis):
        for _ in range(2):  # once loses orthogonality to rounding
            w = w - null_vector * jnp.sum(null_vector * w, 1, keepdims=True)
            overlap = jnp.sum(basis * w[None], 2, keepdims=True)
            w = w - jnp.sum(basis * overlap, 0)
        return w

    def unit(w, smallest):
        length = _length(w, 1)[:, None]
        alive = length > smallest
        return jnp.where(alive, w / jnp.where(alive, length, 1), 0), alive * length

    def step(carry, index):
        basis, u, scale = carry
        basis = basis.at[index].set(u)
        w = apply(u)
        alpha = jnp.sum(u * w, 1)
        scale = jnp.maximum(scale, _length(w, 1)[:, None])
        rounding = 10 * jnp.finfo(w.dtype).eps * scale
        u, beta = unit(orthogonal(w, basis), rounding)
        return (basis, u, scale), (alpha, beta[:, 0])

    basis = jnp.zeros((steps, batch_size, classes), null_vector.dtype)
    start = orthogonal(jnp.broadcast_to(start[None], null_vector.shape), basis)
    u, _ = unit(start, 0)
    scale = jnp.zeros((batch_size, 1), null_vector.dtype)
    (basis, _, _), (alpha, beta) = jax.lax.scan(
        step, (basis, u, scale), jnp.arange(steps)
    )
    return basis, alpha.T, beta[:-1].T


def _tridiagonal(diagonal: jax.Array, off_diagonal: jax.Array) -> jax.Array:
    """[B, n] and [B, n − 1] -> [B, n, n]."""

    def matrix(d, e):
        return jnp.diag(d) + jnp.diag(e, 1) + jnp.diag(e, -1)

    return jax.vmap(matrix)(diagonal, off_diagonal)
