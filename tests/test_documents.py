"""The code blocks of the README and of the documentation, page by page."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ELSEWHERE = ROOT / "docs/models-from-elsewhere.md"  # has tests of its own


def blocks(text: str) -> list[str]:
    """The Python blocks, each preceded by blank lines so that errors name its line."""
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
        lines_before = text[: match.start(1)].count("\n")
        found.append("\n" * lines_before + match[1])
    return found


PAGES = {
    path.relative_to(ROOT).as_posix(): found
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path != ELSEWHERE and (found := blocks(path.read_text()))
}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", PAGES)
def test_code_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in PAGES[name]:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "experiments/README.md", "benchmarks/README.md"],
)
def test_links_outside_the_site_lead_to_files(name):
    """Sphinx follows those of docs/."""
    page = ROOT / name
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []
