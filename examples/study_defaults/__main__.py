"""Run the study of defaults: `python examples/study_defaults`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch starts its threads: threads that spin while they wait stall one another on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Run by its folder: the other examples stand beside it, and what it shares with the project's tools above them.
sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

from study_defaults.command import main  # noqa: E402 - the lines above come first

if __name__ == "__main__":
    main()
