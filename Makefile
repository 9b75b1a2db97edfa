# `make miniature` runs the main job, `make test` the tests; each sets up all it needs in .venv first.
.DEFAULT_GOAL := help
.PHONY: help setup miniature smoke test test-faults test-cluster lint format lock

RAML := RAY_AUTH_MODE=token .venv/bin/raml

help:           ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

setup:          ## the environment in .venv, from the lock (CPU)
	@deploy/install.sh cpu

miniature: setup ## the whole way on this machine: questions to report
	$(RAML) run miniature

smoke: setup    ## the same at the smallest size
	$(RAML) run smoke

lint: setup     ## format, lint and type checks, of scripts and the image's recipe too
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/shellcheck deploy/*.sh deploy/slurm/raml.sbatch .ci/run
	.venv/bin/hadolint docker/Dockerfile

test: lint      ## all tests that need no GPU and kill nothing at random
	.venv/bin/python -m pytest -n 2 --dist loadfile -m "not gpu and not faults"

test-faults: setup ## engines, nodes and drivers killed at random moments: nothing is lost (minutes)
	.venv/bin/python -m pytest -s -m faults --ignore tests/faults/test_hosts.py --ignore tests/faults/test_s3.py \
	  --ignore tests/faults/test_meters.py --ignore tests/faults/test_slurm.py --ignore tests/test_mlflow_server.py \
	  --ignore tests/test_reach.py --ignore tests/test_growing.py --ignore tests/faults/test_stage_jobs.py

test-cluster: setup ## the README's "On a cluster" on hosts of their own, Slurm, MLflow's PostgreSQL, S3 that is killed, who gets in, a cluster that grows, a job of every stage (an hour)
	.venv/bin/python -m pytest -s tests/faults/test_hosts.py tests/faults/test_slurm.py tests/faults/test_s3.py \
	  tests/faults/test_meters.py tests/faults/test_stage_jobs.py tests/test_mlflow_server.py tests/test_reach.py tests/test_growing.py

format: setup   ## rewrite the code in the project's format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock: setup     ## resolve the requirements anew
	deploy/lock.sh
