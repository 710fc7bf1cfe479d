# shellcheck shell=bash
# Sourced by the scripts here and by tests/run.sh: --help, checks of variables, and the environment: the active virtual
# or conda environment, or .venv beside the code, which it makes.

[ "${1:-}" != --help ] || { sed -n '2,/^[^#]/{/^# shellcheck/d; s/^# \{0,1\}//p;}' "$0"; exit; }

fail() { echo "${SWEEP_SCRIPT:-${0##*/}}: error: $*" >&2; exit 2; }

whole() { # whole LEAST VARIABLE...: a whole number from LEAST on (several, if the name ends in +), or not set
  local least=$1 name number most
  for name in "${@:2}"; do
    case $name in *+) most=1000 name=${name%+} ;; *) most=1 ;; esac
    # shellcheck disable=SC2086
    set -- ${!name:-}
    [ $# -le "$most" ] || fail "$name: one number is needed, not '${!name}'"
    for number; do
      [[ $number =~ ^(0|[1-9][0-9]{0,8})$ && $number -ge $least ]] ||
        fail "$name: $number is not a whole number from $least on"
    done
  done
}

choice() { # choice VARIABLE WORD...: one of these words, or not set
  local name=$1
  shift
  case " $* " in *" ${!name:-$1} "*) ;; *) fail "$name: ${!name} is not one of $*" ;; esac
}

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
