"""Robust accuracy from both sides: what is proven below, what is attacked above."""

from typing import NamedTuple, Protocol

import numpy as np
from jax.typing import ArrayLike

from robjax.evaluation.tables import Estimate, proportion
from robjax.samples import is_concrete


class Attacked(Protocol):
    """What `bracket` reads of an `Evaluation`: robust [N] bool."""

    @property
    def robust(self) -> np.ndarray: ...


class Certified(Protocol):
    """What `bracket` reads of a certificate: proven [N] bool."""

    @property
    def proven(self) -> ArrayLike: ...


class Bracket(NamedTuple):
    """What is known of N images; print it.

    Attributes:
      proven: [N] bool, no image of the ball is misclassified.
      broken: [N] bool, some image of the ball is, the clean one perhaps.
    """

    proven: np.ndarray
    broken: np.ndarray

    @property
    def open(self) -> np.ndarray:
        """[N] bool, neither proven nor broken."""
        return ~(self.proven | self.broken)

    @property
    def lower(self) -> Estimate:
        """The share of images that are proven robust."""
        return proportion(self.proven)

    @property
    def upper(self) -> Estimate:
        """The share of images that no attack broke."""
        return proportion(~self.broken)

    def __repr__(self) -> str:
        if not is_concrete(self.proven):
            return "Bracket(traced)"
        return (
            f"robust accuracy between {100 * self.lower.mean:.1f} % (proven) and "
            f"{100 * self.upper.mean:.1f} % (attacked), {np.count_nonzero(self.open)} "
            f"of {len(self.proven)} images open"
        )


def check_certificate(certificate: object) -> None:
    """Raises ValueError if something does not say what is proven.

    >>> check_certificate(Bracket(proven=np.ones(2, bool), broken=np.zeros(2, bool)))
    """
    if not hasattr(certificate, "proven"):
        raise ValueError(f"certificate must be a Certificate, got {certificate!r}")


def bracket(evaluation: Attacked, certificate: Certified) -> Bracket:
    """Puts an evaluation and a certificate of the same images and ball together.

    Neither says for which model, ball or images it was made. So those of different ones
    are not noticed, unless they contradict each other.

    >>> class Found(NamedTuple):
    ...     robust: np.ndarray
    ...     proven: np.ndarray
    >>> found = Found(np.array([True, True, False]), np.array([True, False, False]))
    >>> bracket(found, found)
    robust accuracy between 33.3 % (proven) and 66.7 % (attacked), 1 of 3 images open

    Args:
      evaluation: an `Evaluation`, or what has its `robust`.
      certificate: a `robjax.certification.Certificate`, or what has its `proven`.

    Raises:
      ValueError: they are of different numbers of images, or an image is both proven
        and broken: then one of the two is of another model, ball or data set, or wrong.
    """
    if not hasattr(evaluation, "robust"):
        raise ValueError(f"evaluation must be an Evaluation, got {evaluation!r}")
    check_certificate(certificate)
    robust = np.asarray(evaluation.robust)
    proven = np.asarray(certificate.proven)
    for name, array in (("evaluation.robust", robust), ("certificate.proven", proven)):
        if array.dtype != bool or array.ndim != 1:
            raise ValueError(
                f"{name} must be [N] bool, got {array.dtype} of shape {array.shape}"
            )
    if robust.shape != proven.shape:
        raise ValueError(
            f"evaluation and certificate must be of the same images, got "
            f"{len(robust)} and {len(proven)}"
        )
    both = np.flatnonzero(proven & ~robust)
    if both.size:
        raise ValueError(
            f"evaluation and certificate contradict each other: images {both.tolist()} "
            "are proven and broken; check that model, ball, bounds and data are the "
            "same for both"
        )
    return Bracket(proven, ~robust)
