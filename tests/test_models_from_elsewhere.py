"""The blocks of docs/models-from-elsewhere.md, each with the first one before it."""

import ast
import pathlib
import re

import pytest

PATH = pathlib.Path(__file__).resolve().parents[1] / "docs/models-from-elsewhere.md"
FIRST, *SECTIONS = re.split("^## ", PATH.read_text(), flags=re.M)


def blocks(text):
    return re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.M | re.S)


(SETUP,) = blocks(FIRST)
BLOCKS = {text.partition("\n")[0]: "".join(blocks(text)) for text in SECTIONS}


def imported(code):
    """Packages that a program imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_runs(name, tmp_path, monkeypatch, capsys):
    for module in imported(BLOCKS[name]):
        package = module.partition(".")[0]
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for code in (SETUP, BLOCKS[name]):
        exec(compile(code, PATH.name, "exec"), namespace)
    assert 0 <= float(capsys.readouterr().out) <= 1
