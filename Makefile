SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE ?= $(HOME)/.cache/cloze
# The cluster that `make demo` and a person use. Tests bring up one of their own.
export CLOZE_CLUSTER ?= cloze
TEST_CLUSTER ?= cloze-test

export UV_CACHE_DIR ?= $(CACHE)/uv
export MYPY_CACHE_DIR ?= $(CACHE)/mypy
# By the lock's content, so that checkouts with other locks leave each other's alone.
UV_HOME := $(CACHE)/uv-tool-$(firstword $(shell sha256sum requirements/uv.txt | cut -c1-12))
UV := $(UV_HOME)/bin/uv
PY := .venv/bin/python
# Where it is set, each of the hundreds of processes that tests start compiles its libraries anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv/.current
# Stops the recipe when there is no cluster to point at: what follows must never meet another one by accident.
ON_CLUSTER := environment="$$(python3 hack/cluster env)"; eval "$$environment";
# `make VARIABLE=…` reaches a sub-make past its environment, so the test cluster's name is given the same way.
ON_TEST_CLUSTER := CLOZE_CLUSTER=$(TEST_CLUSTER) hack/with-cluster $(MAKE) CLOZE_CLUSTER=$(TEST_CLUSTER)

# Each target is parallel inside; two that use the cluster or the venv would get in each other's way.
.NOTPARALLEL:

.PHONY: help
help: ## list every target
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# ---------------------------------------------------------------- the two commands

.PHONY: demo
demo: preflight $(VENV) cluster-up images install ## real text through training, registry and serving on a local cluster
	@$(ON_CLUSTER) $(PY) hack/demo run

.PHONY: demo-tasks
demo-tasks: $(VENV) ## after the demo: the other tasks, on the same text (examples/tasks.yaml)
	@$(ON_CLUSTER) $(PY) hack/demo tasks

.PHONY: test
test: preflight lint types ## everything that must pass: lint and types, then unit, integration and e2e tests with a cluster of its own
	@$(ON_TEST_CLUSTER) alone together e2e

.PHONY: preflight
preflight: ## say what this machine lacks before anything is fetched or built
	@hack/preflight

# ---------------------------------------------------------------- parts of the tests

.PHONY: lint
lint: $(VENV) ## format, lint and architecture checks; generated files are current
	@.venv/bin/ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/lint-imports --no-logo | tail -n 3
	@.venv/bin/cloze-crds --check crds charts/cloze/files/crds --reference docs/reference.md
	@$(PY) hack/monitoring generate --check

.PHONY: types
types: $(VENV) ## strict type checks
	@.venv/bin/mypy --no-error-summary
	@hack/types

.PHONY: unit
unit: $(VENV) ## tests that need no cluster
	@.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not cluster and not e2e and not full" --durations=5 -q

.PHONY: integration
integration: $(VENV) alone ## tests against the API server of the current cluster
	@$(ON_CLUSTER) .venv/bin/pytest -n 2 --dist loadfile -m "cluster and not (alone or e2e or full)" --durations=5 -q

# What compares the machine before and after.
.PHONY: alone
alone: $(VENV)
	@$(ON_CLUSTER) .venv/bin/pytest -m "alone and not full" -q tests/hack

# Integration tests wait for most of their time, so unit tests have the processors meanwhile.
.PHONY: together
together: $(VENV)
	@$(ON_CLUSTER) .venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not (alone or e2e or full)" --durations=10 -q

.PHONY: e2e
e2e: $(VENV) images ## tests with real pods on the current cluster
	@$(ON_CLUSTER) .venv/bin/pytest -m "e2e and not full" --durations=10 -q

.PHONY: test-full
test-full: full-cluster full-statistics full-training full-serving full-tasks full-chaos full-rollouts full-releases ## the long suites, each part at most 45 minutes; results go to docs/test-full.md

.PHONY: full-cluster
full-cluster: $(VENV) ## part: life cycles of local clusters, with nothing left behind
	@hack/test-full cluster tests/hack

.PHONY: full-statistics
full-statistics: $(VENV) ## part: false alarms and power of canary analysis over simulated rollouts
	@hack/test-full statistics tests/operator

.PHONY: full-training
full-training: $(VENV) ## part: training runs killed at any moment, outside a cluster
	@hack/test-full training tests/trainer

.PHONY: full-serving
full-serving: $(VENV) ## part: the inference server under hostile requests, and under load for CLOZE_SOAK_SECONDS (60)
	@UV=$(UV) hack/test-full serving tests/server

.PHONY: full-tasks
full-tasks: $(VENV) ## part: every task on a real cluster, from a signed encoder to answers
	@$(ON_TEST_CLUSTER) images tasks

.PHONY: tasks
tasks: $(VENV)
	@$(ON_CLUSTER) hack/test-full tasks tests/e2e/test_tasks.py

.PHONY: full-chaos
full-chaos: $(VENV) ## part: trainings, operators and the API server under fire on a real cluster
	@$(ON_TEST_CLUSTER) images chaos

.PHONY: chaos
chaos: $(VENV)
	@$(ON_CLUSTER) hack/test-full chaos tests/integration tests/e2e/test_chaos.py tests/e2e/test_bucket.py tests/e2e/test_resize.py tests/e2e/test_data_cache.py

.PHONY: full-rollouts
full-rollouts: $(VENV) ## part: canaries under fire on a real cluster, with 20,000 requests
	@$(ON_TEST_CLUSTER) images rollouts

