"""The tiny systems live with the tests of the testbed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared" / "t2i"))
