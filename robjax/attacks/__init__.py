"""Attacks look for an image near x that the model misclassifies.

    attack(logits_fn, x, y, *, key, ball, bounds, …) -> AttackResult

Every sample is attacked on its own. Each algorithm has one file; families of algorithms
are packages.

    fgsm.py, pgd.py, mi_fgsm.py, kl_pgd.py   steepest ascent of a loss (ascent.py)
    apgd/                                    steepest ascent that sets its own step size
    square/                                  random search without gradients
    minimal_norm/                            the nearest misclassified image
    decision/                                the same, from labels alone
    autoattack.py                            several of them, one after the other
    target.py                                any of them, to one given class
    limits, in robjax/boxes.py               any of them, on some of the pixels
    universal.py, patch.py                   one change for all images (shared.py)
    problem.py, result.py                    what they are given, what they give back
"""

from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.autoattack import AutoAttackResult, autoattack, suite
from robjax.attacks.decision import boundary_attack, hop_skip_jump
from robjax.attacks.fgsm import fgsm
from robjax.attacks.kl_pgd import kl_pgd
from robjax.attacks.mi_fgsm import mi_fgsm
from robjax.attacks.minimal_norm import (
    carlini_wagner,
    ddn,
    deepfool,
    fab,
    fmn,
    minimal_distance,
)
from robjax.attacks.patch import PatchResult, Placement, paste, patch, patched
from robjax.attacks.pgd import pgd
from robjax.attacks.result import AttackResult
from robjax.attacks.square import square, square_queries, success_rate
from robjax.attacks.target import likeliest, to_target
from robjax.attacks.universal import UniversalResult, perturbed, universal
from robjax.boxes import limits
from robjax.evaluation.attack import Attack, gradient_free

__all__ = [
    "Attack",
    "AttackResult",
    "AutoAttackResult",
    "PatchResult",
    "Placement",
    "UniversalResult",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "boundary_attack",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "fab",
    "fgsm",
    "fmn",
    "gradient_free",
    "hop_skip_jump",
    "kl_pgd",
    "likeliest",
    "limits",
    "mi_fgsm",
    "minimal_distance",
    "paste",
    "patch",
    "patched",
    "perturbed",
    "pgd",
    "square",
    "square_queries",
    "success_rate",
    "suite",
    "to_target",
    "universal",
]
