"""kerf from this checkout, for GPU machines on which it is not installed. Not a script itself; import it before kerf.

Python looks beside a script and in what is installed. The commands name a script by its path, so there is no other way
than this one line for all of scripts/gpu.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
