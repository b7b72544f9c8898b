"""
Apply the patches to fastNLP and try the result: `make upstream`, or `python upstream/check.py` in any environment that
has torch, transformers, torchmetrics and pytest. Needs git and pip, and works in build/upstream.

Two versions of fastNLP are tried. 1.0.1 is the source distribution of the package index. `dev0.8.0`, fastNLP's own
tests and its tutorial T8 are only in its repository: FASTNLP names a clone or an address of it. Where it is out of
reach, what needs it is reported as "not run", and T8 is tried by the cells that the patches change.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from patches import EXPORTS, SERIES, lines_of_patches
from results import Results, compare

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "upstream"
NOTEBOOK = "docs/source/tutorials/basic/fastnlp_tutorial_8.ipynb"
OWN_TESTS = ["tests/core/callbacks", "tests/core/controllers"]
NEW_TESTS = [f"tests/core/callbacks/torch_callbacks/test_torch_{name}_callback.py" for name in ("adversarial", "rdrop")]
# Stands in for an environment without torch and what needs it: fastNLP asks find_spec whether they are there.
WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchmetrics", "transformers"):
            raise ModuleNotFoundError("No module named " + name)

sys.meta_path.insert(0, NoTorch())
import fastNLP
assert "torch" not in sys.modules
for name in ("TorchFGMCallback", "TorchPGDCallback", "TorchRDropCallback", "RDropMixin"):
    for package in (fastNLP.core, fastNLP.core.callbacks, fastNLP.core.callbacks.torch_callbacks):
        assert name in package.__all__, (name, package)
    getattr(fastNLP, name)
print("fastNLP " + fastNLP.__version__)
"""


def run(*command, **kwargs):
    return subprocess.run(list(map(str, command)), check=True, **kwargs)


def git(folder, *arguments):
    author = ["-c", "user.name=check", "-c", "user.email=check@localhost", "-c", "core.autocrlf=false"]
    run("git", *author, *arguments, cwd=str(folder))


def find_repository():
    """A clone of fastNLP's repository; ``None`` if it is out of reach and was not asked for."""
    asked = os.environ.get("FASTNLP")
    if asked and Path(asked).is_dir():
        return Path(asked).resolve()
    clone = WORK / "fastNLP.git"
    if not clone.is_dir():
        address = asked or "https://github.com/fastnlp/fastNLP"
        command = ["git", "clone", "-q", "--bare", "--depth", "1", "--no-single-branch", address, str(clone)]
        try:
            run(*command, timeout=600, env=dict(os.environ, GIT_TERMINAL_PROMPT="0"))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            shutil.rmtree(str(clone), ignore_errors=True)
            if asked:
                sys.exit("Expected FASTNLP to be a clone or an address of fastNLP's repository, but got " + asked)
            return None
    return clone


def archive(repository, branch, target, *paths):
    """Unpack some paths of a branch; large figures of the documentation stay where they are."""
    for ref in (branch, "origin/" + branch):
        verify = ["git", "rev-parse", "-q", "--verify", ref]
        if subprocess.run(verify, cwd=str(repository), stdout=subprocess.DEVNULL).returncode == 0:
            break
    else:
        sys.exit(f"Expected the repository {repository} to have the branch {branch}.")
    with tempfile.TemporaryFile() as file:
        run("git", "archive", ref, *paths, cwd=str(repository), stdout=file)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            tar.extractall(str(target))


