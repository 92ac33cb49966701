"""robjax: measure, explain and train the adversarial robustness of classifiers.

A model is a function from images [B, *S] to logits [B, K]; any callable will do.

    robjax.balls       threat models: Linf, L2, L1
    robjax.attacks     adversarial examples
    robjax.metrics     why a model is (not) robust
    robjax.training    objectives and a data-parallel trainer
    robjax.evaluation  robust accuracy over a data set, sample by sample
    robjax.models      networks of the papers; robjax.data: data sets
"""

__version__ = "0.1.0"
