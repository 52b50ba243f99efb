"""The scripts of bench/ import their neighbours as a script does: from their own folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
