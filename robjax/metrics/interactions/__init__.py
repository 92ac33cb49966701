"""Multi-order game-theoretic interactions between the parts of an image.

Ren et al., "A Unified Game-Theoretic Interpretation of Adversarial Robustness", NeurIPS
2021, arXiv 2103.07364: adversarial attacks change interactions of high orders, those
that need most of the image, and robust training moves the change to lower orders.

games.py             a value function of a model and an image
values.py            what it pays: log_softmax, log_odds, logit, other_categories
exact.py             up to 20 players: everything, from all 2^n sets
decompositions.py    efficiency, dropout and attack utility, by order
sampled.py           many players: mean interactions with standard errors
design.py            the pairs and contexts that are sampled
visibility.py        what k visible players are worth
disentanglement.py   do the interactions of a pair agree from context to context?
estimates.py         means over blocks
attack.py            PGD stopped at a given attack utility, to compare networks
recovery.py          does a second attack lead back?
images.py            rank reduction, pixel dropout, cutout; Fourier rings, Fisher ratio
detection.py         the dispersion of attributions, as a detector of attacks

`robjax.reporting.pairs.strongest_pairs` draws pairs over an image.
"""

from robjax.metrics.interactions.attack import UtilityAttack, utility_attack
from robjax.metrics.interactions.decompositions import (
    Decomposition,
    attack_utility,
    decompose,
)
from robjax.metrics.interactions.design import design_pairs
from robjax.metrics.interactions.detection import (
    Dispersion,
    auroc,
    dispersion,
    leave_one_out,
)
from robjax.metrics.interactions.disentanglement import (
    Disentanglement,
    disentanglement,
    pair_magnitudes,
)
from robjax.metrics.interactions.estimates import BlockMean
from robjax.metrics.interactions.exact import ExactInteractions, exact
from robjax.metrics.interactions.games import ImageGame, ValueFn, image_game
from robjax.metrics.interactions.images import (
    cutout,
    fisher_ratio,
    fourier_magnitudes,
    pixel_dropout,
    reduce_rank,
)
from robjax.metrics.interactions.recovery import Recovery, recoverability
from robjax.metrics.interactions.sampled import (
    SampledInteractions,
    sampled,
    usual_orders,
)
from robjax.metrics.interactions.values import (
    log_odds,
    log_softmax,
    logit,
    other_categories,
)
from robjax.metrics.interactions.visibility import Visibility, visibility

__all__ = [
    "BlockMean",
    "Decomposition",
    "Disentanglement",
    "Dispersion",
    "ExactInteractions",
    "ImageGame",
    "Recovery",
    "SampledInteractions",
    "UtilityAttack",
    "ValueFn",
    "Visibility",
    "attack_utility",
    "auroc",
    "cutout",
    "decompose",
    "design_pairs",
    "disentanglement",
    "dispersion",
    "exact",
    "fisher_ratio",
    "fourier_magnitudes",
    "image_game",
    "leave_one_out",
    "log_odds",
    "log_softmax",
    "logit",
    "other_categories",
    "pair_magnitudes",
    "pixel_dropout",
    "recoverability",
    "reduce_rank",
    "sampled",
    "usual_orders",
    "utility_attack",
    "visibility",
]
