"""AttenScribble: the method, its losses, its network and the reading of scribbles."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))  # `common`, from whichever folder the bundle is run
