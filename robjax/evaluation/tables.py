"""The result of an evaluation, sample by sample, and the rates that follow from it."""

from typing import NamedTuple

import numpy as np

from robjax.runs import files


class Estimate(NamedTuple):
    """A proportion and its binomial standard error, both in [0, 1]."""

    mean: float
    stderr: float

    def __str__(self) -> str:
        return f"{100 * self.mean:6.2f} ± {100 * self.stderr:.2f} %"


def proportion(verdicts: np.ndarray) -> Estimate:
    """The share of true entries in a bool array [N], with its standard error.

    >>> print(proportion(np.array([True, True, True, False])))
     75.00 ± 21.65 %
    """
    mean = float(np.mean(verdicts))
    return Estimate(mean, float(np.sqrt(mean * (1 - mean) / len(verdicts))))


class AttackTable(NamedTuple):
    """What one attack did to each of the N samples.

    Attributes:
      robust: bool [N], classified correctly before *and* after the attack. In a cascade
        that means after the attacks before it, too.
      margin: [N], max_{i≠y} z_i − z_y at the image it returned; −inf where it saw none.
      first_success: int [N], first step that fooled the model, as the attack counts. 0
        is the start, or an image misclassified as it is. −1 means that the verdict is
        "not fooled", or that the attack does not say.
      distance: [N], size of the perturbation in the norm of the attack's ball.
      queries: int [N], images evaluated for the sample, that of the verdict among them;
        −1 where the attack does not say.
    """

    robust: np.ndarray
    margin: np.ndarray
    first_success: np.ndarray
    distance: np.ndarray
    queries: np.ndarray

    def __repr__(self) -> str:
        return f"AttackTable(robust {proportion(self.robust)} of {len(self.robust)})"


class Evaluation(NamedTuple):
    """The table of an evaluation, one row for each of N samples; print it.

    Attributes:
      labels: int [N].
      predictions: int [N], class of the unperturbed image; −1 where a logit is not
        finite, which counts as wrong.
      attacks: the table of each attack, by name.
      fooled_by: int [N], number of the first attack that fooled the model, in the order
        of `attacks`, from 1; 0: the clean image is misclassified, −1: robust.
      warnings: reasons to distrust the numbers, in words; empty if there are none.
    """

    labels: np.ndarray
    predictions: np.ndarray
    attacks: dict[str, AttackTable]
    fooled_by: np.ndarray
    warnings: tuple[str, ...]

    @property
    def correct(self) -> np.ndarray:
        """Bool [N]: the unperturbed image is classified correctly."""
        return self.predictions == self.labels

    @property
    def robust(self) -> np.ndarray:
        """Bool [N]: correct under every attack (the pointwise worst case)."""
        return self.fooled_by < 0

    @property
    def accuracy(self) -> Estimate:
        """Accuracy on the unperturbed images."""
        return proportion(self.correct)

    def robust_accuracy(self, attack: str | None = None) -> Estimate:
        """Robust accuracy under one attack, or under all of them (the default)."""
        robust = self.robust if attack is None else self.attacks[attack].robust
        return proportion(robust)

    def table(self) -> str:
        """The accuracies (mean ± standard error) and warnings as plain text."""
        rows = {"clean": self.accuracy}
        rows |= {name: self.robust_accuracy(name) for name in self.attacks}
        if len(self.attacks) > 1:
            rows["worst case"] = self.robust_accuracy()
        width = max(map(len, rows))
        lines = [f"accuracy on {len(self.labels)} images"]
        lines += [f"  {name:<{width}}  {rate}" for name, rate in rows.items()]
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def __repr__(self) -> str:
        return self.table()

    def save(self, path: files.PathLike) -> None:
        """Writes the per-sample table as an npz file, all or nothing.

        The columns are ``label``, ``prediction``, ``fooled_by``, ``warnings`` and, for
        each attack, ``<name>/<field of AttackTable>``.
        """
        columns = {
            "label": self.labels,
            "prediction": self.predictions,
            "fooled_by": self.fooled_by,
            "warnings": np.asarray(self.warnings, dtype=str),
        }
        for name, table in self.attacks.items():
            columns |= {f"{name}/{k}": v for k, v in table._asdict().items()}
        files.save_npz(path, columns)
