#!/usr/bin/env bash
# Set up if needed, then lint, types and tests. Arguments go to pytest: bash ci/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash ci/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mypy
# a worker for each core, each on one thread; at most 4, for each holds PyTorch and its own data
workers=$(env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS=1
python -m pytest -q -n "$((workers < 4 ? workers : 4))" --dist worksteal "$@"
