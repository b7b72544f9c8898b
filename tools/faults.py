"""
Switch deliberate faults on, one after the other, and note which tests notice: ``make faults``.

Each fault of ``fault_list.py`` is switched on in a process of its own, as soon as that imports the package, and in the
processes that its tests start. What fails then, and does not fail without a fault, has caught it. Results are kept in
``build/faults.json`` as they come, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any

from fault_list import FAULTS, NONE, Fault, switched_on
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from table import Table

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT
RESULTS = ROOT / "build" / "faults.json"
#: names the fault to a process that tests start
VARIABLE = "FASTNLP_ADV_FAULT"
#: python runs this in every process that finds it on its path
SITE = f"""import os, sys
if os.environ.get("{VARIABLE}"):
    sys.path.append({str(Path(__file__).parent)!r})
    import fault_list
    fault_list.switch_on_at_import(os.environ["{VARIABLE}"])
"""
WHOLE = ("tests",)
LIMIT = 1800  # seconds for the tests of a fault; the whole suite has four times that


class BrokenError(Exception):
    """No tests were run, or they did not come to an end."""


#: what most tests import, and importing takes longer than the tests
PRELOADED = ["torch", "fastNLP", "pytest", "transformers.models.bert.modeling_bert", "peft", "hypothesis"]
FORKS = multiprocessing.get_context("forkserver")


def failures(name: str, tests: tuple[str, ...], *, limit: int = LIMIT) -> list[str]:
    """
    Run tests with a fault switched on.

    :param name: the fault, or ``NONE``.
    :param tests: their files or folders, relative to ``SUITE``.
    :param limit: after how many seconds they are taken to hang.
    :return: the tests that failed.
    :raises BrokenError: if the fault cannot be switched on, tests are not found, or they do not end.
    """
    folder = RESULTS.parent / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    report, log = folder / f"{name}.xml", folder / f"{name}.log"
    report.unlink(missing_ok=True)
    FORKS.set_forkserver_preload(PRELOADED)
    process = FORKS.Process(target=_run_tests, args=(name, tests, SUITE, folder, report, log))
    process.start()
    process.join(limit)
    ended = process.exitcode is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what its tests have left
    process.join()
    if not ended:
        raise BrokenError(f"not done after {limit} seconds")
    if process.exitcode not in (0, 1):
        raise BrokenError(f"pytest ended with status {process.exitcode}: ...{log.read_text()[-600:]}")
    cases = ElementTree.parse(report).getroot().iter("testcase")
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return sorted({"::".join(filter(None, [case.get("file"), case.get("name")])) for case in failed})


def _run_tests(name: str, tests: tuple[str, ...], suite: Path, folder: Path, report: Path, log: Path) -> None:
    """Take the place of ``python -m pytest`` in a forked process, and of all that it starts."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": path, VARIABLE: name})
    os.chdir(suite)
    sys.path.insert(0, str(ROOT))
    try:
        import pytest

        options = ["-q", "-p", "no:cacheprovider", "--tb=no", "--timeout=600", "--continue-on-collection-errors"]
        with switched_on(name):
            status = pytest.main([*options, "-o", "junit_family=xunit1", f"--junitxml={report}", *tests])
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Results:
    """
    What was found so far, in a file.

    :param path: the file; ``RESULTS`` if ``None``.
    """

    def __init__(self, path: Path | None = None):
        self.path = RESULTS if path is None else path
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        #: what fails without a fault, by the tests that were run
        self.baseline: dict[str, list[str]] = found.get("baseline", {})
        self.rows: dict[str, dict[str, Any]] = found.get("faults", {})

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"baseline": self.baseline, "faults": self.rows}
        self.path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def has(self, fault: Fault, tests: tuple[str, ...]) -> bool:
        """Tell whether these tests have been run with a fault."""
        return self.rows.get(fault.name, {}).get("tests") == list(tests)

    def without_fault(self, tests: tuple[str, ...]) -> None:
        """Run tests without a fault, those that have not been run so."""
        missing = tuple(test for test in tests if test not in self.baseline)
        if missing:
            failed = failures(NONE, missing, limit=4 * LIMIT)
            for test in missing:
                self.baseline[test] = [each for each in failed if each.startswith(test)]
            self.save()

    def with_fault(self, fault: Fault, tests: tuple[str, ...]) -> None:
        """Run tests with a fault, and note what fails for that reason alone."""
        before = {each for test in tests for each in self.baseline[test]}
        row: dict[str, Any] = {"wrong": fault.wrong, "tests": list(tests)}
        begun = time.monotonic()
        try:
            failed = failures(fault.name, tests, limit=LIMIT if tests == fault.tests else 4 * LIMIT)
            row["caught_by"] = [each for each in failed if each not in before]
        except BrokenError as error:
            row.update(caught_by=[], broken=str(error))
        self.rows[fault.name] = {**row, "seconds": round(time.monotonic() - begun)}
        self.save()

    def outcome(self, fault: Fault) -> str:
        """Return how many tests have caught a fault, or why that is not known."""
        row = self.rows[fault.name]
        return row.get("broken") or str(len(row["caught_by"]) or "not caught")

    def table(self, faults: list[Fault]) -> Table:
        """Lay out what was found of these faults."""
        cells = [[fault.area, fault.name, fault.wrong, self.outcome(fault)] for fault in faults]
        return Table(["area", "fault", "what is wrong", "tests that fail"], cells, left=3)


def run(faults: list[Fault], results: Results, *, whole: bool, again: bool) -> list[Fault]:
    """
    Try faults that have not been tried.

    :param faults: the faults.
    :param results: what is known of them, and is added to.
    :param whole: run the whole suite, not the tests that are likely to catch a fault.
    :param again: try them again.
    :return: those that no test catches.
    """
    tests = {fault.name: WHOLE if whole else fault.tests for fault in faults}
    left = [fault for fault in faults if again or not results.has(fault, tests[fault.name])]
    columns = [BarColumn(), TimeElapsedColumn(), TextColumn("{task.completed}/{task.total} {task.description}")]
    with Progress(*columns) as progress:
        bar = progress.add_task("the same tests without a fault", total=len(left))
        needed = tuple(dict.fromkeys(test for fault in left for test in tests[fault.name]))
        for test in needed if again else ():
            results.baseline.pop(test, None)
        results.without_fault(needed)
        for fault in left:
            progress.update(bar, description=f"{fault.name}: {fault.wrong}")
            results.with_fault(fault, tests[fault.name])
            progress.console.print(f"{fault.name}: {results.outcome(fault)}")
            progress.advance(bar)
    return [fault for fault in faults if not results.rows[fault.name]["caught_by"]]


def main() -> None:
    """Try the faults, and end with status 1 if one is not caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=FAULTS, help="these faults, not all")
    parser.add_argument("--again", action="store_true", help="also what has been tried before")
    parser.add_argument("--whole", action="store_true", help="run the whole suite with each fault: a day")
    parser.add_argument("--list", action="store_true", help="list the faults, and run nothing")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS.values() if args.only is None or fault.name in args.only]
    if args.list:
        for fault in faults:
            print(f"{fault.area:34} {fault.name:46} {fault.wrong}")
        return
    results = Results()
    try:
        uncaught = run(faults, results, whole=args.whole, again=args.again)
    except BrokenError as error:
        sys.exit(f"Without a fault: {error}")
    print(results.table(faults).markdown())
    print(f"\n{len(faults) - len(uncaught)} of {len(faults)} faults are caught.")
    sys.exit(bool(uncaught))


if __name__ == "__main__":
    main()
