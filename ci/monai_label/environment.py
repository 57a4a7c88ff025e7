"""The environment that the MONAI Label server runs in: made once, outside of the repository.

Version 0.8.5 asks for packages that weigh gigabytes, or want others that are too old, and are used by none of what is
done here. So it is installed without its dependencies, beside what it really imports, and small stand-ins take the
place of torchvision, pydicom-seg and ITK.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MONAI_LABEL = "monailabel==0.8.5"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
FOLDER = "IMPERFECT_LABELS_MONAI_LABEL"  # environment variable: where to keep it


def default_folder() -> Path:
    """Where the environment is kept unless the environment variable says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(FOLDER) or cache / "imperfect-labels" / "monai_label")


def server_python(folder: Path | None = None) -> Path:
    """The server's interpreter; its environment is made if it is not there or made of something else.

    Args:
        folder: where the environment is kept; default: :func:`default_folder`.

    Raises:
        RuntimeError: when a package cannot be installed.
    """
    folder = folder or default_folder()
    python, stamp = folder / "venv" / "bin" / "python", folder / "made-of"
    if stamp.is_file() and stamp.read_text() == _made_of() and python.exists():
        return python
    print(f"monai_label: making the server's environment in {folder} (a few minutes, once)", flush=True)
    stamp.unlink(missing_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder / "venv"))
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    torch = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))
    _run(*pip, torch, *_cpu_index())  # alone, as in ci/setup.sh
    _run(*pip, "--constraint", str(ROOT / "requirements.txt"), "--requirement", str(HERE / "requirements.txt"))
    _run(*pip, "--no-deps", MONAI_LABEL)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    for stand_in in (HERE / "stand_ins").iterdir():
        if stand_in.is_dir() and not (packages / stand_in.name).exists():
            shutil.copytree(stand_in, packages / stand_in.name, ignore=shutil.ignore_patterns("__pycache__"))
    stamp.write_text(_made_of())
    return python


def _cpu_index() -> list[str]:
    """Where this environment has torch for CPUs, its index, if it can be reached: it saves gigabytes."""
    if not version("torch").endswith("+cpu"):
        return []
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5):
            return ["--extra-index-url", CPU_INDEX]
    except OSError:
        return []


def _made_of() -> str:
    """What the environment follows from, as one short word."""
    parts = [MONAI_LABEL, sys.version, (ROOT / "requirements.txt").read_text(), (HERE / "requirements.txt").read_text()]
    parts += [path.read_text() for path in sorted((HERE / "stand_ins").rglob("*.py"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
