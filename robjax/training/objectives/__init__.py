"""What training minimises: one function for each objective.

    objective(network, images, labels, *, keys, strength) -> losses, metrics, network

It takes floating images [B, *S], labels [B] and one PRNG key for each sample [B]. It
gives losses [B] (nats, averaged by the trainer), metrics {name: [B]} to be logged, and
the network with its new running statistics. Hyper-parameters are further keywords,
bound with `functools.partial`:

    functools.partial(objectives.trades, ball=Linf(8 / 255), beta=6.0)

A new objective is a new function of this form in any file; nothing registers it. One
that has a keyword `groups` is given the groups [B] of the data set, too, and what it
puts into `network.variables["groups"]` is there in the next step.

The attacks run on the network's current weights, held constant. `strength` in [0, 1]
is the traced warm-up of the threat model: it multiplies ε and the step size. Without a
warm-up, adversarial training at a large ε can stay at the constant classifier.

    network.py       the network that an objective is given
    adversarial.py   standard, adversarial, trades, mart, awp, n_fgsm
    certified.py     ibp, crown_ibp
    fisher.py        fisher_trace, fisher_spectral
    features.py      siamese, feature_matching
    smoothness.py    noise_augmentation, stability, vat
    groups.py        group_dro
    wrappers.py      weighted, smoothed, augmented: around any of them

FreeAT, which takes several steps on each batch, is `FitConfig.replays`.
"""

from robjax.training.objectives.adversarial import (
    AUTHORS_BALL,
    adversarial,
    awp,
    mart,
    n_fgsm,
    standard,
    trades,
)
from robjax.training.objectives.certified import crown_ibp, ibp
from robjax.training.objectives.features import feature_matching, siamese
from robjax.training.objectives.fisher import fisher_spectral, fisher_trace
from robjax.training.objectives.groups import group_dro
from robjax.training.objectives.network import AttackMode, Network, Objective
from robjax.training.objectives.smoothness import noise_augmentation, stability, vat
from robjax.training.objectives.wrappers import augmented, smoothed, weighted

__all__ = [
    "AUTHORS_BALL",
    "AttackMode",
    "Network",
    "Objective",
    "adversarial",
    "augmented",
    "awp",
    "crown_ibp",
    "feature_matching",
    "fisher_spectral",
    "fisher_trace",
    "group_dro",
    "ibp",
    "mart",
    "n_fgsm",
    "noise_augmentation",
    "siamese",
    "smoothed",
    "stability",
    "standard",
    "trades",
    "vat",
    "weighted",
]
