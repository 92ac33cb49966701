"""Training: objectives, the compiled step, the loop over devices and epochs.

Any flax module is trained, from scratch or from weights of your own:

    state = training.fit(model, train, objective=objectives.standard)
    state = training.fit(model, train, variables=weights)
    logits_fn = training.logits_fn(model, state.weights)

Stop where the robust accuracy rises no more, and load the best weights:

    train, validation = data.split(train, 500)
    watch = callbacks.evaluate(validation, {"PGD": partial(attacks.pgd, ball=ball)})
    stop = callbacks.best("validation_robust_accuracy", patience=5)
    training.fit(model, train, callbacks=[watch, stop], run_dir="results/run")
    logits_fn = training.load("results/run")

Train a part of the weights, here the last layer:

    part = lambda path, _: "last" if path[0].key == "logits" else "frozen"
    rules = {"last": optax.adam(1e-3), "frozen": optax.set_to_zero()}
    optimizer = optax.partition(rules, partial(jax.tree_util.tree_map_with_path, part))
    training.fit(model, train, variables=weights, optimizer=optimizer)

Classes of unequal sizes: `FitConfig(balanced=True)` draws them equally often,
`objectives.weighted(objective, class_weights)` weighs their losses.

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
parallel.py    devices and processes
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
