"""What is asked of a model, in the order of a run."""

from collections.abc import Callable

from robjax.diagnose import reasons, robustness
from robjax.diagnose.results import Lens
from robjax.diagnose.subject import Budget, Found, Subject

LensFn = Callable[[Subject, Budget, Found], Lens]

LENSES: dict[str, tuple[str, LensFn, float]] = {
    "attacks": ("Accuracy and AutoAttack", robustness.attacked, 6),
    "proof": ("Proven robustness", robustness.proven, 2),
    "masking": ("Gradient masking", robustness.gradient_masking, 5),
    "curve": ("Robust accuracy over the radius", robustness.curve, 1),
    "distances": ("Minimal distances", robustness.distances, 4),
    "divergence": ("KL divergence between classes", reasons.divergence, 1),
    "fisher": ("Fisher information of the input", reasons.fisher, 1),
    "orders": ("Interactions by order", reasons.orders, 1),
    "gradients": ("Input gradients", reasons.gradients, 1),
    "background": ("Foreground and background", reasons.background, 1),
}
"""Lens -> title, function, weight in the time left; in the order of a run."""
