"""Writes constraints.txt: what pip resolves today for each Python given.

    python .ci/lock.py python3.11 python3.12 python3.13

The Pythons come in rising order; the last one speaks for all newer ones. Nothing is
installed.
"""

import json
import pathlib
import subprocess
import sys

EXTRAS = "dev,prepare,cuda13,tpu"
HEADER = "# Tested versions. Written by `make lock`; applied by `make` and `pip -c`.\n"


def version_of(python: str) -> str:
    """The version of an interpreter, as '3.12'."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().strip()


def resolve(python: str) -> dict[str, str]:
    """Versions, by name, that pip would install for `robjax[EXTRAS]`."""
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    command = [python, "-m", "pip", "install", *options, f".[{EXTRAS}]"]
    report = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found = [item["metadata"] for item in json.loads(report)["install"]]
    return {item["name"]: item["version"] for item in found if item["name"] != "robjax"}


def merge(found: dict[str, dict[str, str]]) -> list[str]:
    """One line a package, several with markers where the Pythons differ."""
    pythons = list(found)
    names = {name for versions in found.values() for name in versions}
    lines = []
    for name in sorted(names, key=str.lower):
        versions = [found[python].get(name) for python in pythons]
        if len(set(versions)) == 1:
            lines.append(f"{name}=={versions[0]}")
            continue
        start = 0
        for end in range(1, len(pythons) + 1):
            if end < len(pythons) and versions[end] == versions[start]:
                continue
            if versions[start] is not None:
                lower = f"python_version >= '{pythons[start]}'" if start else ""
                last = end == len(pythons)
                upper = "" if last else f"python_version < '{pythons[end]}'"
                marker = " and ".join(filter(None, (lower, upper)))
                lines.append(f"{name}=={versions[start]}; {marker}")
            start = end
    return lines


if __name__ == "__main__":
    found = {version_of(python): resolve(python) for python in sys.argv[1:]}
    path = pathlib.Path(__file__).resolve().parents[1] / "constraints.txt"
    path.write_text(HEADER + "\n".join(merge(found)) + "\n")
