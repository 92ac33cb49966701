"""Writes constraints.txt: what pip resolves today for each Python given.

    python .ci/lock.py python3.11 python3.12

The first must be Python 3.11 and the second 3.12 or later; nothing is installed.
"""

import json
import pathlib
import subprocess
import sys

EXTRAS = "dev,prepare,cuda13,tpu"
HEADER = "# Tested versions. Written by `make lock`; applied by `make` and `pip -c`.\n"


def resolve(python: str) -> dict[str, str]:
    """Versions, by name, that pip would install for `robjax[EXTRAS]`."""
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    command = [python, "-m", "pip", "install", *options, f".[{EXTRAS}]"]
    report = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found = [item["metadata"] for item in json.loads(report)["install"]]
    return {item["name"]: item["version"] for item in found if item["name"] != "robjax"}


def merge(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """One line a package, two with markers where the Pythons differ."""
    lines = []
    for name in sorted(old.keys() | new.keys(), key=str.lower):
        if old.get(name) == new.get(name):
            lines.append(f"{name}=={old[name]}")
            continue
        for version, marker in ((old.get(name), "<"), (new.get(name), ">=")):
            if version is not None:
                lines.append(f"{name}=={version}; python_version {marker} '3.12'")
    return lines


if __name__ == "__main__":
    lines = merge(resolve(sys.argv[1]), resolve(sys.argv[2]))
    path = pathlib.Path(__file__).resolve().parents[1] / "constraints.txt"
    path.write_text(HEADER + "\n".join(lines) + "\n")
