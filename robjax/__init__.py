"""robjax: measure, explain and train the adversarial robustness of classifiers.

A model is a function from images [B, *S] to logits [B, K]; any callable will do.

    robjax.balls       threat models: Linf, L2, L1
    robjax.attacks     adversarial examples
    robjax.evaluation  robust accuracy over a data set, sample by sample
    robjax.masking     is the model robust, or does it only hide its gradient?
    robjax.certification  proofs that no attack can succeed
    robjax.metrics     why a model is (not) robust
    robjax.theory      closed forms
    robjax.training    objectives and a data-parallel trainer
    robjax.models      networks of the papers; robjax.data: data sets
    robjax.compose     models made of models; robjax.corruptions: noise, blur, weather
    robjax.diagnose    all of it in one call, and a report

``import robjax`` makes all of them reachable and loads each when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robjax import (
        attacks,
        balls,
        certification,
        checks,
        compose,
        corruptions,
        data,
        evaluation,
        losses,
        lowering,
        masking,
        metrics,
        model,
        models,
        numerics,
        reporting,
        runs,
        samples,
        theory,
        traced,
        training,
    )
    from robjax.diagnose import diagnose

__version__ = "0.1.0"

__all__ = [
    "attacks",
    "balls",
    "certification",
    "checks",
    "compose",
    "corruptions",
    "data",
    "diagnose",
    "evaluation",
    "losses",
    "lowering",
    "masking",
    "metrics",
    "model",
    "models",
    "numerics",
    "reporting",
    "runs",
    "samples",
    "theory",
    "traced",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"robjax.{name}")
    raise AttributeError(f"module 'robjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
