"""
Run fastNLP's linters on the files that the patches add: `nox -f upstream/noxfile.py -s lint`.

The commands are those of its `.pre-commit-config.yaml`, formatters in their checking mode. It lints what `check.py` has
unpacked, so that runs first.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREES = [HERE.parent / "build" / "upstream" / version / "after" for version in ("dev0.8.0", "1.0.1")]
CALLBACKS = [f"fastNLP/core/callbacks/torch_callbacks/torch_{name}_callback.py" for name in ("adversarial", "rdrop")]
TESTS = [f"tests/core/callbacks/torch_callbacks/test_torch_{name}_callback.py" for name in ("adversarial", "rdrop")]
COMMANDS = [
    ["flake8", "--extend-ignore", "E402,E501,E741,F403,F405"],
    ["yapf", "--diff"],
    ["codespell", "-L", "ans,rouge,ROUGE,warmup"],
    ["docformatter", "--check", "--wrap-descriptions", "79"],
    ["trailing-whitespace-fixer"],
    ["end-of-file-fixer"],
    ["debug-statement-hook"],
    ["double-quote-string-fixer"],
    ["fix-encoding-pragma", "--remove"],
    ["mixed-line-ending", "--fix=lf"],
]


def main():
    tree = next((tree for tree in TREES if tree.is_dir()), None)
    if tree is None:
        sys.exit(f"Expected {TREES[1]} to be there. Run `make upstream` first.")
    failed = []
    for command in COMMANDS:
        if subprocess.run([*command, *CALLBACKS, *TESTS], cwd=str(tree)).returncode:
            failed.append(command[0])
    # mypy follows imports into files that have errors of their own; fastNLP leaves the tests out.
    mypy = ["mypy", "--ignore-missing-imports", "--scripts-are-modules", *CALLBACKS]
    found = subprocess.run(mypy, cwd=str(tree), stdout=subprocess.PIPE, text=True).stdout
    errors = [line for line in found.splitlines() if line.startswith(tuple(CALLBACKS)) and ": error:" in line]
    print("\n".join(errors))
    if errors or "checked 2 source files" not in found:
        failed.append("mypy")
    print(f"{len(COMMANDS) + 1} linters, failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
