"""Is a model robust, how sure is that, why (not), and what to do next: one report.

    report = robjax.diagnose(logits_fn, data, ball=Linf(8 / 255), folder="results/mine")
    print(report)                 # the verdict and every number, with its error
    # results/mine/report.html and report.json hold the same, with figures and samples

    python -m robjax.diagnose my_module:logits_fn --data test.npz --eps 0.03

The modules, in the order of a run:

    run.py         `diagnose`: the loop, which can be killed and resumed
    lenses.py      what is asked of a model, in order
    robustness.py  whether it is robust: attacks, masking, radius, distances
    reasons.py     why: divergence, Fisher information, interactions, backgrounds
    subject.py     what a lens is given; results.py: what it gives back
    verdicts.py    from numbers to sentences; every threshold, with its reason
    report.py      the report: text, JSON; page.py, page.html, drawings.py: HTML
"""

import sys
import types
from typing import Any

from robjax.diagnose.report import ModelReport, Report
from robjax.diagnose.results import Lens, Number
from robjax.diagnose.run import BUDGETS, diagnose
from robjax.diagnose.subject import Budget
from robjax.diagnose.verdicts import Verdict

__all__ = [
    "BUDGETS",
    "Budget",
    "Lens",
    "ModelReport",
    "Number",
    "Report",
    "Verdict",
    "diagnose",
]


class _Callable(types.ModuleType):
    """``robjax.diagnose(...)`` is ``robjax.diagnose.diagnose(...)``."""

    def __call__(self, *args: Any, **keywords: Any) -> Report:
        return diagnose(*args, **keywords)


sys.modules[__name__].__class__ = _Callable
