"""Training: objectives, the compiled step, the loop over devices and epochs.

state = training.fit(model, data, objective=training.objectives.standard)

objectives/    what is minimised
config.py      how to train
callbacks.py   what happens at the end of an epoch: early stopping, best weights, …
trainable.py   what a model is: linen and NNX modules, used alike
arguments.py   what is checked before anything compiles
state.py       what a step changes; the optimiser
step.py        the compiled step
rates.py       the learning rate of any optimizer
fit.py         the call
loop.py        epochs and batches
journal.py     the files of a run
load.py        trained models from these files, runs that go on from others
parallel.py    devices and hosts
linear.py      linear classifiers: the exact optimum of adversarial training
"""

from robjax.training import callbacks, linear, objectives
from robjax.training.config import FULL, TRACKING, FitConfig
from robjax.training.fit import fit
from robjax.training.load import load, logits_fn
from robjax.training.state import TrainState

__all__ = [
    "FULL",
    "TRACKING",
    "FitConfig",
    "TrainState",
    "callbacks",
    "fit",
    "linear",
    "load",
    "logits_fn",
    "objectives",
]
