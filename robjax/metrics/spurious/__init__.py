"""How much a model relies on what only goes with the label: backgrounds, groups.

    noise.py    noise on the foreground or the background alone, relative sensitivity
    regions.py  masks that grow, for the core region of RCS
    swap.py     the same foregrounds on other backgrounds; models of other classes
    groups.py   accuracies of groups, the worst of them, means with other proportions

Moayeri et al., "Explicit tradeoffs between adversarial and natural distributional
robustness", NeurIPS 2022 (arXiv 2209.07592). Noise does not erase a background that is
smooth, and adversarially trained models tolerate noise: read relative sensitivities
together with a swap of the backgrounds and with the accuracies of groups.
"""

from robjax.metrics.spurious.groups import (
    Estimate,
    GroupAccuracies,
    group_accuracies,
    reweighted_accuracy,
    worst_group_accuracy,
)
from robjax.metrics.spurious.noise import (
    L2_LEVELS,
    LINF_LEVELS,
    NoiseSensitivity,
    noise_sensitivity,
    relative_sensitivity,
)
from robjax.metrics.spurious.regions import dilate
from robjax.metrics.spurious.swap import (
    BackgroundSwap,
    background_gap,
    background_swap,
    map_classes,
    swap_backgrounds,
)

__all__ = [
    "L2_LEVELS",
    "LINF_LEVELS",
    "BackgroundSwap",
    "Estimate",
    "GroupAccuracies",
    "NoiseSensitivity",
    "background_gap",
    "background_swap",
    "dilate",
    "group_accuracies",
    "map_classes",
    "noise_sensitivity",
    "relative_sensitivity",
    "reweighted_accuracy",
    "swap_backgrounds",
    "worst_group_accuracy",
]
