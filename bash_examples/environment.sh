# shellcheck shell=bash
# Sourced by demo.sh and tests/run.sh: uses the active virtual or conda environment, or makes .venv beside the code.

[ "${1:-}" != --help ] || { sed -n '2,/^[^#]/{/^# shellcheck/d; s/^# \{0,1\}//p;}' "$0"; exit; }

use_environment() {
  local root=$1 python
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    if ! cmp -s "$root/requirements.txt" "$root/.venv/installed.txt"; then
      python=${PYTHON:-python3}
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "error: Python 3.10 or newer is needed; name one with PYTHON=/path/to/python3" >&2; return 2; }
      echo "Installing requirements.txt into $root/.venv (once; a few minutes; 6 GB of disk with CUDA builds of PyTorch)"
      "$python" -m venv "$root/.venv"
      "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt"
      "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root"
      cp "$root/requirements.txt" "$root/.venv/installed.txt"  # what is complete, and from which list
    fi
    # shellcheck disable=SC1091
    source "$root/.venv/bin/activate"
  fi
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}  # an environment of the user's may hold another checkout, or none
  python - <<'PY' || return 2
import importlib.util, sys
names = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}
modules = ("torch", "torchvision", "timm", "pandas", "matplotlib", *names)
missing = [names.get(m, m) for m in modules if not importlib.util.find_spec(m)]
if missing:
    sys.exit(f"error: the active environment lacks {', '.join(missing)}: "
             "pip install -r requirements.txt, or deactivate it and run again")
PY
}
