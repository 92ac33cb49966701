"""What the battery says: the meaning of each check, and the report."""

from typing import NamedTuple

import numpy as np

from robjax.masking import thresholds


class Check(NamedTuple):
    """One question of the battery.

    Attributes:
      measures: what the number behind the flag is.
      means: what a flag says about the model.
      advice: what to do about it.
      exact: one flagged sample is enough; otherwise chance is allowed for.
      attacks: it compares attacks, which only images classified correctly undergo.
    """

    measures: str
    means: str
    advice: str
    exact: bool = False
    attacks: bool = False


CHECKS = {
    "finite": Check(
        "share of points with finite logits and gradients",
        "logits or input gradients are NaN or infinite",
        "find the operation that overflows; attacks take such gradients for 0",
        exact=True,
    ),
    "random": Check(
        "change of the logits between passes, of their spread",
        "the same images give other logits in another pass",
        "give the model as logits_fn(images, keys) and use eot=20",
        exact=True,
    ),
    "eot": Check(
        "cosine between gradients of two averages",
        "gradients averaged over eot draws still point anywhere",
        "use a larger eot=",
    ),
    "batch": Check(
        "change of the logits in another batch, of their spread",
        "the logits of an image depend on its neighbours or place in the batch",
        "switch batch norm to inference mode and draw noise per image",
        exact=True,
    ),
    "probabilities": Check(
        "distance of the outputs from probabilities",
        "the outputs are probabilities, whose gradients vanish with confidence",
        "attack the logits: return what goes into the softmax",
        exact=True,
    ),
    "saturated": Check(
        "gap between the two largest logits",
        "the gap between logits is so large that the usual cross-entropy has "
        "gradient 0",
        "divide the logits by a constant, or use loss=losses.margin or losses.dlr",
    ),
    "flat": Check(
        "spread of the logits",
        "the softmax is uniform to 1 %, so the cross-entropy cannot tell classes apart",
        "multiply the logits by a constant, or use loss=losses.margin or losses.dlr",
    ),
    "zero_gradient": Check(
        "share of points with gradient 0",
        "the input gradient is exactly 0",
        "replace rounding, sign, arg max, look-ups and stop_gradient by a "
        "differentiable stand-in on the way back (BPDA), and use attacks.square",
    ),
    "shattered": Check(
        "change of the logits by a step of 1e-6, of their spread",
        "a change of the size of rounding makes the logits jump: noise or a look-up "
        "keyed by the image's bits",
        "average over such noise (eot=), take the gradient without it (BPDA), and use "
        "attacks.square",
    ),
    "gradient": Check(
        "share of the measured slopes that the gradient misses",
        "the gradient is not the slope of the loss: part of it is stopped, or "
        "something on the way is rough",
        "look for stop_gradient, rounding and custom derivatives; use BPDA and "
        "attacks.square. A deliberate stand-in gradient (BPDA) is flagged as well",
    ),
    "growth": Check(
        "loss reached at ε less that at ε/4",
        "a larger ball does not give gradient attacks a larger loss",
        "do not trust gradient attacks here; use attacks.square and a surrogate",
        attacks=True,
    ),
    "steps": Check(
        "progress of one step less that of many",
        "one large gradient step beats many small ones",
        "the loss surface is rough near the images: use more restarts, larger steps "
        "and attacks.square",
        attacks=True,
    ),
    "restarts": Check(
        "progress of the best restart less the median",
        "success hangs on the random start",
        "use many restarts, as restarts=20, and attacks.square",
        attacks=True,
    ),
    "losses": Check(
        "progress with the worst loss, of that with the best",
        "an attack with one loss does nothing where another works",
        "use several losses: losses.cross_entropy, losses.margin and losses.dlr; DLR "
        "is blind where the second and third logit tie",
        attacks=True,
    ),
    "square": Check(
        "progress of Square less that of gradient attacks",
        "a search without gradients beats attacks with them",
        "report attacks.square with 5,000 queries, not gradient attacks alone",
        attacks=True,
    ),
    "transfer": Check(
        "progress of the surrogate's attack less that of gradient attacks",
        "attacks on a surrogate beat attacks on the model's own gradient",
        "report transfer attacks and attacks.square, not gradient attacks alone",
        attacks=True,
    ),
    "full_box": Check(
        "progress when every pixel may take any value",
        "gradient attacks fail although they may replace the whole image",
        "do not trust gradient attacks here; use attacks.square and a surrogate",
        attacks=True,
    ),
}


class MaskingReport(NamedTuple):
    """Flags and what they rest on; arrays on the host.

    Attributes:
      flags: check -> bool [B]; the checks that ran, causes before consequences.
      numbers: check, or "check/detail" -> [B], what was measured (see `CHECKS`).
      judged: bool [B], images classified correctly; only they are attacked.
      notes: what was left out, in words.
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
            if flags.sum() > (0 if CHECKS[name].exact else self._chance(name))
        )

    def _chance(self, name: str) -> float:
        return thresholds.tolerated(self._asked(name))

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
        return (
            f"gradient masking: {', '.join(self.raised)} on {count} images; robust "
            "accuracy under gradient attacks alone is not to be trusted"
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


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
