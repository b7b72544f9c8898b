"""
Install the wheel where another torch is, and run the README's quickstart there, in an empty folder: ``make smoke``.

The installation has to leave that torch alone, and the first program of the README has to run as it stands.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def quickstart(readme: str) -> str:
    """
    Take the quickstart out of a README.

    :param readme: its text.
    :return: the first fenced block of Python below the heading "Quickstart", before the next heading of its level.
    :raises ValueError: if there is no such heading, or no such block below it.
    """
    heading = re.search(r"^(#+) Quickstart *$", readme, re.MULTILINE)
    if heading is None:
        raise ValueError("Expected README.md to have a heading `Quickstart`, but got none.")
    # Within a fence a comment looks like a heading, so fences are gone through before headings are looked for.
    below = re.finditer(r"^```(\w*)\n(.*?)^```|^(#+) ", readme[heading.end() :], re.MULTILINE | re.DOTALL)
    for found in below:
        if found[3] and len(found[3]) <= len(heading[1]):
            break
        if found[1] == "python":
            return found[2]
    raise ValueError("Expected a block ```python below the heading `Quickstart` of README.md, but got none.")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without the settings that let it see this repository."""
    print("$", *command, flush=True)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def smoke(wheel: Path, program: str, torch: str, folder: Path) -> None:
    """
    Try the wheel.

    :param wheel: its file.
    :param program: what has to run.
    :param torch: which version is there beforehand.
    :param folder: where the environment is made.
    """
    python = folder / "env" / "bin" / "python"
    empty = folder / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", folder / "env")
    # The wheel of torch is not kept in pip's cache, which it would fill.
    run(python, "-m", "pip", "install", "-qq", "--no-cache-dir", f"torch=={torch}", "numpy")
    before = run(python, "-c", "import torch; print(torch.__version__, torch.__file__)")
    run(python, "-m", "pip", "install", "-qq", wheel)
    after = run(python, "-c", "import torch; print(torch.__version__, torch.__file__)")
    if before != after:
        sys.exit(f"Expected the wheel to leave torch {before.strip()} alone, but got {after.strip()}.")
    print(f"torch stayed: {after.split()[0]}")
    (empty / "quickstart.py").write_text(program)
    print(run(python, "quickstart.py", cwd=empty), end="")
    where = run(python, "-c", "import fastnlp_adv; print(fastnlp_adv.__version__, fastnlp_adv.__file__)", cwd=empty)
    if str(folder) not in where:
        sys.exit(f"Expected fastnlp_adv of the wheel to run, but got {where.strip()}.")
    print(f"The quickstart ran with fastnlp_adv {where.split()[0]} and torch {after.split()[0]}.")


def main() -> None:
    """Find the wheel and the program, then try them in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="2.4.1", help="the version that is there beforehand (default: %(default)s)")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="where the quickstart is")
    args = parser.parse_args()
    try:
        program = quickstart(args.readme.read_text())
    except ValueError as error:
        sys.exit(str(error))
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"Expected one wheel in dist/, but got {len(wheels)}: `make dist` makes it.")
    with tempfile.TemporaryDirectory() as folder:
        smoke(wheels[0], program, args.torch, Path(folder))


if __name__ == "__main__":
    main()
