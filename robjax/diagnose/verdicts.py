"""From numbers to sentences: is it robust, how sure is that, why (not), what next.

Every threshold stands at the top, with its reason. A sentence follows from the numbers
of the lenses alone.

* An attack that succeeds is a fact. One that fails proves nothing, so robust accuracy
  is an upper bound.
* A model that hides its gradient, or on which an evaluation has a warning, is never
  called robust.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from robjax.balls import Ball
from robjax.diagnose.results import CONFIDENCE, Lens, Number, interval

LEVELS: tuple[tuple[float, "Kind", str], ...] = (
    (0.9, "robust", "Robust"),
    (0.5, "partly robust", "Partly robust"),
    (0.1, "weakly robust", "Weakly robust"),
    (0.0, "not robust", "Not robust"),
)
"""Share of the correctly classified images that withstand every attack, at least; what
that is called. 0.9: attacks cost one image in ten, as much as images from elsewhere may
cost. 0.5: most images withstand. 0.1: as few as chance gets right of ten classes."""

RELIES = 0.5
"""A model relies on backgrounds if it keeps more than this share of its accuracy, above
that of the commonest class, on backgrounds alone; or loses more than this share of it
when the background is taken away."""

HALF = 0.5
"""Of the divergence between classes, and the middle of the orders of interaction. A
number within two standard errors of it is called about half, and middle."""

Kind = Literal[
    "no classifier",
    "not robust",
    "hidden gradient",
    "doubtful",
    "weakly robust",
    "partly robust",
    "robust",
]


class Verdict(NamedTuple):
    """The four answers.

    Attributes:
      kind: the verdict as a term.
      sentence: is it robust?
      sure: how sure that is, a sentence each.
      why: why (not).
      next: what to do next.
    """

    kind: Kind
    sentence: str
    sure: tuple[str, ...]
    why: tuple[str, ...]
    next: tuple[str, ...]

    def __str__(self) -> str:
        parts = {"How sure": self.sure, "Why": self.why, "Next": self.next}
        lines = [self.sentence]
        for title, sentences in parts.items():
            lines += [f"  {title}:"] * bool(sentences)
            lines += [f"    {sentence}" for sentence in sentences]
        return "\n".join(lines)


class _Facts(NamedTuple):
    """What the sentences are about.

    n: images; right: classified correctly; robust: of these, under every attack.
    commonest: share of the commonest label.
    raised: checks of the masking battery; warnings: of the evaluation.
    """

    n: int
    right: int
    robust: int
    commonest: float
    raised: tuple[str, ...]
    warnings: tuple[str, ...]
    threat: str

    @property
    def kept(self) -> float:
        return self.robust / max(self.right, 1)


def judge(lenses: Mapping[str, Lens], ball: Ball) -> Verdict:
    """Says what the numbers of the lenses mean.

    >>> import numpy as np
    >>> from robjax.balls import Linf
    >>> from robjax.diagnose.results import share
    >>> right = np.array([True] * 90 + [False] * 10)
    >>> numbers = {"accuracy": share("", right), "robust": share("", ~right & right)}
    >>> found = {"attacks": Lens(numbers, (), {"labels": np.arange(100) % 2})}
    >>> verdict = judge(found, Linf(0.1))
    >>> verdict.kind
    'not robust'
    >>> print(verdict.sentence)
    Not robust: changes within L∞ ε = 0.1 fool it on 90 of the 90 images it gets right.

    Args:
      lenses: "attacks" with "accuracy", "robust" and the labels; all others may lack.
      ball: the threat model.
    """
    facts = _facts(lenses, ball)
    kind, sentence = _sentence(facts)
    relies = _relies_on_background(lenses, facts)
    if relies:
        sentence = f"{sentence} {relies}"
    return Verdict(
        kind,
        sentence,
        tuple(_sure(kind, facts, lenses)),
        tuple(_why(kind, lenses)),
        tuple(_next(kind, facts, bool(relies))),
    )


def threat_of(ball: Ball) -> str:
    """The threat model in words.

    >>> from robjax.balls import L2
    >>> threat_of(L2(0.5))
    'L2 ε = 0.5'
    """
    norm = {"Linf": "L∞"}.get(type(ball).__name__, type(ball).__name__)
    return f"{norm} ε = {float(np.max(ball.eps)):.4g}"


def _facts(lenses: Mapping[str, Lens], ball: Ball) -> _Facts:
    attacks = lenses["attacks"]
    accuracy, robust = attacks.numbers["accuracy"], attacks.numbers["robust"]
    _, counts = np.unique(attacks.arrays["labels"], return_counts=True)
    masking = lenses.get("masking", Lens())
    return _Facts(
        n=accuracy.images,
        right=round(accuracy.value * accuracy.images),
        robust=round(robust.value * robust.images),
        commonest=counts.max() / counts.sum(),
        raised=tuple(map(str, masking.arrays.get("raised", ()))),
        warnings=attacks.notes,
        threat=threat_of(ball),
    )


def _sentence(facts: _Facts) -> tuple[Kind, str]:
    n, right, robust = facts.n, facts.right, facts.robust
    fooled = right - robust
    one_label = facts.commonest == 1 and right > 0
    if not one_label and interval(right, n)[0] <= facts.commonest:
        return "no classifier", _no_classifier(facts)
    if facts.kept < 0.1:
        return "not robust", (
            f"Not robust: changes within {facts.threat} fool it on {fooled} of the "
            f"{right} images it gets right."
        )
    if one_label:
        return "doubtful", (
            f"No verdict: all {n} images have one label, so a model is right without "
            f"looking at them. Changes within {facts.threat} fool it on {fooled} of "
            f"the {right} images it gets right."
        )
    if facts.raised:
        return "hidden gradient", (
            f"Not shown to be robust: it hides its gradient ({', '.join(facts.raised)})"
            f", so attacks may have missed; within {facts.threat} they already fool it "
            f"on {fooled} of the {right} images it gets right."
        )
    if facts.warnings:
        return "doubtful", (
            "No verdict: the evaluation has warnings (below). Changes within "
            f"{facts.threat} fool it on {fooled} of the {right} images it gets right."
        )
    kind, words = next(level[1:] for level in LEVELS if facts.kept >= level[0])
    return kind, (
        f"{words}: it withstands AutoAttack within {facts.threat} on {robust} of the "
        f"{right} images it gets right."
    )


def _no_classifier(facts: _Facts) -> str:
    n, right, commonest = facts.n, facts.right, f"{facts.commonest:.0%}"
    if right / n <= facts.commonest:
        return (
            f"No classifier of these images: it gets {right} of {n} right, no better "
            f"than always naming the commonest class ({commonest}), so robustness has "
            "no meaning."
        )
    return (
        f"Not shown to classify these images: it gets {right} of {n} right, which may "
        f"be luck, as always naming the commonest class gets {commonest} right."
    )


def _sure(kind: Kind, facts: _Facts, lenses: Mapping[str, Lens]) -> list[str]:
    low, high = interval(facts.robust, facts.n)
    sentences = [
        f"Accuracy is {100 * facts.right / facts.n:.1f} %, robust accuracy "
        f"{100 * facts.robust / facts.n:.1f} % ({facts.n} images; "
        f"{100 * CONFIDENCE:.0f} % interval {100 * low:.1f} to {100 * high:.1f} %). A "
        "stronger attack can only lower robust accuracy."
    ]
    if "masking" in lenses and lenses["masking"].numbers:
        if facts.raised:
            sentences += [note for note in lenses["masking"].notes if ": " in note]
        else:
            count = max(n.images for n in lenses["masking"].numbers.values())
            sentences.append(f"No sign of gradient masking on {count} images.")
    elif kind not in ("not robust", "no classifier"):
        sentences.append("Whether it hides its gradient was not checked.")
    proof = lenses.get("proof", Lens()).numbers.get("proven")
    if proof is not None and proof.value > 0:
        sentences.append(
            f"Proofs were tried on {proof.images} images: "
            f"{round(proof.value * proof.images)} are robust whatever the attack."
        )
    return sentences + list(facts.warnings)


def _relies_on_background(lenses: Mapping[str, Lens], facts: _Facts) -> str:
    """A sentence, if the model relies on backgrounds; else nothing."""
    found = lenses.get("background", Lens())
    if not found.numbers:
        return ""
    above = facts.right / facts.n - facts.commonest
    alone = found.value("background") - facts.commonest
    without = found.value("foreground") - facts.commonest
    if above <= 0 or (alone <= RELIES * above and without >= (1 - RELIES) * above):
        return ""
    return (
        "It relies on backgrounds: it gets "
        f"{found.numbers['background'].shown()} right on backgrounds alone, "
        f"{found.numbers['foreground'].shown()} on foregrounds alone."
    )


def _side(number: Number) -> int:
    """−1 below a half, 1 above, 0 within two standard errors of it."""
    gap = number.value - HALF
    return 0 if abs(gap) <= 2 * number.stderr else int(np.sign(gap))


def _why(kind: Kind, lenses: Mapping[str, Lens]) -> list[str]:
    """What the lenses that explain say: each number with its error and images."""
    sayings = {
        ("distances", "median"): _of_distance,
        ("divergence", "fisher"): _of_divergence,
        ("orders", "centre"): _of_orders,
        ("gradients", "alignment"): _of_alignment,
    }
    found = {
        say: lenses.get(lens, Lens()).numbers.get(name)
        for (lens, name), say in sayings.items()
    }
    if kind == "no classifier":
        return []
    return [
        say(number)
        for say, number in found.items()
        if number is not None and not np.isnan(number.value)
    ]


def _of_distance(number: Number) -> str:
    if np.isinf(number.value):
        return (
            f"For half of the images, at least, no change to another prediction was "
            f"found at any distance ({number.images} images)."
        )
    return (
        f"Half of the images are nearer than {number.shown()} to another prediction "
        f"({number.images} images)."
    )


def _of_divergence(number: Number) -> str:
    how_much = {-1: "Less than half", 0: "About half", 1: "Most"}[_side(number)]
    return (
        f"{how_much} of the KL divergence between classes is the non-robust (Fisher) "
        f"part: {number.shown()} ({number.images} images)."
    )


def _of_orders(number: Number) -> str:
    which = {
        -1: "few parts (low order)",
        0: "middle order",
        1: "many parts (high order)",
    }
    return (
        f"The attack works through interactions of {which[_side(number)]}: "
        f"{number.shown()} on a scale from 0 to 1 ({number.images} images)."
    )


def _of_alignment(number: Number) -> str:
    return (
        f"Input gradients align with the images to {number.shown()}, where 1 is the "
        f"most ({number.images} images); those of robust models tend to align more."
    )


def _next(kind: Kind, facts: _Facts, relies: bool) -> list[str]:
    advice = {
        "no classifier": [
            "Check the weights, the scaling of the images and the order of the classes."
        ],
        "not robust": [
            "Train against attacks: training.fit with objectives.adversarial or "
            "objectives.trades."
        ],
        "hidden gradient": [
            "Remove what hides the gradient (see above), or give it another way back, "
            "and run this again."
        ],
        "doubtful": ["Resolve the warnings, and run this again."],
        "weakly robust": [
            "Train against attacks, or longer, or with a larger radius: training.fit "
            "with objectives.adversarial or objectives.trades.",
            "Look at the classes and samples that fall first (below).",
        ],
        "partly robust": [
            "Look at the classes and samples that fall (below).",
            "Train against attacks longer, or with a larger radius.",
        ],
        "robust": [
            "Try a larger radius. Attacks cannot prove robustness; a certificate can."
        ],
    }[kind]
    if facts.commonest == 1 and kind == "doubtful":
        advice = ["Take images of several classes."]
    chance = kind == "no classifier" and facts.right / facts.n > facts.commonest
    low, high = interval(facts.robust, facts.n)
    wide = kind not in ("no classifier", "not robust") and high - low > 0.1
    if chance:
        advice = ["Take more images: these cannot tell skill from luck.", *advice]
    elif wide and facts.commonest < 1:
        advice = [
            *advice,
            f"Take more images than {facts.n}: the interval is wider than 10 points.",
        ]
    if relies:
        advice = [
            *advice,
            "Decorrelate backgrounds and labels in training, or train with "
            "objectives.group_dro.",
        ]
    return advice
