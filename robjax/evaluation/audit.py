"""The answer of an expensive suite from a cheap one and a random sample.

A cheap suite leaves M of N images robust, of which an expensive one would break K. On a
random sample of n of the M, it breaks k. Then K is in the interval

    { K : P(k | K) > α E_K'[P(k | K')] },   K' ~ BetaBinomial(M; a, b)

where P is the hypergeometric law. The expectation is BetaBinomial(k; n, a, b). The
ratio of the two sides is a martingale under the true K, so the interval holds it with
probability 1 − α for all n together, whenever the sampling stops: the prior-posterior
ratio of Waudby-Smith and Ramdas (NeurIPS 2020, arXiv 2006.04347, section 2). The prior
only decides how narrow the interval is; a = 1, b = 300 expects a cheap suite that
misses one in 300.

A random sample sees none of K images with probability about (1 − n/M)^K. So it cannot
exclude K at level α with fewer than n/M = 1 − α^(1/K), whatever the law of the
interval: of N = 1000 images two points are 20, and excluding 21 takes 13 % of M, here
14 %. Proven images need no audit, and leave M smaller.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from robjax.boxes import boxes_of
from robjax.checks import Bounds, check_count, check_flags, check_labels, check_number
from robjax.data import Dataset
from robjax.evaluation.arguments import check_attacks, check_data
from robjax.evaluation.attack import Attack
from robjax.evaluation.batches import to_images
from robjax.evaluation.brackets import Certified, bracket, check_certificate
from robjax.evaluation.evaluate import evaluate
from robjax.evaluation.sharding import Device
from robjax.evaluation.tables import Estimate, Evaluation
from robjax.model import LogitsFn
from robjax.runs.files import PathLike, as_path
from robjax.samples import sample_keys

_PRIOR = 1.0, 300.0
_ORDER = 2**31 - 1  # what the key of the order is folded with; no image has this number


def broken_among(
    survivors: int, sampled: int, broken: int, *, confidence: float = 0.95
) -> tuple[int, int]:
    """How many of M survivors would break, if k of n sampled ones did: an interval.

    It holds for all n together, so the sampling may stop when it is narrow enough.

    >>> broken_among(1000, 0, 0)
    (0, 1000)
    >>> broken_among(1000, 1000, 7)
    (7, 7)

    Args:
      survivors: M.
      sampled: n, drawn without replacement.
      broken: k.
      confidence: 1 − α.

    Returns:
      The lowest and the highest K.

    Raises:
      ValueError: not 0 ≤ k ≤ n ≤ M, or `confidence` is outside (0, 1).
    """
    check_count("survivors", survivors, minimum=0)
    check_count("sampled", sampled, minimum=0)
    check_count("broken", broken, minimum=0)
    if not 0 <= broken <= sampled <= survivors:
        raise ValueError(
            "broken, sampled and survivors must rise from 0, got "
            f"{broken}, {sampled}, {survivors}"
        )
    _check_share("confidence", confidence)
    totals = np.arange(broken, survivors - sampled + broken + 1)
    kept = sampled - broken
    likelihood = (  # hypergeometric
        _log_choose(totals, broken)
        + _log_choose(survivors - totals, kept)
        - _log_choose(survivors, sampled)
    )
    a, b = _PRIOR
    average = _log_choose(sampled, broken)  # beta-binomial
    average += special.betaln(broken + a, kept + b) - special.betaln(a, b)
    inside = totals[likelihood > np.log1p(-confidence) + average]
    return int(inside[0]), int(inside[-1])


def _log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
    """log of n choose k."""
    return -special.betaln(n - k + 1, k + 1) - np.log(n + 1)


class Audit(NamedTuple):
    """What is known of N images; print it.

    Attributes:
      cheap: the evaluation by the cheap suite, on all images.
      proven: [N] bool, the certificate says that nothing breaks the image.
      audited: [N] bool, the expensive suite saw the image.
      robust: [N] bool, nothing that saw the image broke it.
      low, high: the robust accuracy under both suites, with `confidence`.
      confidence: that of the interval.
      trusted: False: the cheap suite missed too much, or has warnings; all its
        survivors were audited then, as far as `most` allowed.
      warnings: of both suites, in words.
    """

    cheap: Evaluation
    proven: np.ndarray
    audited: np.ndarray
    robust: np.ndarray
    low: float
    high: float
    confidence: float
    trusted: bool
    warnings: tuple[str, ...]

    @property
    def robust_accuracy(self) -> Estimate:
        """Robust accuracy under both suites on these N images.

        Its error is that of the sample of survivors: 0 if all were audited. It is
        unbiased for a sample of a fixed size; that the size depends on what was found
        the interval allows for, this number does not.
        """
        total, left, sampled, _ = self._counts()
        proven = int(self.proven.sum())
        if not sampled:
            return Estimate((proven + left) / total, float("nan") if left else 0.0)
        share = float(np.mean(self.robust[self.audited]))
        unseen = (left - sampled) / max(left - 1, 1)
        error = np.sqrt(share * (1 - share) / sampled * unseen)
        return Estimate((proven + left * share) / total, float(left / total * error))

    def _counts(self) -> tuple[int, int, int, int]:
        """N, M (survivors that are not proven), n and k."""
        left = np.count_nonzero(self.cheap.robust & ~self.proven)
        broken = np.count_nonzero(self.audited & ~self.robust)
        return len(self.robust), int(left), int(self.audited.sum()), int(broken)

    def __repr__(self) -> str:
        total, left, sampled, broken = self._counts()
        proven = f", {self.proven.sum()} more proven" if self.proven.any() else ""
        lines = [
            f"robust accuracy {100 * self.robust_accuracy.mean:.2f} %, between "
            f"{100 * self.low:.2f} and {100 * self.high:.2f} % "
            f"({100 * self.confidence:g} %), on {total} images",
            f"  the cheap suite leaves {left}{proven}; of {sampled} of them, audited, "
            f"{broken} fell",
        ]
        if not self.trusted:
            lines.append(
                "  the cheap suite is not to be trusted on this model: it missed more "
                "than tolerated, or has warnings"
            )
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])


def audited(
    logits_fn: LogitsFn,
    data: Dataset | tuple[ArrayLike, ArrayLike | Sequence[int]],
    cheap: Mapping[str, Attack],
    full: Mapping[str, Attack],
    *,
    key: jax.Array,
    half_width: float = 0.01,
    confidence: float = 0.95,
    tolerated: float = 0.02,
    most: int | None = None,
    certificate: Certified | None = None,
    batch_size: int | None = None,
    bounds: Bounds = (0.0, 1.0),
    eot: int | None = None,
    devices: Sequence[Device] | None = None,
    run_dir: PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Audit:
    """Robust accuracy under an expensive suite, at little more than a cheap one's cost.

    All images go through `cheap`, a random sample of its survivors through `full`: as
    many as make the interval narrow enough if none of them falls, then again as many as
    what fell calls for. An audited image gets the verdict that `evaluate` with `full`,
    the same key and ``cascade=True`` would give it.

    If `cheap` has warnings, or is shown to miss more than `tolerated`, it is not to be
    trusted, and all survivors are audited.

    >>> import functools
    >>> from robjax import attacks
    >>> from robjax.balls import Linf
    >>> x = np.array([[0.2, 0.4], [0.9, 0.1]], np.float32)
    >>> pgd = {"PGD": functools.partial(attacks.pgd, ball=Linf(0.15), steps=5)}
    >>> audited(
    ...     lambda x: 10 * x, (x, np.array([1, 0])), pgd, pgd, key=jax.random.key(0)
    ... )
    robust accuracy 50.00 %, between 50.00 and 50.00 % (95 %), on 2 images
      the cheap suite leaves 1; of 1 of them, audited, 0 fell

    Args:
      logits_fn, data: as in `evaluate`.
      cheap, full: name -> attack, as in `evaluate`; ε is a number.
      key: one key.
      half_width: of the interval of robust accuracy, at which the sampling ends; 0:
        all survivors are audited.
      confidence: of the interval, for these images; that they are a sample of others is
        not in it.
      tolerated: share of all N images that `cheap` may miss.
      most: survivors to audit at most; None: as many as it takes.
      certificate: of the same model, images and ball; what it proves is not audited.
      batch_size, bounds, eot, devices, progress: as in `evaluate`.
      run_dir, resume: as in `evaluate`; each block is a folder in `run_dir`.

    Raises:
      ValueError: an argument is malformed, `run_dir` holds another run, or `cheap`
        broke what is proven.
    """
    check_flags(resume=resume, progress=progress)
    if certificate is not None:
        check_certificate(certificate)
    check_attacks(cheap, name="cheap")
    check_attacks(full, name="full")
    _check_share("confidence", confidence)
    check_number("half_width", half_width, minimum=0)
    check_number("tolerated", tolerated, minimum=0)
    most = None if most is None else check_count("most", most, minimum=0)
    images, labels, scale, bounds = check_data(data, bounds)
    labels = np.asarray(check_labels(labels, len(images), name="data labels"))
    keys = sample_keys(key, len(images))
    runs = None if run_dir is None else as_path(run_dir, "run_dir")

    def run(suite: Mapping[str, Attack], rows: np.ndarray, part: str) -> Evaluation:
        folder = None if runs is None else runs / part
        return evaluate(
            logits_fn,
            (to_images(images[rows], scale), labels[rows]),
            suite,
            key=keys[rows],
            cascade=True,
            batch_size=batch_size,
            bounds=boxes_of(bounds, rows),
            eot=eot,
            devices=devices,
            run_dir=folder,
            resume=folder is not None and resume and (folder / "run.json").exists(),
            progress=progress,
        )

    found = _begun(run(cheap, np.arange(len(images)), "cheap"), certificate, confidence)
    survivors = np.flatnonzero(found.robust & ~found.proven)
    order = jax.random.permutation(jax.random.fold_in(key, _ORDER), len(survivors))
    survivors = survivors[np.asarray(order)]
    limit = len(survivors) if most is None else min(most, len(survivors))
    done = 0
    while (stop := _enough(found, half_width, limit)) > done:
        rows = np.sort(survivors[done:stop])
        found = _gone_on(found, rows, run(full, rows, f"full-{done:07d}"), tolerated)
        done = stop
    return found


def _begun(
    table: Evaluation, certificate: Certified | None, confidence: float
) -> Audit:
    """What the cheap suite and the certificate say, before anything is audited."""
    robust = table.robust
    proven = np.zeros(len(robust), bool)
    if certificate is not None:
        proven = bracket(table, certificate).proven
    return Audit(
        cheap=table,
        proven=proven,
        audited=np.zeros(len(robust), bool),
        robust=robust,
        low=float(np.mean(proven)),
        high=float(np.mean(robust)),
        confidence=confidence,
        trusted=not table.warnings,
        warnings=table.warnings,
    )


def _enough(found: Audit, half_width: float, limit: int) -> int:
    """How many audited survivors are enough if no more fall, `limit` at most."""
    total, left, sampled, broken = found._counts()
    if not found.trusted or half_width == 0:
        return limit

    def narrow(sampled: int) -> bool:
        low, high = broken_among(left, sampled, broken, confidence=found.confidence)
        return high - low <= 2 * half_width * total

    return bisect.bisect_left(range(limit), True, lo=sampled, key=narrow)


def _gone_on(
    found: Audit, rows: np.ndarray, block: Evaluation, tolerated: float
) -> Audit:
    """What is known with one more block of survivors."""
    audited, robust = found.audited.copy(), found.robust.copy()
    audited[rows], robust[rows] = True, block.robust
    found = found._replace(audited=audited, robust=robust)
    total, left, sampled, broken = found._counts()
    low, high = broken_among(left, sampled, broken, confidence=found.confidence)
    kept = left + int(found.proven.sum())
    new = tuple(text for text in block.warnings if text not in found.warnings)
    return found._replace(
        low=(kept - high) / total,
        high=(kept - low) / total,
        trusted=found.trusted and low / total <= tolerated,
        warnings=found.warnings + new,
    )


def _check_share(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
