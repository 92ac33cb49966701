"""Attacks: (logits_fn, x, y, *, key, ball, …) -> AttackResult, per sample."""

from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.autoattack import AutoAttackResult, autoattack, suite
from robjax.attacks.fgsm import fgsm
from robjax.attacks.kl_pgd import kl_pgd
from robjax.attacks.mi_fgsm import mi_fgsm
from robjax.attacks.minimal_norm import carlini_wagner, ddn, deepfool, fab, fmn
from robjax.attacks.pgd import pgd
from robjax.attacks.result import AttackResult
from robjax.attacks.square import square, square_queries, success_rate
from robjax.evaluation.attack import Attack, gradient_free

__all__ = [
    "Attack",
    "AttackResult",
    "AutoAttackResult",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "fab",
    "fgsm",
    "fmn",
    "gradient_free",
    "kl_pgd",
    "mi_fgsm",
    "pgd",
    "square",
    "square_queries",
    "success_rate",
    "suite",
]
