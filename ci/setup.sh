#!/usr/bin/env bash
# Make the virtual environment .venv at the repository root with everything of requirements.txt. Does nothing if that is
# done already. PYTHON=/path/to/python chooses the interpreter (3.10 to 3.13).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "setup: $*" >&2
  exit 1
}

find_python() {
  local candidate version without_venv=""
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10 python}; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case "$version" in
      3.10 | 3.11 | 3.12 | 3.13) ;;
      *) continue ;;
    esac
    if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
    without_venv=$version
  done
  if [ -n "$without_venv" ]; then
    fail "Python $without_venv is there, but its venv module is not. Fix: apt-get install python$without_venv-venv" \
      "(Debian, Ubuntu), or name another interpreter: PYTHON=/path/to/python bash $0"
  fi
  fail "no Python 3.10 to 3.13 found. Fix: install one, or name it: PYTHON=/path/to/python bash $0"
}

# Without an NVIDIA GPU the CPU build of torch saves gigabytes; its index is used only where it can be reached.
cpu_index() {
  local index=https://download.pytorch.org/whl/cpu
  [ "$(uname -s)" = Linux ] && [ ! -e /dev/nvidiactl ] && ! command -v nvidia-smi >/dev/null || return 0
  .venv/bin/python -c "import urllib.request as r; r.urlopen('$index/torch/', timeout=5)" 2>/dev/null || return 0
  echo "--extra-index-url $index"
}

if ! .venv/bin/python -c '' 2>/dev/null; then
  python=$(find_python)
  echo "setup: making .venv with $python"
  "$python" -m venv --clear .venv
fi

stamp=$(.venv/bin/python -c '
import hashlib, sys
print(hashlib.sha256(open("requirements.txt", "rb").read() + sys.version.encode()).hexdigest())')
if [ "$(cat .venv/installed-requirements 2>/dev/null)" != "$stamp" ]; then
  echo "setup: installing requirements.txt (a few minutes, once)"
  # torch first: alone it can come from another index than the rest
  # shellcheck disable=SC2046
  .venv/bin/python -m pip install --quiet "$(grep '^torch==' requirements.txt)" $(cpu_index)
  .venv/bin/python -m pip install --quiet -r requirements.txt
  echo "$stamp" >.venv/installed-requirements
fi
