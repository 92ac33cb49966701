"""Training: objectives, the compiled step, the loop over devices and epochs.

    state = training.fit(model, data, objective=training.objectives.standard)

`objectives` says what is minimised, `state` holds the configuration and the step,
`parallel` the devices and hosts, `journal` the files of a run, `fit` the loop. For
linear classifiers `linear` finds the exact optimum of adversarial training.
"""

from robjax.training import linear, objectives
from robjax.training.fit import fit
from robjax.training.state import FULL, TRACKING, FitConfig, TrainState

__all__ = ["FULL", "TRACKING", "FitConfig", "TrainState", "fit", "linear", "objectives"]
