"""Auto-PGD: projected ascent that sets its own step size.

The files of this package:

attack.py         `apgd`, `apgd_targeted`, and the loop over restarts and steps
plan.py           where the checkpoints of a run are
step_rule.py      L∞ and L2: the step, its size, when to fall back
step_rule_l1.py   L1: the same, for sparse steps
"""

from robjax.attacks.apgd.attack import apgd, apgd_targeted

__all__ = ["apgd", "apgd_targeted"]
