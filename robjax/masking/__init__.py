"""Gradient masking: is the model robust, or does it only hide its gradient?

    report = masking.check(logits_fn, x, y, key=key, ball=Linf(8 / 255))
    print(report)

The battery goes through these files, in this order:

    battery.py     `check`: runs the probes and collects what the checks find
    probes.py      what is measured of the model
    thresholds.py  from measurements to flags: every threshold, with its reason
    report.py      what each check asks and advises, and the report

Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", ICML
2018; Carlini et al., "On evaluating adversarial robustness", 2019; Croce et al.,
"Evaluating the adversarial robustness of adaptive test-time defenses", ICML 2022;
Pintor et al., "Indicators of attack failure", NeurIPS 2022.
"""

from robjax.masking.battery import check
from robjax.masking.report import CHECKS, Check, MaskingReport

__all__ = ["CHECKS", "Check", "MaskingReport", "check"]