def sources_1_0_1(target, repository):
    """The source distribution, with the tests of the branch it was made of, which it does not hold."""
    downloads = WORK / "downloads"
    if not list(downloads.glob("*astNLP-1.0.1.tar.gz")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", downloads]
        run(*command, "fastNLP==1.0.1")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(str(next(downloads.glob("*.tar.gz")))) as tar:
            tar.extractall(folder)
        shutil.copytree(str(next(Path(folder).iterdir())), str(target))
    if repository:
        archive(repository, "master", target, "tests")


def sources_dev(target, repository):
    target.mkdir(parents=True)
    archive(repository, "dev0.8.0", target, "fastNLP", "tests", "docs/source/api", NOTEBOOK)


def before_and_after(name, sources, repository, *applied):
    """Two copies of one version, without and with the patches."""
    before, after = WORK / name / "before", WORK / name / "after"
    shutil.rmtree(str(WORK / name), ignore_errors=True)
    sources(before, repository)
    shutil.copytree(str(before), str(after))
    git(after, "init", "-q")
    git(after, "add", "-A", "-f")
    git(after, "commit", "-q", "-m", "fastNLP")
    for arguments in applied:
        git(after, "am", "-q", *map(str, arguments))
    return before, after


def python(tree, *arguments, **kwargs):
    path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
    environment = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env=environment,
        cwd=str(kwargs.pop("cwd", tree)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )


def pytest(tree, report, tests):
    settings = tree / "tests" / "pytest.ini"  # not in the source distribution; then no settings, least of all ours
    options = ["-c", settings if settings.exists() else os.devnull, "--rootdir", tree, "--junitxml", report]
    options += ["-q", "-p", "no:cacheprovider", "-m", "torch", "--continue-on-collection-errors"]
    return python(tree, "-m", "pytest", *options, *tests)


def t8(tree, *paths):
    with tempfile.TemporaryDirectory() as folder:  # T8 writes a cache into the folder that it runs in
        return python(tree, HERE / "t8.py", *paths, cwd=folder)


def try_version(results, name, before, after, has_own_tests):
    results.ran(name + ": import without torch", python(after, "-c", WITHOUT_TORCH))
    results.ran(name + ": new tests", pytest(after, after.parent / "new.xml", NEW_TESTS))
    if not has_own_tests:
        results.not_run(name + ": fastNLP's own tests, before and after", "only its repository has them")
        return
    reports = []
    for tree in (before, after):
        reports.append(tree.parent / (tree.name + ".xml"))
        pytest(tree, reports[-1], OWN_TESTS + ["--ignore=" + test for test in NEW_TESTS])
    results.compared(name + ": fastNLP's own tests, before and after", compare(*reports))


def try_t8(results, repository, dev):
    with tempfile.TemporaryDirectory() as folder:
        for revision, label in (("HEAD~5", "as it is"), ("HEAD~4", "mended"), ("HEAD", "with the callbacks")):
            notebook = Path(folder, "t8.ipynb")
            with notebook.open("w") as file:
                run("git", "show", revision + ":" + NOTEBOOK, cwd=str(dev), stdout=file)
            done = t8(dev, notebook)
            if revision == "HEAD~5":  # it returns a `loss` that it never computed
                results.failed_as_expected("T8 " + label, done, "name 'loss' is not defined")
            else:
                results.ran("T8 " + label, done)


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    results = Results()
    repository = find_repository()
    code = ["--exclude=docs/*", "--exclude=*__init__.py", SERIES[1], SERIES[3]]
    trees = before_and_after("1.0.1", sources_1_0_1, repository, code, EXPORTS)
    results.done("1.0.1: patches apply")
    try_version(results, "1.0.1", *trees, has_own_tests=bool(repository))
    results.ran("T8's new cells, on 1.0.1", t8(trees[1], SERIES[2], SERIES[4]))
    if repository:
        trees = before_and_after("dev0.8.0", sources_dev, repository, SERIES)
        results.done("dev0.8.0: patches apply")
        try_version(results, "dev0.8.0", *trees, has_own_tests=True)
        try_t8(results, repository, trees[1])
    else:
        results.not_run("dev0.8.0, and T8 as a whole", "set FASTNLP to a clone of fastNLP's repository")
    print(lines_of_patches(SERIES + EXPORTS))
    sys.exit(results.summary())


if __name__ == "__main__":
    main()
