"""Attacks: (logits_fn, x, y, *, key, ball, …) -> AttackResult, per sample."""

from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.ascent import AttackResult
from robjax.attacks.autoattack import AutoAttackResult, autoattack, suite
from robjax.attacks.carlini_wagner import carlini_wagner
from robjax.attacks.ddn import ddn
from robjax.attacks.deepfool import deepfool
from robjax.attacks.fab import fab
from robjax.attacks.fgsm import fgsm
from robjax.attacks.fmn import fmn
from robjax.attacks.kl_pgd import kl_pgd
from robjax.attacks.mi_fgsm import mi_fgsm
from robjax.attacks.pgd import pgd
from robjax.attacks.square import square
from robjax.attacks.square_queries import square_queries, success_rate

__all__ = [
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
    "kl_pgd",
    "mi_fgsm",
    "pgd",
    "square",
    "square_queries",
    "success_rate",
    "suite",
]
