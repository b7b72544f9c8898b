"""Run the study on Chinese text: `python examples/study_chinese`."""

from __future__ import annotations

import sys
from pathlib import Path

# Run by its folder: the other examples stand beside it, and what it shares with the project's tools above them.
sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

from study_chinese.command import main  # noqa: E402 - the line above comes first

if __name__ == "__main__":
    main()
