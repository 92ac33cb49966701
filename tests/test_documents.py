"""The code blocks of the README and of the documentation, page by page.

A block of text after a block of code shows what the code prints, but for numbers.
"""

import functools
import pathlib
import re

import pytest

import robjax

ROOT = pathlib.Path(__file__).resolve().parents[1]
ELSEWHERE = ROOT / "docs/models-from-elsewhere.md"  # has tests of its own


_BLOCK = r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?"


def blocks(text: str) -> list[tuple[str, str]]:
    """Python blocks and what they print; blank lines so that errors name their line."""
    found = []
    for match in re.finditer(_BLOCK, text, re.M | re.S):
        lines_before = text[: match.start(1)].count("\n")
        found.append(("\n" * lines_before + match[1], match[2] or ""))
    return found


def form(printed: str) -> set[str]:
    """The lines without their numbers and spaces."""
    return {re.sub(r"[-+−]?\d[\de.+-]*|\s", "", x) for x in printed.split("\n")} - {"…"}


PAGES = {
    path.relative_to(ROOT).as_posix(): found
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path != ELSEWHERE and (found := blocks(path.read_text()))
}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", PAGES)
def test_code_blocks_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block, shown in PAGES[name]:
        exec(compile(block, name, "exec"), namespace)
        assert form(shown) <= form(capsys.readouterr().out) | {""}


def test_links_lead_to_files():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    documents += [*(ROOT / "experiments").glob("*.md"), ROOT / "benchmarks/README.md"]
    for path in documents:
        links = re.findall(r"\]\((?!\w+:)([^)#\s]+)", path.read_text())
        for link in links:
            there = path.parent / link
            generated = there.parent == ROOT / "docs/api"
            assert generated or there.exists(), f"{path.name}: {link}"


def test_names_in_the_text_exist():
    parts = "|".join(set(robjax.__all__) - {"model", "data"})  # often variables
    pattern = re.compile(rf"`(?:robjax\.)?((?:{parts})(?:\.\w+)+)")
    unknown, seen = [], 0
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        for name in pattern.findall(prose):
            if not name.endswith((".py", ".jsonl")):
                seen += 1
                try:
                    functools.reduce(getattr, name.split("."), robjax)
                except AttributeError:
                    unknown.append((path.name, name))
    assert seen and not unknown
