"""Does it help? Methods trained with several seeds, attacked, and compared: `python -m studies --help`."""

import os
import sys
from pathlib import Path

# Before torch starts its threads: threads that spin while they wait stall one another on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # trains with the programs of the examples
