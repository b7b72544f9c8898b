"""Publishing: the files for GitHub and Read the Docs agree with setup.cfg, and a release names what it lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from email import message_from_string
from pathlib import Path

import pytest
import release
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = RawConfigParser()
CONFIG.read(ROOT / "setup.cfg", encoding="utf-8")
PYTHONS = re.findall(r"Python :: (3\.\d+)", CONFIG["metadata"]["classifiers"])
ADDRESS = "https://forge.example/someone/fastnlp_adv"


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_the_matrix_and_the_requirement_have_every_supported_python():
    assert load(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert list(dict.fromkeys(re.findall(r'^    Environment\(\s*"([\d.]+)"', text, re.MULTILINE))) == PYTHONS
    assert CONFIG["options"]["python_requires"] == f">={PYTHONS[0]}"


def test_the_workflow_runs_targets_of_the_makefile():
    jobs = load(".github/workflows/tests.yml")["jobs"].values()
    targets = {step["run"].removeprefix("make ") for job in jobs for step in job["steps"] if "run" in step}
    assert targets == {"lint", "docs", "test"}
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_pages_are_built_on_the_python_of_the_constraints():
    main = re.search(r"Python (3\.\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"))[1]
    steps = load(".github/workflows/tests.yml")["jobs"]["lint-and-docs"]["steps"]
    assert [step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})] == [main]
    assert load(".readthedocs.yaml")["build"]["tools"]["python"] == main


def test_read_the_docs_builds_the_pages_of_make_docs():
    settings = load(".readthedocs.yaml")
    assert (ROOT / settings["sphinx"]["configuration"]).exists() and settings["sphinx"]["fail_on_warning"] is True
    extras = re.findall(r"\.\[(\w+)\]", " ".join(settings["build"]["jobs"]["install"]))
    assert extras == ["docs"] and CONFIG.has_option("options.extras_require", "docs")


@pytest.mark.parametrize("name", ["bug", "method", "question"])
def test_an_issue_form_has_fields_of_its_own(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"] and form["description"] and form["labels"] == [name]
    assert {field["type"] for field in form["body"]} <= {"textarea", "input", "checkboxes"}
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names) and all(field["attributes"]["label"] for field in form["body"])
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_files_that_forms_name_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github").rglob("*.*"))
    named = set(re.findall(r"[\w/]+\.(?:md|txt|cfg)\b", text))
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_the_citation_is_that_of_the_last_release():
    citation = load("CITATION.cff")
    assert (citation["version"], str(citation["date-released"])) == release.last_release()
    assert citation["license"] == CONFIG["metadata"]["license"]
    assert [author["name"] for author in citation["authors"]] == [CONFIG["metadata"]["author"]]


@pytest.fixture
def root(tmp_path):
    """A copy of what is checked, ready to publish."""
    for name in ("setup.cfg", "setup.py", "CHANGELOG.md", "CITATION.cff", "README.md", "fastnlp_adv/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    edit(tmp_path / "setup.cfg", r"^repository =.*$", f"repository = {ADDRESS}")
    edit(tmp_path / "fastnlp_adv" / "__init__.py", r'^__version__ = ".*"$', '__version__ = "9.0"')
    edit(tmp_path / "CHANGELOG.md", r"^## \[Unreleased\]$", "## [Unreleased]\n\n## [9.0] - 2031-02-03")
    edit(tmp_path / "CITATION.cff", r"^version: .*$", f"version: 9.0\nrepository-code: {ADDRESS}")
    edit(tmp_path / "CITATION.cff", r"^date-released: .*$", "date-released: 2031-02-03")
    return tmp_path


def edit(path, pattern, replacement):
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text, encoding="utf-8")


def test_nothing_is_lacking_once_all_is_there(root):
    assert release.lacking(root) == []


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "says"),
    [
        ("setup.cfg", r"^repository =.*$", "repository = https://other", "CITATION.cff: expected `repository-code"),
        ("CITATION.cff", r"^repository-code: .*\n", "", "but got None"),
        ("fastnlp_adv/__init__.py", r'"9\.0"', '"9.1.dev0"', "expected a dated section for 9.1.dev0"),
        ("CITATION.cff", r"^date-released: .*$", "date-released: 2031-02-04", "expected the version and date"),
        ("CHANGELOG.md", r"^## \[Unreleased\]$", "## [Unreleased]\n\n### Added\n", "[Unreleased] has entries"),
    ],
)
def test_a_release_names_what_it_lacks(name, pattern, replacement, says, root):
    edit(root / name, pattern, replacement)
    assert [says in sentence for sentence in release.lacking(root)] == [True]


def test_without_an_address_nothing_is_ready(root):
    edit(root / "setup.cfg", r"^repository =.*$", "repository =")
    edit(root / "CITATION.cff", r"^repository-code: .*\n", "")
    assert release.lacking(root) == ["setup.cfg: `repository` is empty. Fill in the address of the repository."]


@pytest.mark.parametrize("address, kinds", [("", set()), (ADDRESS, {"Source", "Documentation", "Issues", "Changelog"})])
def test_all_addresses_follow_from_the_one(address, kinds, root):
    edit(root / "setup.cfg", r"^repository =.*$", f"repository = {address}")
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], cwd=root, check=True, capture_output=True)
    metadata = message_from_string((root / "fastnlp_adv.egg-info" / "PKG-INFO").read_text(encoding="utf-8"))
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert {kind for kind, url in urls.items() if url.startswith(ADDRESS)} == kinds
    assert all("{" not in url for url in urls.values()) and metadata["Author"] == CONFIG["metadata"]["author"]
