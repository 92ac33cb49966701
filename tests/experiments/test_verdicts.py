"""The table of verdicts: made from the records, and quoted rightly elsewhere."""

import re

import pytest

from experiments import common, verdicts
from robjax.runs import files

ROOT = verdicts.ROOT


def test_the_table_is_that_of_the_records():
    assert verdicts.TABLE.read_text() == verdicts.page(verdicts.read())


def quoted():
    """Table rows with a verdict outside the table itself."""
    for path in sorted(ROOT.glob("docs/systems/*.md")):
        for line in path.read_text().splitlines():
            if re.search(r"\*\*(held|did not hold)\*\*: ", line):
                yield path.name, line


def test_quoted_verdicts_stand_in_the_table():
    rows = set(verdicts.TABLE.read_text().splitlines())
    found = list(quoted())
    assert {name for name, _ in found} == {
        f"{system}.md"
        for system in (
            "kl",
            "tradeoff",
            "strong_robustness",
            "spurious",
            "interactions",
        )
    }
    assert [(name, row) for name, row in found if row not in rows] == []


def test_every_experiment_is_listed():
    listed = (ROOT / "experiments" / "README.md").read_text()
    modules = [
        path.stem
        for path in sorted(ROOT.glob("experiments/*.py"))
        if "__main__" in path.read_text() and path.stem != "verdicts"
    ]
    assert len(modules) > 25
    assert [name for name in modules if f"| `{name}` |" not in listed] == []


def test_a_report_is_a_record(tmp_path, monkeypatch):
    claims = [
        common.Claim("A holds", "1 | 2", common.HELD),
        common.Claim("B holds", "3", common.FAILED),
    ]
    monkeypatch.setattr(
        "sys.orig_argv", ["python", "-m", "study", "--dataset", "mnist"]
    )
    for data, chosen in {"digits": claims, "mnist": claims[1:]}.items():
        common.write_report(
            tmp_path / data,
            question="Q?",
            claim="",
            setting="",
            claims=chosen,
            drawn={},
        )
        (tmp_path / "recorded" / "study").mkdir(parents=True, exist_ok=True)
        written = files.load_json(tmp_path / data / "claims.json")
        files.save_json(tmp_path / "recorded" / "study" / f"{data}.json", written)
    monkeypatch.setattr(verdicts, "SYSTEMS", {"System": ("study",)})
    page = verdicts.page(verdicts.read(tmp_path / "recorded"))
    assert "| [`study`](#study) | Q? | 1 of 2 digits, 0 of 1 mnist |" in page
    assert "| A holds | **held**: 1 \\| 2 |  |" in page
    assert "| B holds | **did not hold**: 3 | **did not hold**: 3 |" in page
    assert "Of 3 verdicts 1 are that" in page
    assert (
        "python -m study --dataset mnist" in page
    )  # the command that made the records


def test_a_study_under_no_heading_is_an_error(tmp_path, monkeypatch):
    record = {"question": "Q?", "command": "", "claims": []}
    files.save_json(tmp_path / "unheard_of.json", record)
    monkeypatch.setattr(verdicts, "SYSTEMS", {})
    with pytest.raises(ValueError, match=r"differs in \['unheard_of'\]"):
        verdicts.read(tmp_path)
