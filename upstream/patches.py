"""What the patches hold: their size, and the files that they add."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
#: for the branch dev0.8.0, in the order that they apply in
SERIES = sorted((HERE / "dev0.8.0").glob("*.patch"))
#: for 1.0.1, after the new files of the series: its ``__init__.py`` are written differently
EXPORTS = sorted((HERE / "1.0.1").glob("*.patch"))


def new_files():
    """
    The files that the series adds.

    :return: their texts, by their paths in fastNLP.
    """
    found = {}
    for patch in SERIES:
        for name, body in _sections(patch):
            if "\nnew file mode " in body:
                found[name] = "".join(line[1:] + "\n" for line in _hunks(body) if line.startswith("+"))
    return found


def lines_of_patches(patches):
    """A table of the lines that patches add and remove, by file."""
    rows = ["", "added removed  file"]
    for patch in patches:
        rows.append(f"{patch.parent.name}/{patch.name}")
        for name, (added, removed) in lines_by_file(patch).items():
            rows.append(f"{added:5} {removed:7}  {name}")
    return "\n".join(rows) + "\n"


def lines_by_file(patch):
    """
    Count the lines of a patch.

    :param patch: its path.
    :return: for each file, how many lines are added and removed.
    """
    return {
        name: tuple(sum(line.startswith(sign) for line in _hunks(body)) for sign in "+-")
        for name, body in _sections(patch)
    }


def _sections(patch):
    """The name and the part of each file in a patch."""
    for section in patch.read_text(encoding="utf-8").split("\ndiff --git ")[1:]:
        yield section.split("\n", 1)[0].split(" b/")[-1], section


def _hunks(section):
    return section[section.index("\n@@ ") + 1 :].splitlines()
