"""The notebooks: valid files without outputs, and their code runs from top to bottom.

The cells of a notebook run one after the other in one namespace, in this process. That
is what a kernel does, but for lines with % and the display of what a cell ends with.
"""

import json
import pathlib

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest

matplotlib.use("agg")  # opens no window

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ["quick_start", "anatomy", "reproduce_a_claim"]


def test_all_notebooks_are_tested():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_and_says_nothing_of_a_machine(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    nbformat.validate(notebook)
    assert len(notebook["cells"]) <= 15
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", NAMES)
def test_the_cells_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    cells = 0
    for cell in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = [line for line in cell["source"] if not line.startswith("%")]
            source = "".join(lines)
            exec(compile(source, f"{name}.ipynb {cell['id']}", "exec"), namespace)
            cells += 1
    assert cells >= 3
    plt.close("all")
