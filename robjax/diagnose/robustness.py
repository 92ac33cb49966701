"""Lenses on whether a model is robust: attacks, masking, the radius, distances.

lens(subject, budget, found) -> Lens
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robjax import attacks, certification, evaluation, masking
from robjax.balls import Ball, with_radius
from robjax.diagnose.results import Lens, Number, resampled, share
from robjax.diagnose.subject import Budget, Found, Subject, left_out_for_noise
from robjax.metrics import strong_robustness

CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Radii of the curve, as shares of ε."""
_CHEAP_PROOFS = ("ibp", "crown_ibp")
SAMPLES = 24
"""Images that a report shows."""


def attacked(subject: Subject, budget: Budget, found: Found) -> Lens:
    """Accuracy, and robust accuracy under AutoAttack."""
    x, y = subject.x[: budget.attacked], subject.y[: budget.attacked]
    version = "standard" if subject.eot is None else "rand"
    suite = attacks.suite(version, subject.ball, eot=subject.eot)
    table = evaluation.evaluate(
        subject.logits_fn,
        (x, y),
        suite,
        key=subject.key,
        cascade=True,
        bounds=subject.bounds,
        eot=subject.eot,
        keep_images=True,
        run_dir=subject.folder,
        resume=subject.folder is not None,  # this very run, as run.json has shown
    )
    numbers = {
        "accuracy": share("accuracy", table.correct),
        "robust": share(f"robust accuracy, AutoAttack ({version})", table.robust),
    }
    for place, name in enumerate(suite, start=1):
        label = f"fooled by {name} first"
        numbers[name] = share(label, table.fooled_by == place)
    margin = np.max([each.margin for each in table.attacks.values()], axis=0)
    x_adv = np.asarray(table.x_adv)[:SAMPLES]
    return Lens(
        numbers,
        table.warnings,
        {
            "labels": table.labels,
            "predictions": table.predictions,
            "fooled_by": table.fooled_by,
            "margin": np.where(np.isfinite(margin), margin, np.nan),
            "x": x[:SAMPLES],
            "x_adv": x_adv,
            "adversarial": subject.predicted(x_adv),
            "attacks": np.asarray(list(suite)),
        },
    )


def proven(subject: Subject, budget: Budget, found: Found) -> Lens:
    """How many images no attack can break, by bounds of the network."""
    if subject.eot is not None:
        return left_out_for_noise()
    x, y = subject.x[: budget.proven], subject.y[: budget.proven]
    try:
        certificate = certification.certify(
            subject.logits_fn,
            jnp.asarray(x),
            jnp.asarray(y),
            ball=subject.ball,
            bounds=subject.bounds,
            method="auto" if budget.starts else _CHEAP_PROOFS,
        )
    except ValueError as error:  # a primitive without a rule, a batch that is mixed
        return Lens(notes=(f"left out: {error}",))
    by = np.where(certificate.proven, certificate.method, "")
    numbers = {
        "proven": share("proven robust, whatever the attack", certificate.proven)
    }
    return Lens(numbers, (), {"method": by})


def gradient_masking(subject: Subject, budget: Budget, found: Found) -> Lens:
    """Whether gradient attacks can be trusted on this model."""
    report = masking.check(
        subject.logits_fn,
        jnp.asarray(subject.x[: budget.masked]),
        jnp.asarray(subject.y[: budget.masked]),
        key=subject.key,
        ball=subject.ball,
        bounds=subject.bounds,
        eot=subject.eot,
    )
    numbers = {
        name: share(masking.CHECKS[name].means, flags)
        for name, flags in report.flags.items()
    }
    notes = (*report.notes, *report.warnings, report.verdict)
    return Lens(numbers, notes, {"raised": np.asarray(report.raised, dtype=str)})


def curve(subject: Subject, budget: Budget, found: Found) -> Lens:
    """Robust accuracy over the radius, under Auto-PGD."""
    eps = float(np.max(subject.ball.eps))
    epsilons = eps * np.asarray(CURVE)
    attack = functools.partial(attacks.apgd, steps=budget.curve_steps, eot=subject.eot)
    measured = evaluation.robust_accuracy_curve(
        subject.logits_fn,
        subject.x[: budget.attacked],
        subject.y[: budget.attacked],
        attack,
        epsilons=epsilons,
        key=subject.key,
        ball=lambda radius: with_radius(subject.ball, radius),
        bounds=subject.bounds,
        eot=subject.eot,
    )
    count = len(measured.smallest)
    numbers = {
        f"{part:g}": Number(
            f"robust accuracy at {radius:.4g} (Auto-PGD, {budget.curve_steps} steps)",
            float(rate),
            float(error),
            count,
            "%",
        )
        for part, radius, rate, error in zip(
            CURVE, epsilons, measured.accuracy, measured.stderr, strict=True
        )
    }
    arrays = {
        "epsilons": epsilons,
        "accuracy": measured.accuracy,
        "stderr": measured.stderr,
    }
    return Lens(numbers, (), arrays)


def distances(subject: Subject, budget: Budget, found: Found) -> Lens:
    """How far the nearest change of the prediction is; ARC and ARCA."""
    if subject.eot is not None:
        return left_out_for_noise()
    x = jnp.asarray(subject.x[: budget.nearest])
    predicted = subject.predicted(subject.x[: budget.nearest])
    given = {"ball": subject.ball, "bounds": subject.bounds}
    search = functools.partial(attacks.fmn, **given)
    if budget.starts:
        search = functools.partial(
            attacks.minimal_distance, key=subject.key, starts=budget.starts, **given
        )
    result = search(subject.logits_fn, x, jnp.asarray(predicted))
    eps = float(np.max(subject.ball.eps))
    distance = np.asarray(result.distance, float)
    correct = predicted == subject.y[: budget.nearest]
    unit = _name(subject.ball)
    arc = strong_robustness.arc(distance, eps)
    arca = strong_robustness.arca(distance, correct, eps)
    count = len(distance)
    numbers = {
        "median": resampled(
            "median distance to another prediction", np.median, distance, unit=unit
        ),
        "arc": Number(
            f"ARC, mean of this distance, at most {eps:.4g}",
            float(arc.value),
            float(arc.stderr),
            count,
            unit,
        ),
        "arca": Number(
            "ARCA, accuracy · ARC / ε", float(arca.value), float(arca.stderr), count
        ),
        "pairs": _pairs(subject, x, eps),
    }
    never = int(np.isinf(distance).sum())
    notes = (f"no other prediction was found for {never} images",) if never else ()
    return Lens(numbers, notes, {"distance": distance})


def _pairs(subject: Subject, x: jax.Array, eps: float) -> Number:
    """The average that goes with the worst case: random points of the ball."""
    norm = {"Linf": np.inf, "L2": 2, "L1": 1}[type(subject.ball).__name__]
    kept = strong_robustness.pair_agreement(
        subject.logits_fn,
        x,
        oracle=strong_robustness.identity(norm=norm),
        delta=eps,
        key=subject.key,
        bounds=subject.bounds,
    ).estimate
    label = f"predictions that stay at a random point within {eps:.4g}"
    return Number(label, float(kept.value), float(kept.stderr), len(x), "%")


def _name(ball: Ball) -> str:
    return {"Linf": "in L∞", "L2": "in L2", "L1": "in L1"}[type(ball).__name__]
