"""
The environments of fastNLP's own CI, and its linters: `nox -f upstream/noxfile.py`, or `-s NAME` for one of them.

FASTNLP names a clone or an address of fastNLP's repository, as for `make upstream`. The wheels of torch are a download
of 0.8 GB each.
"""

import nox

# virtualenv no longer makes environments of Python 3.7.
nox.options.default_venv_backend = "venv"
nox.options.envdir = "../build/upstream/nox"
nox.options.error_on_missing_interpreters = True
# fastNLP's requirements, and what its tests and T8 need besides.
REQUIREMENTS = ["packaging", "prettytable", "regex", "requests", "rich==12.6.0", "setuptools<82", "pytest"]


def check(session, torch, *others):
    session.install(f"torch=={torch}")
    session.install(*REQUIREMENTS, "torchmetrics==0.8.2", *others)
    session.run("python", "check.py", *session.posargs)


@nox.session(name="torch-1.12", python="3.9")
def torch_1_12(session):
    """torch 1.12 on Python 3.9."""
    check(session, "1.12.0", "numpy<2", "transformers==4.30.2")


@nox.session(name="torch-1.6", python="3.7")
def torch_1_6(session):
    """torch 1.6 on Python 3.7."""
    check(session, "1.6.0", "transformers==4.18.0")


@nox.session(python="3.9")
def lint(session):
    """The hooks of fastNLP's pre-commit, in their versions and with their arguments, on the new files."""
    session.install(
        "flake8==4.0.1",
        "yapf==0.32.0",
        "codespell==2.2.1",
        "pre-commit-hooks==4.2.0",
        "docformatter==1.4",
        "mypy==0.991",
        "types-requests",
        "packaging",
    )
    session.run("python", "lint.py", *session.posargs)
