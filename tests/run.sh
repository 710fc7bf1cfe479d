#!/usr/bin/env bash
# The tests as the README gives them: linters and types, then pytest with the arguments given (default: all but the slow ones).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
# shellcheck source=bash_examples/environment.sh
source bash_examples/environment.sh
use_environment "$root"

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
python -c 'import pytest, xdist, hypothesis' 2>/dev/null || { echo "error: pytest, pytest-xdist or hypothesis is not installed: pip install -r requirements.txt" >&2; exit 2; }
if [ $# -eq 0 ]; then # two processes, each of one thread: most of the time scripts are starting
  export OMP_NUM_THREADS=1
  set -- -m "not slow" -n 2 --dist loadfile
fi
python -m pytest "$@"
