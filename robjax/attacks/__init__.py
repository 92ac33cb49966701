"""Attacks: (logits_fn, x, y, *, key, ball, …) -> AttackResult, per sample."""

from robjax.attacks.ascent import AttackResult
from robjax.attacks.fgsm import fgsm
from robjax.attacks.kl_pgd import kl_pgd
from robjax.attacks.pgd import pgd

__all__ = ["AttackResult", "fgsm", "kl_pgd", "pgd"]
