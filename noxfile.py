"""
Run the whole suite in every environment that the package promises: `make matrix`, or `nox -s NAME` for one of them.

A session makes an environment of one Python and one torch, installs the package as a user does, and writes a row to
docs/versions/. One whose row is green, and of this very source, is not run again, so a run that was stopped goes on
where it was. The default wheels of torch are a download of 2 to 3 GB and take up to 8 GB on the disk: sessions run one
after the other, and `DROP=1` removes each environment once its row is written.

pip installs, not uv: pip's configuration says where a build of torch comes from, and users run `pip install`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import nox

ROWS = Path("docs/versions")
JOBS = os.environ.get("JOBS", "2")


@dataclass(frozen=True)
class Environment:
    """One Python, one torch, and what else has to be held back there."""

    python: str
    torch: str | None  # None: the newest that pip finds
    pins: dict[str, str] = field(default_factory=dict)  # requirement: why

    @property
    def name(self) -> str:
        return f"py{self.python}-torch{self.torch or '-newest'}"


# A pin is a requirement and why it is needed; the table of docs/versions.md repeats it.
NUMPY_1 = {"numpy<2": "torch before 2.3 is built for numpy 1, and exchanges no arrays with numpy 2"}
TRANSFORMERS_4 = {"transformers<5": "later versions disable torch before 2.6"}
TRANSFORMERS_4_38 = {
    "transformers==4.38.*": "as old as torch 2.1",
    "peft==0.13.*": "later versions import names that transformers 4.38 does not have",
    "accelerate<1": "later versions reject arguments that the Trainer of transformers before 4.39 passes",
}

ENVIRONMENTS = [
    Environment("3.10", "2.1.2", {**NUMPY_1, **TRANSFORMERS_4_38}),
    Environment("3.10", "2.4.1", TRANSFORMERS_4),
    Environment("3.11", "2.2.2", {**NUMPY_1, **TRANSFORMERS_4_38, "pyarrow<21": "later versions need numpy 2"}),
    Environment("3.11", "2.13.0", {"-cconstraints.txt": "the versions that `make` installs"}),
    Environment("3.12", "2.8.0"),
    Environment("3.13", None),
]

nox.options.sessions = [environment.name for environment in ENVIRONMENTS]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True


def show_all_of_pyenv() -> None:
    """Let `python3.10` and the like on PATH, where they are pyenv's shims, find every version that pyenv has."""
    if shutil.which("pyenv"):
        names = subprocess.run(["pyenv", "version-name"], capture_output=True, text=True).stdout.strip().split(":")
        every = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout.split()
        os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys([*filter(None, names), *reversed(every)]))


def installed_torch(session: nox.Session) -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    return session.run_install("python", "-c", code, silent=True, log=False).strip()


def install(session: nox.Session, environment: Environment) -> None:
    """Install torch, then the package as a user does, which has to leave that torch alone."""
    stamp = Path(session.virtualenv.location) / ".installed"
    wanted = "\n".join([*environment.pins, Path("setup.cfg").read_text()])
    if stamp.exists() and stamp.read_text() == wanted:
        return
    torch = "torch" if environment.torch is None else f"torch=={environment.torch}"
    # No cache: it would hold every wheel of torch once more. The pins come along, so that nothing is fetched twice.
    numpy = [pin for pin in environment.pins if pin.startswith("numpy")]
    session.install("--no-cache-dir", torch, *numpy)
    before = installed_torch(session)
    session.install("-e", ".[examples,test]", *environment.pins)
    after = installed_torch(session)
    if before != after:
        session.error(f"Expected the installation to leave torch {before} alone, but got {after}.")
    stamp.write_text(wanted)


def run(session: nox.Session, environment: Environment) -> None:
    """Run the suite and write the row. Arguments after `--` choose tests, for a look: they write none."""
    # Not in `create_tmp()`, where tests would find temporary files too, and pytest this project's settings above them.
    row, report = ROWS / f"{environment.name}.json", Path(session.virtualenv.location) / "junit.xml"
    pins = [f"--pin={pin}: {why}" for pin, why in environment.pins.items()]
    script = ["python", "tools/versions_row.py", str(row), *pins]
    tests = [*f"python -m pytest -q -p no:cacheprovider -n {JOBS} --dist loadfile".split(), *session.posargs]
    # Options from outside could leave tests out, and the row would not say so.
    surroundings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTEST_ADDOPTS": ""}
    if session.posargs:
        install(session, environment)
        session.run(*tests, env=surroundings)
        return
    if session.run_install(*script, silent=True, log=False).strip() == "current":
        session.log(f"{row} is green and of this source: nothing to do. To run it again, remove it.")
        return
    install(session, environment)
    session.run(*tests, f"--junitxml={report}", env=surroundings, success_codes=[0, 1])
    session.run(*script, f"--report={report}")
    if os.environ.get("DROP"):
        shutil.rmtree(session.virtualenv.location)
    failed = json.loads(row.read_text())["failed"] if row.exists() else 0
    if failed:
        session.error(f"{failed} tests failed: {row} names them.")


def register(environment: Environment) -> None:
    @nox.session(name=environment.name, python=environment.python, venv_backend="venv")
    def session(session: nox.Session) -> None:
        run(session, environment)


@nox.session(venv_backend="venv")
def dist(session: nox.Session) -> None:
    """Build the sdist and the wheel into dist. An environment of its own: fastNLP pins a rich that twine cannot use."""
    session.install("build", "twine")
    for old in ("build", "dist"):
        shutil.rmtree(old, ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("python", "tools/release.py", success_codes=[0, 1])  # its findings prevent publishing, not building


show_all_of_pyenv()
for environment in ENVIRONMENTS:
    register(environment)
