SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE ?= $(HOME)/.cache/cloze
# The cluster that `make demo` and a person use. Tests bring up one of their own.
export CLOZE_CLUSTER ?= cloze
TEST_CLUSTER ?= cloze-test

export UV_CACHE_DIR ?= $(CACHE)/uv
UV := $(CACHE)/uv-tool/bin/uv
PY := .venv/bin/python
VENV := .venv/.current
WITH_CLUSTER := CLOZE_CLUSTER=$(TEST_CLUSTER) hack/with-cluster

.PHONY: help
help: ## list every target
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# ---------------------------------------------------------------- the two commands

.PHONY: demo
demo: $(VENV) cluster-up images install ## real text through training, registry and serving on a local cluster
	@$(PY) hack/demo run

.PHONY: test
test: lint types unit ## everything that must pass: lint, types, unit, then integration and e2e on a cluster of its own
	@$(WITH_CLUSTER) $(MAKE) integration e2e

# ---------------------------------------------------------------- parts of the tests

.PHONY: lint
lint: $(VENV) ## format, lint and architecture checks; generated files are current
	@.venv/bin/ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/lint-imports --no-logo | tail -n 3
	@.venv/bin/cloze-crds --check crds charts/cloze/files/crds --reference docs/reference.md

.PHONY: types
types: $(VENV) ## strict type checks
	@.venv/bin/mypy --no-error-summary

.PHONY: unit
unit: $(VENV) ## tests that need no cluster
	@.venv/bin/pytest -m "not cluster and not e2e and not full" --durations=5 -q

.PHONY: integration
integration: $(VENV) ## tests against the API server of the current cluster
	@eval "$$(python3 hack/cluster env)"; .venv/bin/pytest -m "cluster and not e2e and not full" --durations=5 -q

.PHONY: e2e
e2e: $(VENV) images ## tests with real pods on the current cluster
	@eval "$$(python3 hack/cluster env)"; .venv/bin/pytest -m "e2e and not full" --durations=10 -q

.PHONY: test-full
test-full: $(VENV) ## long suites: repeated kills, cluster life cycles
	@$(WITH_CLUSTER) bash -c 'make images && eval "$$(python3 hack/cluster env)" && .venv/bin/pytest -m full --durations=20 -q'

.PHONY: format
format: $(VENV) ## format the code and fix what can be fixed
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --fix .

.PHONY: generate
generate: $(VENV) ## render the CRDs and the reference from the contract
	@.venv/bin/cloze-crds crds charts/cloze/files/crds --reference docs/reference.md

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
images-push: ## build and push to your own registry: make images-push REGISTRY=registry.example/team
	@test -n "$(REGISTRY)" || { echo "name your registry: make images-push REGISTRY=registry.example/team"; exit 2; }
	@python3 hack/images push --registry "$(REGISTRY)"

.PHONY: install
install: ## install or upgrade the chart on the current cluster
	@eval "$$(python3 hack/cluster env)"; hack/install

.PHONY: uninstall
uninstall: ## remove the chart; objects and models are kept
	@eval "$$(python3 hack/cluster env)"; helm uninstall cloze --namespace cloze-system --wait

.PHONY: demo-clean
demo-clean: ## delete what the demo created on the cluster
	@eval "$$(python3 hack/cluster env)"; kubectl delete namespace cloze-demo --ignore-not-found

.PHONY: cache-prune
cache-prune: ## delete cached tools, images and clusters that nothing uses any more
	@python3 hack/images prune; python3 hack/cluster prune

# ---------------------------------------------------------------- locks and the virtual environment

.PHONY: lock
lock: $(UV) ## resolve the dependencies again into requirements/*.txt
	@hack/lock $(UV)

.PHONY: venv
venv: $(VENV) ## the virtual environment with every extra, from the lock

$(UV): requirements/uv.txt
	@python3 -m venv $(CACHE)/uv-tool && $(CACHE)/uv-tool/bin/pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV): requirements/dev.txt pyproject.toml $(UV)
	@test -x $(PY) || $(UV) venv --quiet --python python3 .venv
	@echo "installing the locked packages into .venv (about 3 GB to fetch when the cache is cold: 2 to 5 minutes)"
	@VIRTUAL_ENV=.venv $(UV) pip sync --quiet --require-hashes requirements/dev.txt
	@VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --editable .
	@touch $@
