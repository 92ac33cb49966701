"""What the experiments on trained networks share: command line, training, report.

A `Study` says which networks it needs, what it claims and what it draws. Its run prints
the claim and an estimate of the cost, trains the networks that no other study has
trained (`networks`), and writes results/<study>/<data set>/: summary.md with the
computed verdicts, claims.json, figures/ (PNG and SVG).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from matplotlib.figure import Figure

from experiments import common, history, networks
from experiments.common import Claim
from experiments.history import History
from experiments.networks import RECIPES, SMOKE, TITLES, Recipe
from robjax.reporting import tables


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What every study can be told on the command line."""

    dataset: Literal["digits", "mnist", "cifar10"] = "digits"
    """Digits needs nothing; the others must have been prepared with TFDS."""
    epochs: int | None = None
    """Passes over the training set. Default: that of the data set."""
    seeds: int = 3
    """Repetitions, at least 2 for verdicts."""
    train_images: int | None = None
    """How many training images. Default: that of the data set."""
    test_images: int | None = None
    """How many test images. Default: that of the data set."""
    full: bool = False
    """The full schedule of the paper (200 epochs, learning rate 0.1 divided by 10) in
    place of the short runs; CIFAR-10 only."""
    smoke: bool = False
    """About a minute on a linear model and one seed, to see that everything works;
    under results/smoke."""
    results: Path = Path("results")
    """Folder of all results."""


Variants = Mapping[str, Mapping[str, Any]]


def by_objective(*names: str) -> Callable[[Arguments], Variants]:
    """Variants of a recipe that differ by what was minimised, by their titles."""
    return lambda arguments: {TITLES[name]: {"objective": name} for name in names}


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment on trained networks.

    Attributes:
      name: of the module and of the folder of its results.
      question: what it is about, one line.
      claim: what the paper says, in words.
      variants: arguments -> {title: changes of the recipe}, which networks it needs.
      judge: what was measured -> claims with their verdicts.
      draw: what was measured -> {file name: figure}.
      collect: the recipes, title -> one for each seed, and the folder of all results ->
        what was measured; by default what was recorded with the networks.
      describe: what was measured -> more of it, in Markdown; by default the final
        accuracies.
      note: further words on the setting.
    """

    name: str
    question: str
    claim: str
    variants: Callable[[Arguments], Variants]
    judge: Callable[[Any], Sequence[Claim]]
    draw: Callable[[Any], Mapping[str, Figure]]
    collect: Callable[[Mapping[str, Sequence[Recipe]], Path], Any] = history.collect
    describe: Callable[[Any], str] = lambda recorded: (
        _accuracies(recorded) if isinstance(recorded, History) else ""
    )
    note: str = ""


def each_network(
    measure: Callable[[Recipe, Any, networks.Splits], Any],
) -> Callable[[Mapping[str, Sequence[Recipe]], Path], dict[str, list[Any]]]:
    """A `collect` that measures every network on its own, (recipe, logits_fn, splits).

    It gives title -> what was measured of the network of each seed.
    """

    def collect(
        recipes: Mapping[str, Sequence[Recipe]], results: Path
    ) -> dict[str, list[Any]]:
        splits = networks.load_splits(next(iter(recipes.values()))[0])

        def one(recipe: Recipe) -> Any:
            folder = networks.obtain(recipe, results)
            return measure(recipe, networks.train(recipe, folder, splits), splits)

        return {
            title: [one(recipe) for recipe in row] for title, row in recipes.items()
        }

    return collect


def recipes(study: Study, arguments: Arguments) -> dict[str, list[Recipe]]:
    """The networks that the study needs: title -> one recipe for each seed.

    Raises:
        ValueError: fewer than one seed or epoch, or `full` for another data set than
          CIFAR-10.
    """
    if arguments.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {arguments.seeds}")
    base, seeds = _base(arguments), arguments.seeds
    changes: dict[str, Any] = {}
    if arguments.smoke:
        changes, seeds = dict(SMOKE), 1
        changes["fit"] = dataclasses.replace(base.fit, epochs=1, batch_size=64)
    if arguments.epochs is not None:
        fit = changes.get("fit", base.fit)
        changes["fit"] = dataclasses.replace(fit, epochs=arguments.epochs)
    for name in ("train_images", "test_images"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)

    def one(variant: Mapping[str, Any], seed: int) -> Recipe:
        recipe = dataclasses.replace(base, **{**variant, **changes})
        fit = dataclasses.replace(recipe.fit, seed=seed)
        return dataclasses.replace(recipe, fit=fit)

    return {
        title: [one(variant, seed) for seed in range(seeds)]
        for title, variant in study.variants(arguments).items()
    }


def _base(arguments: Arguments) -> Recipe:
    recipe = RECIPES[arguments.dataset]
    if not arguments.full:
        return recipe
    if arguments.dataset != "cifar10":
        raise ValueError(
            f"full must be False, the default, for all data sets but cifar10, got True "
            f"for {arguments.dataset}"
        )
    return dataclasses.replace(recipe, fit=networks.FULL_CIFAR10)


def run(study: Study, arguments: Arguments) -> Path:
    """Runs the study and returns the folder of its results."""
    chosen = recipes(study, arguments)
    every = [recipe for row in chosen.values() for recipe in row]
    results = common.results_of(arguments)
    description = (
        f"{study.question}\nClaim: {study.claim}\n"
        + networks.describe(every, results)
    )  # fmt: skip
    print(description, flush=True)
    recorded = study.collect(chosen, results)
    folder = results / study.name / arguments.dataset
    common.write_report(
        folder,
        question=study.question,
        claim=study.claim,
        setting=arguments.smoke * common.SMOKE + f"{_setting(every)} {study.note}",
        claims=study.judge(recorded),
        drawn=study.draw(recorded),
        rest=study.describe(recorded),
        record={"networks": [r.folder(results).name for r in every]},
    )
    return folder


def _setting(every: Sequence[Recipe]) -> str:
    first, models = every[0], sorted({recipe.model for recipe in every})
    images = first.train_images or "all"
    return (
        f"{', '.join(models)} on {first.dataset}, {images} training images, "
        f"{first.fit.epochs} epochs, Linf eps = {first.eps:.3g}, "
        f"{len({recipe.fit.seed for recipe in every})} seeds."
    )


def _accuracies(recorded: History) -> str:
    attacks = list(next(iter(recorded.final.values())))
    rows = [
        [title, *(tables.plus_minus(rates[a], unit="%") for a in attacks)]
        for title, rates in recorded.final.items()
    ]
    table = tables.markdown(["final networks, test images", *attacks], rows)
    return f"{table}"


def main(study: Study) -> None:
    """The command line `python -m experiments.<study>`."""
    run(study, tyro.cli(Arguments, prog=f"python -m experiments.{study.name}"))
