"""Cost of the exact theory of adversarial linear regression.

    python -m benchmarks.linear_regression [--features 100] [--radii 200]

The path of minimisers over many radii at d features, the phase diagram of 10,000
problems with two features, and one evaluation of the adversarial risk. The peer of the
path is direct optimisation: one run of L-BFGS for each radius with exact gradients (on
max |w_i| and Σ |w_i| it stops early; its excess risk is printed).
"""

import argparse
import functools

import numpy as np
from scipy import optimize

from benchmarks import timing
from robjax.theory import linear_regression
from robjax.theory.linear_regression.minimisers import Path

C = np.sqrt(2 / np.pi)
DUAL = {1: np.inf, 2: 2, np.inf: 1}


def problem(d: int) -> dict[str, np.ndarray]:
    """Half core, half spurious features, correlated."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(d, 2 * d))
    w_star = rng.normal(size=d) * (np.arange(d) < d // 2)
    return {"covariance": factor @ factor.T / (2 * d), "w_star": w_star}


def direct(run: dict, norm: float, eps: float) -> float:
    """The risk that L-BFGS reaches from w*."""
    covariance = run["covariance"]
    target = run["w_star"]

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        slope = covariance @ (w - target)
        spread = np.sqrt(run["noise"] ** 2 + (w - target) @ slope)
        size = float(np.linalg.norm(w, ord=DUAL[norm]))
        along = np.sign(w)
        if norm == 2:
            along = w / max(size, 1e-300)
        if norm == 1:
            along = along * (np.arange(len(w)) == np.abs(w).argmax())
        gradient = 2 * (1 + C * eps * size / spread) * slope
        gradient = gradient + 2 * eps * (C * spread + eps * size) * along
        risk = spread**2 + 2 * C * eps * spread * size + (eps * size) ** 2
        return float(risk), gradient

    return float(optimize.minimize(value, target, jac=True, method="L-BFGS-B").fun)


def path_row(d: int, radii: int, norm: float, rounds: int) -> str:
    """One norm: the whole path, and direct optimisation at 5 radii."""
    run = {**problem(d), "noise": 0.3}
    top = linear_regression.collapse_threshold(**run, norm=norm)
    eps = np.linspace(0, top, radii)
    few = eps[:: radii // 5]
    found = timing.compare(
        {
            "path": functools.partial(linear_regression.path, eps, **run, norm=norm),
            "direct": lambda: [direct(run, norm, one) for one in few],
        },
        rounds,
    )
    line: Path = linear_regression.path(few, **run, norm=norm)
    reached = np.array([direct(run, norm, one) for one in few])
    excess = (reached / line.risk - 1).max()
    path = found["path"].best
    peer = found["direct"].best * radii / len(few)
    gap = (line.gap / line.risk).max()
    return f"| {norm:g} | {path:.3f} | {peer:.2f} | {gap:.0e} | {excess:.0e} |"


def phase_row(norm: float, rounds: int) -> str:
    """10,000 problems over (ρ, κ, ε)."""
    grid = np.meshgrid(
        np.linspace(-1, 1, 25),
        np.geomspace(0.1, 10, 20),
        np.linspace(0, 2, 20),
        indexing="ij",
    )
    names = dict(zip(("rho", "kappa", "eps"), grid, strict=True))
    run = functools.partial(
        linear_regression.phase_diagram, **names, noise=0.3, norm=norm
    )
    seconds = timing.compare({"phase": run}, rounds)["phase"].best
    return f"| {norm:g} | {grid[0].size} | {seconds:.3f} |"


def main() -> None:
    """Prints two Markdown tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--radii", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"Measured on {timing.environment()}\n")

    print(f"{args.radii} radii, {args.features} features\n")
    print("| norm | path s | L-BFGS s, scaled | duality gap | L-BFGS excess risk |")
    print("|---|---|---|---|---|")
    for norm in (1, 2, np.inf):
        print(path_row(args.features, args.radii, norm, args.rounds), flush=True)

    print("\n| norm | problems of two features | s |\n|---|---|---|")
    for norm in (1, 2, np.inf):
        print(phase_row(norm, args.rounds), flush=True)


if __name__ == "__main__":
    main()
