"""Serve the bundles by a real MONAI Label server and ask it over HTTP for all that an annotator would.

    python -m ci.monai_label [NAME ...] [--keep DIR]

makes the server's environment (once, in a cache), an app with the bundles, untrained, and a folder of studies that
mixes trusted and doubtful labels, strokes, several raters and images without a label; starts the server; and checks of
each bundle information, inference, maps, training by kind, scores, strategies and the audit. Needs no network once the
environment is there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .app_folder import bundle_names, make_app
from .checks import check_bundle, check_start
from .server import Server, ServerError
from .studies import make_studies


def check(names: list[str], folder: Path) -> list[str]:
    """Check bundles in a folder of its own.

    Returns:
        what failed.
    """
    app = make_app(folder / "app", names, untrained=True, overwrite=True)
    studies = make_studies(folder / "studies")
    # what scores by itself at start, after each training and before each case is in the way of the other checks
    quiet = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
    with Server(app, folder / "studies", {"models": ",".join(names)}, quiet) as server:
        failed = [what for name in names for what in check_bundle(server, name, studies)]
    fresh = folder / "fresh"  # the same studies, which no server has seen
    make_studies(fresh)
    try:
        with Server(app, fresh, {"models": names[0]}) as server:
            print(f"{names[0]} at start: {check_start(server, names[0], studies)}")
    except ServerError as error:
        print(f"{names[0]} at start: FAILED: {error}")
        failed.append(f"{names[0]} at start")
    return failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="bundles; default: all")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="empty folder for app and studies; kept")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(bundle_names()):
        parser.error(f"no bundle named {', '.join(sorted(unknown))}")
    names = arguments.names or bundle_names()
    if arguments.keep is not None:
        failed = check(names, arguments.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="monai-label-") as folder:
            failed = check(names, Path(folder))
    print(f"failed: {'; '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
