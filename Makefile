# What to type: `make help`. Needs Python 3.11 to 3.13 and make; everything else is
# installed into this folder (.tools/ and .venv/), in the versions of requirements.lock.

PYTHON ?= python3
# Of `make test`; `make test TESTS=tests/unit` runs a part.
TESTS ?= tests
BENCHES ?= unary query storage ingest load streams latency twins mqtt access revocations rollups

UV := .tools/bin/uv
BIN := .venv/bin
INSTALLED := .venv/.installed
# Written from installed packages, git-ignored; this one stands for all of them.
THIRD_PARTY := third_party/proto/buf/validate/validate.proto
# Clients of MQTT for tests, where the system has none.
MOSQUITTO := $(if $(shell command -v mosquitto_pub),,.tools/mosquitto/usr/bin/mosquitto_pub)

# Only what is installed here is imported, whatever the caller's path says.
export PYTHONPATH :=
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: up install lock generate baseline format check audit test soak bench clean help

help: ## What each target does
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

up: install ## Start the whole mesh; Ctrl-C stops it
	@exec $(BIN)/twinmesh up

install: $(INSTALLED) $(THIRD_PARTY) ## Install everything into this folder; done at once when nothing changed

$(UV): tools/install_uv.py
	@echo "installing uv into .tools/"
	@$(PYTHON) tools/install_uv.py
	@touch $(UV)

# An environment knows the folder it was made for: in a moved or copied checkout it
# would run the code of the old one, so there it is made anew.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
NEW_ENVIRONMENT := yes
endif

$(INSTALLED): $(UV) requirements.lock pyproject.toml
	@echo "installing the packages of requirements.lock into .venv/"
	@$(if $(NEW_ENVIRONMENT),$(UV) venv --quiet --clear --python $(PYTHON) .venv)
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@pwd -P > $(INSTALLED)

$(THIRD_PARTY): $(INSTALLED) tools/third_party_protos.py
	@$(BIN)/python -m tools.third_party_protos
	@touch $(THIRD_PARTY)

# Without them the other tests are worth running.
.tools/mosquitto/usr/bin/mosquitto_pub: tools/install_mosquitto.py
	@echo "fetching mosquitto's clients into .tools/"
	@$(PYTHON) tools/install_mosquitto.py && touch $@ || true

lock: $(UV) ## Renew requirements.lock from pyproject.toml
	@$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--python-version 3.11 pyproject.toml --group dev --all-extras --output-file requirements.lock

generate: install ## Write gen/ from proto/, and docs/permissions.md
	@$(BIN)/python -m tools.generate

baseline: install ## Take today's contracts as the last release's (see docs/development.md)
	@$(BIN)/buf build proto --exclude-source-info --output proto/baseline.binpb

format: install ## Format and repair what can be repaired
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

# Each check by itself: make check-types. `make check` runs them all, two at a time,
# and goes on after a failure, so that one run shows everything that is wrong.
CHECKS := check-types check-migrations check-drift check-imports check-format check-lint check-contracts \
	check-breaking check-weaknesses
.PHONY: $(CHECKS)

check: install ## All checks: format, lint, types, imports, contracts, drift, migrations, weaknesses
	@$(MAKE) --jobs 2 --keep-going --output-sync=target $(CHECKS)
	@echo "all checks passed"

# $(call run,what it is,how to repair it,command)
run = @if said=$$($(3) 2>&1); then echo "ok      $(1)"; \
	else printf '%s\n' "$$said" "FAILED  $(1): $(2)"; exit 1; fi

check-format: install
	$(call run,format,run make format,$(BIN)/ruff format --check --quiet .)

check-lint: install
	$(call run,lint,see above,$(BIN)/ruff check --quiet .)

check-types: install
	$(call run,types,see above,$(BIN)/mypy --no-error-summary)

check-imports: install
	$(call run,imports,a part imports what it may not know; see [tool.importlinter] in pyproject.toml,\
		$(BIN)/lint-imports --no-logo)

check-contracts: install
	$(call run,contracts,buf lint; see above,$(BIN)/buf lint)

check-breaking: install
	$(call run,breaking,clients of the last release would break; see docs/development.md,\
		$(BIN)/buf breaking proto --against proto/baseline.binpb)

check-drift: install
	$(call run,drift,run make generate and commit what it wrote,$(BIN)/python -m tools.generate --check)

check-migrations: install
	$(call run,migrations,see above,$(BIN)/python -m tools.check_migrations)

AUDITED := meshkit telemetry_store ingest_svc twin_svc asset_svc auth_svc gateway twinmesh_cli sdk/python
check-weaknesses: install
	$(call run,weaknesses,see above,$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(AUDITED))

# Not a part of `make check`: it asks the registry for advisories, so that the same commit may pass today
# and not tomorrow. A package whose advisories cannot be had is a failure of its own, not a pass.
audit: install ## Known weaknesses: of locked packages (pip-audit), in our code (bandit); needs the registry
	@$(MAKE) --keep-going --output-sync=target check-weaknesses audit-packages
	@echo "no known weakness"

.PHONY: audit-packages
audit-packages: install
	$(call run,packages,renew what is named (docs/development.md) or see what could not be asked,\
		$(BIN)/python -m tools.audit_packages requirements.lock)

test: install $(MOSQUITTO) ## All tests, against real components
	@$(BIN)/pytest -n 2 $(TESTS)

soak: install $(MOSQUITTO) ## The same with full counts of faults and fuzzing
	@TWINMESH_TEST_SCALE=soak $(BIN)/pytest -n 2 --timeout 3600 $(TESTS)

bench: install ## Measure; make bench BENCHES=query runs one
	@for name in $(BENCHES); do $(BIN)/twinmesh bench $$name || exit 1; done

clean: ## Remove what make installed and what tools cached; data (.twinmesh/) stays
	rm -rf .tools .venv third_party .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf .coverage .coverage.* htmlcov dist *.egg-info
