"""The code blocks of the README and of CONTRIBUTING, one after the other."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def blocks(text: str) -> list[str]:
    """The Python blocks, each preceded by blank lines so that errors name its line."""
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
        lines_before = text[: match.start(1)].count("\n")
        found.append("\n" * lines_before + match[1])
    return found


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_code_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    found = blocks((ROOT / name).read_text())
    assert len(found) >= 4
    for block in found:
        exec(compile(block, name, "exec"), namespace)
