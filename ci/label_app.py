"""Make an app for MONAI Label: ``python ci/label_app.py DIR``, see ``ci/monai_label``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ci.monai_label.app_folder import main

    sys.exit(main())
