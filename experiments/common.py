"""What every experiment needs: verdicts on claims, computed from seeds, and a report.

A claim is judged on one number for each seed. It *held* if the one-sided 95 %
confidence bound of the mean (Student's t over the seeds) is beyond the threshold
that the claim names, *did not hold* otherwise, and is *not testable* with fewer than
two seeds or where a number is missing.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from robjax.checks import check_count
from robjax.reporting import figures, tables
from robjax.runs import files, provenance

HELD = "held"
FAILED = "did not hold"
UNTESTABLE = "not testable with these settings"


VERDICTS = (
    "A claim held if the one-sided 95 % confidence bound of the mean over seeds is "
    "beyond its threshold (0 for a direction). Claims without ± are checks of every "
    "model or seed."
)


class Claim(NamedTuple):
    """A statement, what was measured for it (mean ± s.e.) and the verdict."""

    statement: str
    measured: str
    verdict: str


def is_above(values: Any, threshold: float, confidence: float = 0.95) -> str:
    """Verdict on "the mean over seeds [n] lies above the threshold"."""
    values = np.asarray(values, float)
    if values.size < 2 or not np.isfinite(values).all():
        return UNTESTABLE
    quantile = scipy.stats.t.ppf(confidence, values.size - 1)
    bound = values.mean() - quantile * values.std(ddof=1) / np.sqrt(values.size)
    return HELD if bound > threshold else FAILED


def is_below(values: Any, threshold: float, confidence: float = 0.95) -> str:
    """Verdict on "the mean over seeds [n] lies below the threshold"."""
    return is_above(-np.asarray(values, float), -threshold, confidence)


def is_true(fact: Any) -> str:
    """Verdict on what is checked without a mean: of every model, or of every seed."""
    return HELD if fact else FAILED


def rank_correlation(x: Any, y: Any) -> np.ndarray:
    """Spearman's ρ of x and y over epochs, for each seed.

    Args:
        x: [seeds, epochs].
        y: [seeds, epochs].

    Returns:
        ρ [seeds]; NaN for fewer than four epochs or a constant series.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    return np.array([_spearman(a, b) for a, b in zip(x, y, strict=True)])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    if a.size < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    ranks = scipy.stats.rankdata(a), scipy.stats.rankdata(b)
    return float(np.corrcoef(*ranks)[0, 1])


SMOKE = "Smoke run: tiny sets, few steps, small networks; the numbers mean nothing. "


def results_of(arguments: Any) -> Path:
    """Where results go; smoke runs keep away from what was measured in earnest."""
    return arguments.results / "smoke" if arguments.smoke else arguments.results


def announce(question: str, claim: str, *, minutes: float, seeds: int) -> None:
    """Prints what an experiment is about and what it costs, before it begins.

    Raises:
        ValueError: fewer than one seed.
    """
    check_count("seeds", seeds)
    cost = f"Cost: about {minutes:g} minutes of CPU time."
    print(f"{question}\nClaim: {claim}\n{cost}", flush=True)


def write_report(
    folder: Path,
    *,
    question: str,
    claim: str,
    setting: str,
    claims: Sequence[Claim],
    drawn: Mapping[str, Figure],
    rest: str = "",
    record: Mapping[str, Any] | None = None,
) -> None:
    """Writes summary.md, claims.json and figures/ (PNG and SVG), prints the summary.

    Args:
        folder: is made.
        question: what the experiment is about, one line.
        claim: what the paper says, in words.
        setting: data, networks and seeds, one line.
        claims: with their verdicts.
        drawn: file name -> figure.
        rest: further Markdown, above the figures.
        record: what claims.json holds besides.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    images = [
        figures.save(figure, folder / "figures" / name)
        for name, figure in drawn.items()
    ]
    verdicts = [claim._asdict() for claim in claims]
    everything = {
        "question": question,
        "command": "python " + shlex.join(sys.orig_argv[1:]),
        "claims": verdicts,
        "versions": provenance.versions(),
        **(record or {}),
    }
    files.save_json(folder / "claims.json", everything)
    header = ["claim", "measured, mean ± s.e. over seeds", "verdict"]
    pictures = "\n".join(f"![{png.stem}](figures/{png.name})\n" for png, _ in images)
    files.save_text(
        folder / "summary.md",
        f"# {question}\n\nClaim: {claim}\n\n{setting}\n\n"
        f"{tables.markdown(header, claims)}\n{VERDICTS}\n\n{rest}\n{pictures}",
    )
    print((folder / "summary.md").read_text())
    print(f"Figures: {folder / 'figures'}")


def course(values: np.ndarray, unit: str = "nats") -> str:
    """First, last and highest value of a curve [seeds, epochs + 1] in words."""
    first, peak, last = values[:, 0], values.max(axis=1), values[:, -1]
    return (
        f"from {tables.plus_minus(first)} to {tables.plus_minus(last, unit=unit)}, "
        f"peak {tables.plus_minus(peak)}"
    )


def parts_figure(followed: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """The parts of the metric over training above the accuracies, side by side."""
    renamed = {"total": "metric", "accuracy": "test_accuracy"}
    parts = {
        name: {**curves, **{new: curves[old] for new, old in renamed.items()}}
        for name, curves in followed.items()
    }
    return figures.metric_parts(parts, title=title)
