#!/usr/bin/env bash
# Resolve pyproject.toml anew into deploy/locks/{cpu,gpu,dev}.txt (needs the environment of deploy/install.sh).
# cpu and gpu are what running needs, dev is what tests need besides: its pins agree with both.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
compile=(.venv/bin/uv pip compile --quiet --no-config --python-version 3.11 --generate-hashes --no-annotate --no-header)
running=(pyproject.toml --extra deepspeed --extra lora --extra tracking-server --extra s3)
backend=()
compgen -G "${UV_FIND_LINKS%/}/torch-2.13.0+cpu-*.whl" >/dev/null || backend=(--torch-backend cpu)
echo 'torch==2.13.0+cpu' | "${compile[@]}" "${running[@]}" - --extra cpu --override deploy/locks/overrides-cpu.txt "${backend[@]}" \
  -o deploy/locks/cpu.txt
"${compile[@]}" "${running[@]}" --extra gpu --extra flash-attn --constraint deploy/locks/constraints-gpu.txt -o deploy/locks/gpu.txt
"${compile[@]}" --group dev --constraint deploy/locks/cpu.txt --constraint deploy/locks/gpu.txt -o deploy/locks/dev.txt
