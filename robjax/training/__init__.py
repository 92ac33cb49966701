"""Training: objectives, the compiled step, the loop over devices and epochs.

    state = training.fit(model, data, objective=training.objectives.standard)

objectives/   what is minimised
config.py     how to train
state.py      what a step changes; the optimiser
step.py       the compiled step
fit.py        the loop
journal.py    the files of a run
parallel.py   devices and hosts
linear.py     linear classifiers: the exact optimum of adversarial training
"""

from robjax.training import linear, objectives
from robjax.training.config import FULL, TRACKING, FitConfig
from robjax.training.fit import fit
from robjax.training.state import TrainState

__all__ = ["FULL", "TRACKING", "FitConfig", "TrainState", "fit", "linear", "objectives"]
