"""The result of an evaluation, sample by sample, and the rates that follow from it."""

from typing import NamedTuple

import numpy as np

from robjax.arrays import REAL, check_array
from robjax.runs import files
from robjax.samples import is_concrete


class Estimate(NamedTuple):
    """A proportion and its binomial standard error, both in [0, 1].

    >>> print(Estimate(0.5, 0.05))
     50.00 ± 5.00 %
    """

    mean: float
    stderr: float

    def __str__(self) -> str:
        return f"{100 * self.mean:6.2f} ± {100 * self.stderr:.2f} %"


def proportion(verdicts: np.ndarray) -> Estimate:
    """Estimates how often a verdict is true, from N samples.

    The mean is the share p of true entries; its standard error √(p (1 − p) / N).

    >>> print(proportion(np.array([True, True, True, False])))
     75.00 ± 21.65 %

    Args:
      verdicts: [N] bool.
    """
    allowed = (np.bool_, *REAL)
    verdicts = check_array("verdicts", verdicts, "[N]", kinds=allowed, finite=False)
    mean = float(np.mean(verdicts))
    return Estimate(mean, float(np.sqrt(mean * (1 - mean) / len(verdicts))))


class AttackTable(NamedTuple):
    """What one attack did to each of the N samples.

    Attributes:
      robust: [N] bool, classified correctly before *and* after the attack. In a cascade
        also after all attacks before it.
      margin: [N] max_{i≠y} z_i − z_y at the image that the attack returned; −inf where
        it did not see the sample.
      first_success: [N] int32, when the attack first fooled the model, as it counts
        itself (see its `AttackResult`).
        * 0: the first image that it evaluated fooled, or the clean image is
          misclassified.
        * −1: the verdict is "not fooled", or the attack does not say.
      distance: [N] ‖x_adv − x‖ in the norm of the attack's ball. Without a ball it is
        what the attack says, or 0.
      queries: [N] int32, images evaluated for the sample, that of the verdict among
        them; −1: the attack does not say.
    """

    robust: np.ndarray
    margin: np.ndarray
    first_success: np.ndarray
    distance: np.ndarray
    queries: np.ndarray

    def __repr__(self) -> str:
        if not is_concrete(self.robust):
            return "AttackTable(traced)"
        return f"AttackTable(robust {proportion(self.robust)} of {len(self.robust)})"


class Evaluation(NamedTuple):
    """The table of an evaluation, one row for each of N samples; print it.

    Attributes:
      labels: [N] int32.
      predictions: [N] int32, class of the clean image; −1 where a logit is not finite,
        which counts as wrong.
      attacks: the table of each attack, by name.
      fooled_by: [N] int32, number of the first attack that fooled the model, counted
        from 1 in the order of `attacks`. 0: the clean image is misclassified; −1:
        robust.
      warnings: reasons to distrust the numbers, in words; empty if there are none.
      x_adv: [N, *S] floating, the first image of each sample that fooled, where nothing
        did the clean image; None unless asked for.
    """

    labels: np.ndarray
    predictions: np.ndarray
    attacks: dict[str, AttackTable]
    fooled_by: np.ndarray
    warnings: tuple[str, ...]
    x_adv: np.ndarray | None = None

    @property
    def correct(self) -> np.ndarray:
        """[N] bool, the clean image is classified correctly."""
        return self.predictions == self.labels

    @property
    def robust(self) -> np.ndarray:
        """[N] bool, classified correctly under every attack (the worst case)."""
        return self.fooled_by < 0

    @property
    def accuracy(self) -> Estimate:
        """Accuracy on the clean images."""
        return proportion(self.correct)

    def robust_accuracy(self, attack: str | None = None) -> Estimate:
        """Robust accuracy under one attack, or under all of them (the default)."""
        robust = self.robust if attack is None else self.attacks[attack].robust
        return proportion(robust)

    def success_rate(
        self, attack: str | None = None, *, among: np.ndarray | None = None
    ) -> Estimate:
        """How often an attack fools an image that is classified correctly.

        Args:
          attack: its name; None: any of them.
          among: [N] bool, the images that count. Of an attack on one target t
            (`attacks.to_target`) those of other labels, ``labels != t``.
        """
        counts = self.correct if among is None else self.correct & among
        robust = self.robust if attack is None else self.attacks[attack].robust
        return proportion(~robust[counts])

    def table(self) -> str:
        """Returns accuracies (mean ± standard error) and warnings as plain text."""
        rows = {"clean": self.accuracy}
        rows |= {name: self.robust_accuracy(name) for name in self.attacks}
        if len(self.attacks) > 1:
            rows["worst case"] = self.robust_accuracy()
        width = max(map(len, rows))
        lines = [f"accuracy on {len(self.labels)} images"]
        lines += [f"  {name:<{width}}  {rate}" for name, rate in rows.items()]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def __repr__(self) -> str:
        return self.table() if is_concrete(self.predictions) else "Evaluation(traced)"

    def save(self, path: files.PathLike) -> None:
        """Writes the per-sample table as an npz file, all or nothing.

        The columns are ``label``, ``prediction``, ``fooled_by``, ``warnings`` and, for
        each attack, ``<name>/<field of AttackTable>``; ``x_adv`` if it was asked for.
        """
        columns = {
            "label": self.labels,
            "prediction": self.predictions,
            "fooled_by": self.fooled_by,
            "warnings": np.asarray(self.warnings, dtype=str),
        }
        if self.x_adv is not None:
            columns["x_adv"] = self.x_adv
        for name, table in self.attacks.items():
            columns |= {f"{name}/{k}": v for k, v in table._asdict().items()}
        files.save_npz(path, columns)
