"""Write a stand-alone copy of a bundle: ``python ci/export_bundle.py alc --output exported``, see ``ci/export``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ci.export import main

    sys.exit(main())
