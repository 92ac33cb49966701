"""What each check of the battery asks and advises, and the report."""

from typing import NamedTuple

import jax
import numpy as np

from robjax.masking import thresholds
from robjax.samples import is_concrete


class Check(NamedTuple):
    """One question of the battery.

    >>> CHECKS["square"].means
    'a search without gradients beats attacks with them'

    Attributes:
      measures: what the number behind the flag is.
      means: what a flag says about the model.
      advice: what to do about it.
      exact: one flagged sample is enough. Otherwise chance is allowed for.
      attacks: the check compares attacks, so only images that are classified correctly
        can be flagged.
    """

    measures: str
    means: str
    advice: str
    exact: bool = False
    attacks: bool = False


CHECKS: dict[str, Check] = {
    "finite": Check(
        measures="share of points with finite logits and gradients",
        means="logits or input gradients are NaN or infinite",
        advice="find the operation that overflows; attacks take such gradients for 0",
        exact=True,
    ),
    "random": Check(
        measures="change of the logits between passes, of their spread",
        means="the same images give other logits in another pass",
        advice="give the model as logits_fn(images, keys) and use eot=20",
        exact=True,
    ),
    "eot": Check(
        measures="cosine between gradients of two averages",
        means="gradients averaged over eot draws still point anywhere",
        advice="use a larger eot=",
    ),
    "batch": Check(
        measures="change of the logits in another batch, of their spread",
        means=(
            "the logits of an image depend on its neighbours, its place or the size of "
            "the batch"
        ),
        advice="switch batch norm to inference mode and draw noise per image",
        exact=True,
    ),
    "probabilities": Check(
        measures="distance of the outputs from probabilities",
        means="the outputs are probabilities, whose gradients vanish with confidence",
        advice="attack the logits: return what goes into the softmax",
        exact=True,
    ),
    "saturated": Check(
        measures="gap between the two largest logits",
        means=(
            "the gap between logits is so large that the usual cross-entropy has "
            "gradient 0"
        ),
        advice=(
            "divide the logits by a constant, or use loss=losses.margin or losses.dlr"
        ),
    ),
    "flat": Check(
        measures="spread of the logits",
        means=(
            "the softmax is uniform to 1 %, so the cross-entropy cannot tell classes "
            "apart"
        ),
        advice=(
            "multiply the logits by a constant, or use loss=losses.margin or losses.dlr"
        ),
    ),
    "zero_gradient": Check(
        measures="share of points with gradient 0",
        means="the input gradient is exactly 0",
        advice=(
            "give rounding, sign, arg max, look-ups and stop_gradient the derivative "
            "of a stand-in (BPDA: compose.bpda), and use attacks.square"
        ),
    ),
    "shattered": Check(
        measures="change of the logits by a step of 1e-6, of their spread",
        means=(
            "a change of the size of rounding makes the logits jump: noise or a "
            "look-up keyed by the image's bits"
        ),
        advice=(
            "average over such noise (eot=), take the gradient without it "
            "(compose.bpda), and use attacks.square"
        ),
    ),
    "gradient": Check(
        measures="share of the measured slopes that the gradient misses",
        means=(
            "the gradient is not the slope of the loss: part of it is stopped, or "
            "something on the way is rough"
        ),
        advice=(
            "look for stop_gradient, rounding and custom derivatives; use compose.bpda "
            "and attacks.square. A deliberate stand-in gradient is flagged as well"
        ),
    ),
    "growth": Check(
        measures="margin reached at ε less that at ε/4",
        means="a larger ball does not give gradient attacks a larger margin",
        advice="do not trust gradient attacks here; use attacks.square and a surrogate",
        attacks=True,
    ),
    "steps": Check(
        measures="progress of one step less that of many",
        means="one large gradient step beats many small ones",
        advice=(
            "the loss surface is rough near the images: use more restarts, larger "
            "steps and attacks.square"
        ),
        attacks=True,
    ),
    "restarts": Check(
        measures="progress of the best restart less the median",
        means="success hangs on the random start",
        advice="use many restarts, as restarts=20, and attacks.square",
        attacks=True,
    ),
    "losses": Check(
        measures="progress with the worst loss, of that with the best",
        means=(
            "the cross-entropy does nothing where another loss fools the model, or DLR "
            "cannot rise towards the boundary"
        ),
        advice=(
            "use several losses: losses.cross_entropy, losses.margin and losses.dlr; "
            "DLR is blind where the second and third logit tie, and is led away where "
            "the third falls faster than the margin"
        ),
        attacks=True,
    ),
    "square": Check(
        measures="progress of Square less that of gradient attacks",
        means="a search without gradients beats attacks with them",
        advice="report attacks.square with 5,000 queries, not gradient attacks alone",
        attacks=True,
    ),
    "transfer": Check(
        measures="progress of the surrogate's attack less that of gradient attacks",
        means="attacks on a surrogate beat attacks on the model's own gradient",
        advice="report transfer attacks and attacks.square, not gradient attacks alone",
        attacks=True,
    ),
    "full_box": Check(
        measures="progress when every pixel may take any value",
        means="gradient attacks fail although they may replace the whole image",
        advice="do not trust gradient attacks here; use attacks.square and a surrogate",
        attacks=True,
    ),
}