.PHONY: rollouts
rollouts: $(VENV)
	@$(ON_CLUSTER) hack/test-full rollouts tests/e2e/test_rollout_chaos.py

.PHONY: full-releases
full-releases: $(VENV) ## part: upgrades in the middle of a canary, and MLflow on PostgreSQL and S3
	@$(ON_TEST_CLUSTER) images releases

.PHONY: releases
releases: $(VENV)
	@$(ON_CLUSTER) hack/test-full releases tests/e2e/test_release.py tests/e2e/test_stores.py tests/e2e/test_upgrade.py

.PHONY: bench-train
bench-train: $(VENV) ## pretraining beside transformers' Trainer: hack/bench/train/README.md
	@export UV=$(UV); bench="$(PY) hack/bench/train"; \
	  for vocab in 30522 8192; do for sizes in 4x256 6x384; do $$bench throughput $$sizes --vocab $$vocab; done; done; \
	  $$bench throughput 12x768 --rounds 1 --steps 6; \
	  $$bench quality 4x256 --vocab 8192 --steps 200 --rounds 3; $$bench preparation; \
	  for sizes in 4x256 12x768; do $$bench checkpoint $$sizes; done; $$bench restart 4x256

.PHONY: bench-cluster
bench-cluster: $(VENV) ## on a cluster with the chart: seconds until a training goes on after a lost pod
	@$(ON_CLUSTER) $(PY) hack/bench/lost_pod.py 4

.PHONY: bench-tasks
bench-tasks: $(VENV) ## fine-tuning beside transformers' Trainer, students, int8: hack/bench/tasks/README.md
	@export UV=$(UV); bench="$(PY) hack/bench/tasks"; \
	  for task in spam pos; do $$bench quality $$task --rounds 3; done; $$bench distil spam; \
	  $$bench distil spam --layers 0; $$bench precision spam; \
	  $$bench private spam --epochs 5

.PHONY: bench-serve
bench-serve: $(VENV) ## the inference server beside its peers: hack/bench/serve/README.md
	@export UV=$(UV); bench="$(PY) hack/bench/serve"; \
	  $$bench overhead; $$bench footprint minilm; $$bench precision spam; $$bench runtimes minilm; \
	  for size in minilm bert-base; do $$bench limit $$size; $$bench latency $$size; $$bench compare $$size --sweep; done

.PHONY: format
format: $(VENV) ## format the code and fix what can be fixed
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --fix .

.PHONY: generate
generate: $(VENV) ## render the CRDs and the reference from the contract, and the rules and dashboards
	@.venv/bin/cloze-crds crds charts/cloze/files/crds --reference docs/reference.md
	@$(PY) hack/monitoring generate

# ---------------------------------------------------------------- cluster, images, chart

.PHONY: cluster-up
cluster-up: ## start the local cluster (or check the one that CLOZE_KUBECONFIG names)
	@python3 hack/cluster up

.PHONY: cluster-down
cluster-down: ## stop it and leave nothing running
	@python3 hack/cluster down

.PHONY: cluster-status
cluster-status: ## say what runs and whether it is healthy
	@python3 hack/cluster status

.PHONY: cluster-reset
cluster-reset: ## stop it and forget its objects and volumes
	@python3 hack/cluster reset

.PHONY: images
images: ## build the images that changed and hand them to the local cluster
	@python3 hack/images push

.PHONY: images-push
images-push: ## build and push to your own registry: make images-push REGISTRY=registry.example/team [GPU=1]
	@test -n "$(REGISTRY)" || { echo "name your registry: make images-push REGISTRY=registry.example/team"; exit 2; }
	@python3 hack/images push $(if $(GPU),--all) --registry "$(REGISTRY)"

.PHONY: install
install: ## install or upgrade the chart on the current cluster
	@$(ON_CLUSTER) hack/install

.PHONY: uninstall
uninstall: ## remove the chart; objects and models are kept
	@$(ON_CLUSTER) helm uninstall cloze --namespace cloze-system --wait

.PHONY: demo-clean
demo-clean: ## delete what the demo created on the cluster
	@$(ON_CLUSTER) kubectl delete namespace cloze-demo --ignore-not-found

.PHONY: cache-prune
cache-prune: ## delete cached tools and images that nothing uses any more; clusters keep their objects
	@python3 hack/images prune; python3 hack/cluster prune

# ---------------------------------------------------------------- locks and the virtual environment

.PHONY: lock
lock: $(UV) ## resolve the dependencies again into requirements/*.txt
	@hack/lock $(UV)

.PHONY: venv
venv: $(VENV) ## the virtual environment with every extra, from the lock

# Built aside and moved into place: several checkouts may start on an empty cache at once.
$(UV):
	@mkdir -p $(CACHE); new="$$(mktemp -d $(UV_HOME).XXXXXX)"; trap 'rm -rf "$$new"' EXIT; \
	python3 -m venv "$$new" && "$$new"/bin/pip install --quiet --require-hashes -r requirements/uv.txt; \
	test -x $@ || mv "$$new" $(UV_HOME)
	@touch $@

$(VENV): requirements/dev.txt pyproject.toml $(UV)
	@test -x $(PY) || $(UV) venv --quiet --python python3 .venv
	@echo "installing the locked packages into .venv (about 3 GB to fetch when the cache is cold: 2 to 5 minutes)"
	@VIRTUAL_ENV=.venv $(UV) pip sync --require-hashes requirements/dev.txt
	@VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --editable .
	@touch $@
