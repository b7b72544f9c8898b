"""
Try the wheel in fresh environments: `make smoke`, or `make smoke ARGS='--only loop'` for one of two parts.

`quickstart`: beside another torch, with all requirements. The installation has to leave that torch alone, and the first
program of the README has to run as it stands.

`loop`: without fastNLP, by `pip install --no-deps` beside a new rich. Importing has to be quick and quiet, and methods
have to train in a plain loop.
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
#: the parts, and the version of torch in each
PARTS = {"quickstart": "2.4.1", "loop": "2.13.0"}
#: how long importing may take beyond torch
MOST_SECONDS = 0.4
IMPORT = """\
import time, torch
start = time.perf_counter()
import fastnlp_adv
print(time.perf_counter() - start)
"""


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


def run(*command: str | Path, cwd: Path | None = None, stderr: int | None = None) -> str:
    """Run a command without the settings that let it see this repository."""
    print("$", *command, flush=True)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, check=True, stdout=subprocess.PIPE, stderr=stderr, text=True
    ).stdout


def environment(folder: Path, *requirements: str) -> Path:
    """Make an environment and return its Python."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    # The wheel of torch is not kept in pip's cache, which it would fill.
    run(python, "-m", "pip", "install", "-qq", "--no-cache-dir", *requirements)
    return python


def try_quickstart(wheel: Path, program: str, torch: str, folder: Path) -> None:
    """
    Run the README's quickstart in an environment that has a torch already.

    :param wheel: its file.
    :param program: what has to run.
    :param torch: which version is there beforehand.
    :param folder: where the environment is made.
    """
    python = environment(folder / "env", f"torch=={torch}", "numpy")
    empty = folder / "empty"
    empty.mkdir()
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


def try_loop(wheel: Path, torch: str, folder: Path) -> None:
    """Train without fastNLP; for the arguments see :func:`try_quickstart`."""
    python = environment(folder / "env", f"torch=={torch}", "numpy", "rich>=15")
    before = run(python, "-m", "pip", "freeze")
    run(python, "-m", "pip", "install", "-qq", "--no-deps", wheel)
    after = [line for line in run(python, "-m", "pip", "freeze").splitlines() if not line.startswith("fastnlp_adv")]
    if after != before.splitlines():
        sys.exit(f"Expected `--no-deps` to leave everything alone, but got {set(after) ^ set(before.splitlines())}.")
    print(*(line for line in after if line.startswith(("rich", "torch"))), sep=", ")
    print(run(python, "-W", "error", ROOT / "tools" / "smoke_loop.py", cwd=folder), end="")
    found = [run(python, "-W", "error", "-c", IMPORT, cwd=folder, stderr=subprocess.STDOUT) for _ in range(3)]
    if not all(re.fullmatch(r"[\d.]+\n", each) for each in found):
        sys.exit(f"Expected importing to print nothing, but got {found[0]}")
    seconds = min(map(float, found))
    print(f"Importing fastnlp_adv took {seconds:.2f} s beyond torch.")
    if seconds > MOST_SECONDS:
        sys.exit(f"Expected at most {MOST_SECONDS} s, but got {seconds:.2f}.")


def main() -> None:
    """Find the wheel and the program, then try them in folders that are removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one of the parts; `loop` is the cheaper one")
    parser.add_argument("--torch", help="the version that is there beforehand, instead of each part's own")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="where the quickstart is")
    args = parser.parse_args()
    try:
        program = quickstart(args.readme.read_text())
    except ValueError as error:
        sys.exit(str(error))
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"Expected one wheel in dist/, but got {len(wheels)}: `make dist` makes it.")
    for part in [args.only] if args.only else PARTS:
        torch = args.torch or PARTS[part]
        with tempfile.TemporaryDirectory() as folder:
            if part == "quickstart":
                try_quickstart(wheels[0], program, torch, Path(folder))
            else:
                try_loop(wheels[0], torch, Path(folder))


if __name__ == "__main__":
    main()
