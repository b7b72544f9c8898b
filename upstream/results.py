"""What `check.py` found: one line per check, and the results of two runs of pytest side by side."""

import xml.etree.ElementTree as ElementTree
from collections import Counter


class Results:
    """The outcome of each check, printed as it comes and once more at the end."""

    def __init__(self):
        self._lines = []
        self._failed = False

    def done(self, name, detail=""):
        self._add("ok", name, detail)

    def not_run(self, name, why):
        self._add("NOT RUN", name, why)

    def ran(self, name, process):
        """A process that has to succeed; its last line tells what it did."""
        if process.returncode:
            print(process.stdout)
        self._add("FAILED" if process.returncode else "ok", name, _last_line(process.stdout))

    def failed_as_expected(self, name, process, error):
        """A process that has to fail with this error."""
        as_expected = process.returncode != 0 and error in process.stdout
        self._add("ok" if as_expected else "FAILED", name, "fails: " + _last_line(process.stdout))

    def compared(self, name, comparison):
        counts, differences = comparison
        for test, outcomes in differences.items():
            print("  {}: {} before, {} after".format(test, *outcomes))
        same = counts and not differences
        detail = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
        self._add("ok" if same else "FAILED", name, detail or "no test ran")

    def _add(self, outcome, name, detail):
        self._failed = self._failed or outcome == "FAILED"
        self._lines.append("{:8} {}{}".format(outcome, name, " (" + detail + ")" if detail else ""))
        print(self._lines[-1], flush=True)

    def summary(self):
        """The exit status."""
        print("\n" + "\n".join(self._lines))
        return int(self._failed)


def compare(before, after):
    """
    Compare two reports of pytest.

    :param before: the path of one.
    :param after: the path of the other.
    :return: how many tests passed, failed, ... in the second, and the tests that ended differently.
    """
    first, second = _outcomes(before), _outcomes(after)
    pairs = {test: (first.get(test, "missing"), second.get(test, "missing")) for test in {**first, **second}}
    return Counter(second.values()), {test: pair for test, pair in pairs.items() if pair[0] != pair[1]}


def _outcomes(report):
    outcomes = {}
    for case in ElementTree.parse(str(report)).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes["{}::{}".format(case.get("classname"), case.get("name"))] = kinds[0] if kinds else "passed"
    return outcomes


def _last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
