"""Puts the build helpers, which are not installed, on the path."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# At the end: csrc also holds a folder named torch.
sys.path.append(str(ROOT / "csrc"))
