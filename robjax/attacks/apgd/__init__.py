"""Auto-PGD: projected ascent that sets its own step size.

attack.py         `apgd`, `apgd_targeted`, and the loop over restarts and steps
plan.py           where the checkpoints of a run are
step_rule.py      L∞ and L2: where the step size is set, when to fall back
step_rule_l1.py   L1: sparse steps
"""

from robjax.attacks.apgd.attack import apgd, apgd_targeted

__all__ = ["apgd", "apgd_targeted"]
