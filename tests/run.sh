#!/usr/bin/env bash
# The tests as the README gives them: linters, types, and all tests but those marked slow, kills or slurm; with arguments
# pytest alone, with these. .ci/run runs the kills and SLURM tests too.
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
# shellcheck source=bash_examples/environment.sh
source bash_examples/environment.sh
use_environment "$root"

python -c 'import pytest, xdist, hypothesis' 2>/dev/null || { echo "error: pytest, pytest-xdist or hypothesis is not installed: pip install -r requirements.txt" >&2; exit 2; }
if [ $# -eq 0 ]; then
  for tool in ruff shellcheck mypy; do
    command -v "$tool" >/dev/null || echo "$tool: not installed, its checks are skipped" >&2
  done
  if command -v ruff >/dev/null; then
    ruff check .
    ruff format --check .
  fi
  if command -v shellcheck >/dev/null; then
    find . -path ./.venv -prune -o \( -name '*.sh' -o -path ./.ci/run \) -print0 | xargs -0 shellcheck -x
  fi
  if command -v mypy >/dev/null; then
    mypy
  fi
  # Two processes, each of one thread; what one has left at the end the other takes.
  export OMP_NUM_THREADS=1
  set -- -m "not slow and not kills and not slurm" -n 2 --dist worksteal
fi
python -m pytest "$@"
