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

Source: Shi et al., arXiv 1906.02494, which builds F itself and tracks ‖F‖_F.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import lowering
from robjax.checks import check_count, check_images, check_logits
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import centre, map_batched, safe_norm
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
        the eigenvalue is.
    """

    eigenvalues: jax.Array
    trace: jax.Array
    frobenius: jax.Array
    spectral: jax.Array
    directions: jax.Array

    def __repr__(self) -> str:
        """Medians over the images; not the arrays."""
        if not all(map(is_concrete, (self.spectral, self.trace, self.frobenius))):
            return "FisherSpectrum(traced)"
        spectral = np.median(np.asarray(self.spectral))
        trace = np.median(np.asarray(self.trace))
        rank = np.median(np.asarray(self.effective_rank))
        return (
            f"FisherSpectrum({np.size(self.trace)} images, medians: λ_max "
            f"{spectral:.3g}, trace {trace:.3g}, effective rank {rank:.3g})"
        )

    @property
    def top_direction(self) -> jax.Array:
        """The most adversarial direction [B, *S], unit or zero."""
        return self.directions[:, 0]

    @property
    def effective_rank(self) -> jax.Array:
        """trace² / ‖F‖_F² [B]: 1 for one direction, at most K − 1; 0 where F = 0."""
        ratio = self.trace / jnp.where(self.frobenius > 0, self.frobenius, 1)
        return ratio * ratio


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
    """
    x = check_images(x)
    batch_size = check_count("batch_size", batch_size)
    if lanczos_steps is not None:
        check_count("lanczos_steps", lanczos_steps)
    directions = check_count("directions", directions)
    model = as_logits_fn(logits_fn)
    eigenvalues = lanczos_steps or count_classes(model, x)
    if directions > eigenvalues:
        raise ValueError(f"directions must be at most {eigenvalues}, got {directions}")
    return _fisher_spectrum(model, x, directions, lanczos_steps, batch_size)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fisher_spectrum(
    logits_fn: TracedCallable,
    x: jax.Array,
    directions: int,
    steps: int | None,
    batch_size: int,
) -> FisherSpectrum:
    def spectrum(x):
        if steps is None:
            return _by_gram(logits_fn, x, directions)
        return _by_lanczos(logits_fn, x, directions, steps)

    return map_batched(lowering.fast(spectrum), x, batch_size)


def logits_and_jacobian(
    logits_fn: LogitsFn, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits [B, K] and ∂z/∂x [B, K, d]: one forward pass, K backward passes.

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

    >>> rows = gram_rows(lambda x: x, jnp.zeros((1, 2)))[0]
    >>> (rows.T @ rows).round(4).tolist()  # diag(p) − ppᵀ with p = (½, ½)
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    logits, jacobian = logits_and_jacobian(logits_fn, x)
    p, root = probabilities(logits)
    return root[:, :, None] * centre(jacobian, p[:, :, None], axis=1)


def probabilities(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p and √p [B, K]; the gradient of √p stays finite where p underflows to 0.

    >>> p, root = probabilities(jnp.zeros((1, 4)))
    >>> p.tolist(), root.tolist()
    ([[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0.5, 0.5]])
    """
    log_p = jax.nn.log_softmax(logits)
    return jnp.exp(log_p), jnp.exp(log_p / 2)


def _by_gram(logits_fn: TracedCallable, x: jax.Array, count: int) -> FisherSpectrum:
    """All eigenvalues and `count` directions from the Gram matrix."""
    rows = gram_rows(logits_fn, x)
    gram = jnp.einsum("bkd,bld->bkl", rows, rows, precision="highest")
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    top = vectors[:, :, ::-1][:, :, :count]  # eigh's order is rising
    along = jnp.einsum("bkd,bkc->bcd", rows, top, precision="highest")
    trace = jnp.sum(rows * rows, (1, 2))
    frobenius = safe_norm(gram, (1, 2))
    return _result(eigenvalues[:, ::-1], trace, frobenius, along, x)


def _result(
    eigenvalues: jax.Array,
    trace: jax.Array,
    frobenius: jax.Array,
    along: jax.Array,
    x: jax.Array,
) -> FisherSpectrum:
    """The spectrum from falling eigenvalues [B, n] and the leading Aᵀu [B, D, d]."""
    eigenvalues = jnp.maximum(eigenvalues, 0)
    length = safe_norm(along, 2)[:, :, None]
    # ‖Aᵀu‖ = √λ; below this it is rounding
    rounding = 10 * eigenvalues.shape[1] * jnp.finfo(along.dtype).eps
    real = length > rounding * jnp.sqrt(eigenvalues[:, :1])[:, :, None]
    directions = jnp.where(real, along / jnp.where(real, length, 1), 0)
    directions = directions.reshape(*along.shape[:2], *x.shape[1:])
    return FisherSpectrum(
        eigenvalues=eigenvalues,
        trace=trace,
        frobenius=frobenius,
        spectral=eigenvalues[:, 0],
        directions=directions,
    )


def _by_lanczos(
    logits_fn: TracedCallable, x: jax.Array, count: int, steps: int
) -> FisherSpectrum:
    """The leading `steps` eigenvalues and `count` directions by Lanczos iteration."""
    logits, push = jax.linearize(logits_fn, x)
    check_logits(logits, x.shape[0])
    pull = jax.linear_transpose(push, x)
    p = jax.nn.softmax(logits)
    root = jnp.sqrt(p)

    def to_image(u):  # Aᵀu = Jᵀ (√p u − p ⟨√p, u⟩)
        (gradient,) = pull(root * (u - root * jnp.sum(root * u, 1, keepdims=True)))
        return gradient

    def apply_gram(u):  # A(Aᵀu)
        return root * centre(push(to_image(u)), p)

    basis, diagonal, off_diagonal = _lanczos(apply_gram, root, steps)
    ritz, vectors = jnp.linalg.eigh(_tridiagonal(diagonal, off_diagonal))
    top = jnp.einsum("mbk,bmc->cbk", basis, vectors[:, :, ::-1][:, :, :count])
    ritz = jnp.maximum(ritz[:, ::-1], 0)
    along = jax.lax.map(to_image, top).reshape(count, x.shape[0], -1)
    along = jnp.moveaxis(along, 0, 1)
    return _result(ritz, jnp.sum(ritz, 1), safe_norm(ritz, 1), along, x)


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
        length = safe_norm(w, 1)[:, None]
        alive = length > smallest
        return jnp.where(alive, w / jnp.where(alive, length, 1), 0), alive * length

    def step(carry, index):
        basis, u, scale = carry
        basis = basis.at[index].set(u)
        w = apply(u)
        alpha = jnp.sum(u * w, 1)
        scale = jnp.maximum(scale, safe_norm(w, 1)[:, None])
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
