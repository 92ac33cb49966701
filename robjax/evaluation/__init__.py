"""Robust accuracy that can be trusted, under attacks that the caller names.

    evaluate               clean and robust accuracy over a data set, sample by sample
    robust_accuracy_curve  robust accuracy for many radii
    bracket                between what is proven and what is attacked
    audited                the answer of an expensive suite at the price of a cheap one
    doubts                 reasons to distrust any number on a model, before an attack
    corruption_table       accuracy under common corruptions
    transfer               which models the images made against one of them fool

An evaluation goes through these files, in this order:

    evaluate.py   reads the result off the record of a run
    arguments.py  checks of data, attacks and balls
    batches.py    what is attacked, and how it makes up batches
    loop.py       the loop over attacks and batches, which can be killed and resumed
    store.py      the files of a run: which batches are done
    attack.py     what an attack is: how it is called, what it returns
    verdicts.py   one attack on one batch, and what counts as fooled
    sharding.py   how several devices divide a batch
    warnings.py   reasons to distrust the result, and what to do
    probe.py      what these take to know: repeated passes, input gradients
    tables.py     the result
    curves.py     robust accuracy over the radius
    brackets.py   an evaluation and a certificate together
    audit.py      an expensive suite on a sample of what a cheap one leaves
    corruption.py accuracy by kind and severity of corruption
    transfer.py   images made against one model, shown to others
"""

from robjax.evaluation.attack import Attack, gradient_free
from robjax.evaluation.audit import Audit, audited, broken_among
from robjax.evaluation.brackets import Bracket, bracket
from robjax.evaluation.corruption import CorruptionTable, corruption_table
from robjax.evaluation.curves import (
    Curve,
    curve_from_distances,
    robust_accuracy_curve,
)
from robjax.evaluation.evaluate import evaluate
from robjax.evaluation.tables import AttackTable, Estimate, Evaluation, proportion
from robjax.evaluation.transfer import Transfer, transfer
from robjax.evaluation.warnings import doubts

__all__ = [
    "Attack",
    "AttackTable",
    "Audit",
    "Bracket",
    "CorruptionTable",
    "Curve",
    "Estimate",
    "Evaluation",
    "Transfer",
    "audited",
    "bracket",
    "broken_among",
    "corruption_table",
    "curve_from_distances",
    "doubts",
    "evaluate",
    "gradient_free",
    "proportion",
    "robust_accuracy_curve",
    "transfer",
]
