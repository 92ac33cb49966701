"""Adversarial training of linear regression, solved exactly, and spurious features.

Moayeri, Banihashem and Feizi, "Explicit tradeoffs between adversarial and natural
distributional robustness", NeurIPS 2022, claim that adversarial training makes a
linear model use features that y does not depend on. The formulas are re-derived here.

    x ~ N(m, Σ), m = 0 unless said    y = ⟨w*, x⟩ + ξ, ξ ~ N(0, σ²)    ‖δ‖_p ≤ ε
    n = ‖w‖_q, q dual to p    s² = σ² + (w − w*)ᵀΣ(w − w*)    c = √(2/π)

**Risk.** An error r = y − ⟨w, x⟩ becomes |r| + εn at worst, by Hölder's inequality. It
is N(0, s²), so E|r| = cs, and the risk is F(s, n) = s² + 2cεsn + ε²n².

**Path.** F = (1 − c²)s² + (cs + εn)² is convex and grows in s and n. So its minimiser
is stationary: 2(1 + cεn/s) Σ(w − w*) + 2ε(cs + εn) g = 0 with g ∈ ∂‖w‖_q. This is the
condition of min ½ (w − w*)ᵀΣ(w − w*) + λ‖w‖_q for λ = ε s (cs + εn)/(s + cεn): ridge
regression (p = 2), the lasso (p = ∞) or ℓ∞-penalised regression (p = 1). Solving for ε
gives n ε² + c(s − λn/s) ε − λ = 0, which has one positive root. So one path holds the
minimisers of all ε, and λ and ε grow together.

**Ends.** At w = 0 any g with ‖g‖_p ≤ 1 will do: ε ≥ ε_max = ‖Σw*‖_p/(c √E y²). Near
λ = 0, w − w* = −λΣ⁻¹g. Without noise λ/s then tends to 1/‖Σ^{−1/2}g‖ and ε to
ε₀ = cλ/s > 0: up to ε₀ the minimiser stays at w*.

    adversarial_risk, risk_gradient, worst_perturbation     any weights, in JAX
    solve, path                       the minimisers for one ε, for many ε
    penalised                         the minimisers for given λ
    eps_of_penalty, penalty_of_eps    the map between λ and ε
    collapse_threshold, plateau       ε_max and ε₀
    core_only, ignores_spurious_condition, shift_price      spurious features
    phase_diagram                     two features, all (ρ, κ, ε) in one call

`norm` is p, that of the attack. Minimisers are solved on the host in float64. Duality
bounds what is left to gain over each, and a bound that is not tiny is a RuntimeError.
"""

from robjax.theory.linear_regression.minimisers import (
    Path,
    collapse_threshold,
    eps_of_penalty,
    path,
    penalised,
    penalty_of_eps,
    plateau,
    solve,
)
from robjax.theory.linear_regression.phase import PhaseDiagram, phase_diagram
from robjax.theory.linear_regression.risk import (
    adversarial_risk,
    risk_gradient,
    worst_perturbation,
)
from robjax.theory.linear_regression.shift import (
    core_only,
    ignores_spurious_condition,
    shift_price,
)

__all__ = [
    "Path",
    "PhaseDiagram",
    "adversarial_risk",
    "collapse_threshold",
    "core_only",
    "eps_of_penalty",
    "ignores_spurious_condition",
    "path",
    "penalised",
    "penalty_of_eps",
    "phase_diagram",
    "plateau",
    "risk_gradient",
    "shift_price",
    "solve",
    "worst_perturbation",
]
