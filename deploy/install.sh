#!/usr/bin/env bash
# The project's own Python environment, from a lock: deploy/install.sh [cpu|gpu] [FOLDER] [--no-dev]
# --no-dev leaves out what only tests and checks need (an image does so). FLASH_ATTN=no leaves out flash-attn (gpu), which
# compiles for hours: attention is torch's then.
# Takes nothing from and leaves nothing in the user's Python. Run again, it ends at once if the lock has not changed.
set -euo pipefail
cd "$(dirname "$0")/.."
stack=${1:-cpu}
venv=${2:-.venv}
lock=deploy/locks/$stack.txt
locks=(-r "$lock" -r deploy/locks/dev.txt)
[ "${3:-}" = --no-dev ] && locks=(-r "$lock")
uv_version=0.13.8

missing() { printf 'raml_ray: %s\n  type: %s\n' "$1" "$2" >&2; exit 1; }
elsewhere() { printf 'raml_ray: %s\n  to do: %s\n' "$1" "$2" >&2; exit 1; }
# First of all: what follows names packages of Debian and Ubuntu.
works='formulas, text and reports ask for no more than python3.11 -m pip install -e . torch (not tried there)'
case "$(uname -s) $(uname -m)" in
  'Linux x86_64') ;;
  Linux*) elsewhere "Linux on $(uname -m): $works; the locks are for x86-64" \
    "for runs use a Linux machine with x86-64 and AVX2" ;;
  Darwin*) elsewhere "macOS: $works; there is no lock, no engine and no judge for it" \
    "for runs use a Linux machine, virtual machine or container with x86-64 and AVX2: docker build -f docker/Dockerfile -t raml:cpu ." ;;
  *) elsewhere "$(uname -s): nothing here was made for it" \
    "on Windows install WSL 2 with Debian or Ubuntu (wsl --install) and work in there; else use a Linux machine with x86-64 and AVX2" ;;
esac
[ -f "$lock" ] || missing "no lock for the stack '$stack'" "deploy/install.sh cpu"
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
  missing "the lock is for Python 3.11, which is not here" "sudo apt-get install python3.11 python3.11-venv   (or PYTHON=/path/to/python3.11 make ...)"
"$python" -c 'import ensurepip' 2>/dev/null ||
  missing "this Python cannot make virtual environments" "sudo apt-get install python3.11-venv"
[ "$stack" = gpu ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
  missing "libnuma is missing, which vLLM's CPU build loads" "sudo apt-get install libnuma1"
command -v g++ >/dev/null || missing "a C++ compiler is missing, which torch.compile calls" "sudo apt-get install g++"
command -v bwrap >/dev/null ||
  printf 'raml_ray: note: bubblewrap is missing; nothing here needs it until model-written code is run\n  type: sudo apt-get install bubblewrap\n' >&2

stamp=$venv/.installed
flash_attn=${FLASH_ATTN:-yes}
want=$( (cat deploy/locks/*.txt pyproject.toml deploy/install.sh; echo "${locks[@]}" "$flash_attn") | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

printf 'raml_ray: installing the %s stack into %s\n' "$stack" "$venv" >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
uv=$venv/bin/uv
VIRTUAL_ENV=$(cd "$venv" && pwd)
export VIRTUAL_ENV UV_LINK_MODE=${UV_LINK_MODE:-copy}
# uv brings certificates of its own, among which those of a company's or a mirror's proxy are not.
[ -f /etc/ssl/certs/ca-certificates.crt ] && export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true}
# Compiled once here, or every process of every run compiles what it imports (where bytecode may not be written).
install=("$uv" pip install --quiet --compile-bytecode --no-deps --require-hashes "${locks[@]}")
if [ "$stack" = gpu ]; then
  # The lock has the compiler of the CUDA that torch runs on.
  export CUDA_HOME=${CUDA_HOME:-$VIRTUAL_ENV/lib/python3.11/site-packages/nvidia/cu13}
  # flash-attn builds against the torch that is installed: everything else first.
  grep -v '^ *#' "$lock" | awk '/^flash-attn==/{skip=1;next} skip&&/^ /{next} {skip=0;print}' >"$venv/first.txt"
  if [ "$flash_attn" = no ]; then
    "${install[@]/#$lock/$venv/first.txt}"
  else
    "$uv" pip install --quiet --no-deps --require-hashes -r "$venv/first.txt"
    "${install[@]}" --no-build-isolation
  fi
else
  # The lock names torch's CPU build. A local folder of wheels comes first, then PyTorch's own CPU index; the plain
  # package index, whose torch is the CUDA build, cannot satisfy the lock and is never asked for it.
  links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  if [ -n "$links" ] && compgen -G "${links%/}/torch-2.13.0+cpu-*.whl" >/dev/null; then
    printf 'raml_ray: torch (CPU build) from the local folder of wheels\n' >&2
    UV_FIND_LINKS=$links "${install[@]}"
  else
    printf 'raml_ray: torch (CPU build) from the index that uv knows for it\n' >&2
    "${install[@]}" --torch-backend cpu
  fi
fi
"$uv" pip install --quiet --no-deps --no-build-isolation -e .
printf '%s' "$want" >"$stamp"
