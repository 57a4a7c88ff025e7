#!/usr/bin/env bash
# Set up if needed, then lint, types and tests. Arguments go to pytest: bash ci/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash ci/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
python -m pytest -q "$@"
