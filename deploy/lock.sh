#!/usr/bin/env bash
# Resolve pyproject.toml anew into deploy/locks/{cpu,gpu}.txt (needs the environment of deploy/install.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
compile=(.venv/bin/uv pip compile --quiet --no-config pyproject.toml --extra deepspeed --extra lora --extra dev --python-version 3.11
  --generate-hashes --no-annotate --no-header)
backend=()
compgen -G "${UV_FIND_LINKS%/}/torch-2.13.0+cpu-*.whl" >/dev/null || backend=(--torch-backend cpu)
echo 'torch==2.13.0+cpu' | "${compile[@]}" - --extra cpu --override deploy/locks/overrides-cpu.txt "${backend[@]}" -o deploy/locks/cpu.txt
"${compile[@]}" --extra gpu --extra flash-attn -o deploy/locks/gpu.txt
