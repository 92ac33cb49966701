"""Writes docs/verdicts.md, the table of all verdicts, from the records.

    python -m experiments.verdicts

A record is the claims.json of a run in earnest. It lies in experiments/recorded/ under
the name of the folder in results/ that it was copied from:

    cp results/transfer/mnist/claims.json experiments/recorded/transfer/mnist.json

A test compares the written table with the records.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import common
from robjax.reporting import tables
from robjax.runs import files

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "experiments" / "recorded"
TABLE = ROOT / "docs" / "verdicts.md"

SYSTEMS = {
    "The KL metric and its parts": ("kl_metric", "nonlinearity"),
    "Robustness against accuracy": (
        "gaussian_tradeoff",
        "transfer",
        "linear_features",
        "sample_size",
        "saliency",
    ),
    "Strong-robustness": (
        "unnecessary_feature",
        "feature_space_cases",
        "hardening",
        "arc_table",
        "deepcloak",
    ),
    "Backgrounds and spurious features": (
        "regression_spurious",
        "group_robustness",
        "preserved_correlation",
        "background_reliance",
    ),
    "Interactions between parts of an image": (
        "interaction_orders",
        "utility_by_order",
        "other_classes",
        "disentanglement",
        "frequencies",
        "rank_reduction",
        "attack_iterations",
        "dropout_cutout",
        "recoverability",
        "detection",
    ),
    "Attacks and proofs": ("bracket",),
}
"""Heading -> studies, in the order of the table."""


class Record(NamedTuple):
    """One run: its question, the command, and claims with their verdicts."""

    question: str
    command: str
    claims: Sequence[common.Claim]

    @property
    def score(self) -> str:
        """How many of the claims held, in words."""
        held = sum(claim.verdict == common.HELD for claim in self.claims)
        return f"{held} of {len(self.claims)}"


Records = Mapping[str, Mapping[str, Record]]
"""Study -> data set ("" for a study without one) -> record."""


def read(folder: Path = RECORDED) -> Records:
    """All records of a folder, data sets by name.

    Raises:
        ValueError: a study stands under no heading, or a heading has no record of it.
    """
    found: dict[str, dict[str, Record]] = {}
    for path in sorted(folder.rglob("*.json")):
        study, *data = path.relative_to(folder).with_suffix("").parts
        found.setdefault(study, {})["/".join(data)] = _record(files.load_json(path))
    listed = {study for studies in SYSTEMS.values() for study in studies}
    if found.keys() != listed:
        raise ValueError(
            "SYSTEMS must name the studies that are recorded, differs in "
            f"{sorted(found.keys() ^ listed)}"
        )
    return found


def _record(loaded: Mapping[str, Any]) -> Record:
    claims = [common.Claim(**claim) for claim in loaded["claims"]]
    return Record(loaded["question"], loaded["command"], claims)


def page(records: Records) -> str:
    """The whole page, Markdown."""
    every = [record for of_data in records.values() for record in of_data.values()]
    claims = [claim for record in every for claim in record.claims]
    held = sum(claim.verdict == common.HELD for claim in claims)
    sections = "\n".join(
        f"## {title}\n\n" + "\n".join(_section(s, records[s]) for s in studies)
        for title, studies in SYSTEMS.items()
    )
    return (
        "# All verdicts\n\n"
        "*Written by `python -m experiments.verdicts` from experiments/recorded/; "
        f"changes by hand are lost.*\n\n{common.VERDICTS} Of {len(claims)} verdicts "
        f"{held} are that the claim held.\n\n{_overview(records)}\n{sections}"
    )


def _overview(records: Records) -> str:
    def scores(study: str) -> str:
        return ", ".join(
            f"{record.score} {data}".strip() for data, record in records[study].items()
        )

    studies = [study for row in SYSTEMS.values() for study in row]
    rows = [
        (f"[`{s}`](#{s})", next(iter(records[s].values())).question, scores(s))
        for s in studies
    ]
    return tables.markdown(["study", "question", "claims that held"], rows)


def _section(study: str, of_data: Mapping[str, Record]) -> str:
    """A row for each statement, in the order of the records, a column for each set."""
    statements = dict.fromkeys(
        claim.statement for record in of_data.values() for claim in record.claims
    )
    cells = [
        {c.statement: f"**{c.verdict}**: {c.measured}" for c in record.claims}
        for record in of_data.values()
    ]
    header = ["claim", *(data or "measured" for data in of_data)]
    rows = [(s, *(column.get(s, "") for column in cells)) for s in statements]
    commands = "\n".join(f"    {record.command}" for record in of_data.values())
    return f"### {study}\n\n{commands}\n\n{tables.markdown(header, rows)}"


def main() -> None:
    """Writes the table."""
    files.save_text(TABLE, page(read()))
    print(TABLE)


if __name__ == "__main__":
    main()