class MaskingReport(NamedTuple):
    """Flags and what they rest on, sample by sample; arrays on the host.

    `print` shows the table of all checks.

    >>> both = np.array([True, True])
    >>> report = MaskingReport(
    ...     flags={"flat": both}, numbers={"flat": np.zeros(2)}, judged=both, notes=()
    ... )
    >>> report.raised, report.masked
    (('flat',), True)

    Attributes:
      flags: check -> bool [B]; the checks that ran, causes before consequences.
      numbers: check, or "check/detail" -> [B], what was measured (see `CHECKS`).
      judged: bool [B], images classified correctly; only they are attacked.
      notes: what was left out, and which loss is weak on its own, in words.
    """

    flags: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    judged: np.ndarray
    notes: tuple[str, ...]

    @property
    def raised(self) -> tuple[str, ...]:
        """Checks with more flags than chance explains."""
        return tuple(
            name
            for name, flags in self.flags.items()
            if flags.sum() > self._tolerated(name)
        )

    def _tolerated(self, name: str) -> float:
        """How many flags of a check prove nothing."""
        return 0 if CHECKS[name].exact else thresholds.tolerated(self._asked(name))

    def _asked(self, name: str) -> int:
        """How many images a check could flag."""
        return int(self.judged.sum()) if CHECKS[name].attacks else len(self.judged)

    @property
    def masked(self) -> bool:
        """Whether any check is raised."""
        return bool(self.raised)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each check that is raised: what, how many, what to do."""
        return tuple(
            f"{name}: {CHECKS[name].means} ({self.flags[name].sum()} of "
            f"{self._asked(name)} images). {_sentence(CHECKS[name].advice)}"
            for name in self.raised
        )

    @property
    def verdict(self) -> str:
        """The conclusion in one line."""
        count = len(self.judged)
        if not self.masked:
            return f"no sign of gradient masking on {count} images"
        attacks = "one loss" if self.raised == ("losses",) else "gradient attacks"
        return (
            f"gradient masking: {', '.join(self.raised)} on {count} images; robust "
            f"accuracy under {attacks} alone is not to be trusted"
        )

    def table(self) -> str:
        """Flags and median measurement of each check as plain text."""
        width = max(map(len, self.flags))
        raised = set(self.raised)
        lines = [f"{'check':<{width}}  flagged    median  measures"]
        for name, flags in self.flags.items():
            number = self.numbers[name]
            known = number[np.isfinite(number)]
            median = f"{np.median(known):9.3g}" if known.size else f"{'-':>9}"
            mark = "!" if name in raised else " "
            lines.append(
                f"{name:<{width}} {mark}{flags.mean():7.1%} {median}  "
                f"{CHECKS[name].measures}"
            )
        lines += [f"note: {text}" for text in self.notes]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join([*lines, self.verdict])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        """The conclusion; not the arrays."""
        if not all(map(is_concrete, [self.judged, *jax.tree.leaves(self.flags)])):
            return "MaskingReport(traced)"
        return f"MaskingReport({self.verdict})"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
