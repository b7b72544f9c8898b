"""The quickstart is the first program below its heading."""

from __future__ import annotations

import sys

import pytest
import smoke
from processes import run

README = """
# Title

```python
before = 1
```

## Quickstart

```shell
pip install fastnlp_adv
# Not a heading
```

### In words

```python
# Train
print("quick")
```

```python
second = 2
```

## More
"""


def test_it_is_the_first_block_of_python_below_the_heading():
    assert smoke.quickstart(README) == '# Train\nprint("quick")\n'


@pytest.mark.parametrize(
    ("readme", "missing"),
    [
        ("# Title\n\n```python\nx = 1\n```\n", "a heading `Quickstart`"),
        ("## Quickstart\n\nSoon.\n\n## More\n\n```python\nx = 1\n```\n", "a block ```python below"),
    ],
)
def test_without_one_the_script_says_so_in_one_line_and_fails(readme, missing, tmp_path):
    (tmp_path / "README.md").write_text(readme)
    done = run([sys.executable, smoke.__file__, f"--readme={tmp_path / 'README.md'}"])
    assert done.returncode == 1 and done.stdout == ""
    assert missing in done.stderr and len(done.stderr.splitlines()) == 1
