# The two commands a newcomer needs: `make quickstart` and `make test`.

export PATH := $(HOME)/.cargo/bin:$(PATH)
VENV := .venv

.PHONY: quickstart test bench bench-plots gpu-check fuzz lint venv deps clean

## Build, start a daemon on a temporary directory, and train a network on real digits through it.
quickstart: deps
	cargo build --release --locked --bins
	target/release/kasmina quickstart

## Everything that must hold: Rust tests, Python tests, the whole path with PyTorch.
test:
	scripts/test

## Prints the tables of docs/performance.md, both sides measured in one run.
bench: venv
	cargo build --release --locked --bins
	$(VENV)/bin/python benches/bench.py $(if $(CASE),--case "$(CASE)")

## Draws how cost grows with seeds, layers, sessions, batch and dormant seeds: docs/plots, and its part of docs/performance.md.
bench-plots: venv
	cargo build --release --locked --bins
	$(VENV)/bin/python benches/scale.py

## Every check on this machine's GPU; writes docs/gpu-report.md.
gpu-check: venv
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/gpu-check

## Fuzzes every reader of artifacts for FUZZ_SECONDS each, 60 by default.
fuzz:
	scripts/fuzz

## Format, clippy, documentation, and dependencies where cargo-deny is installed.
lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo "cargo-deny is not installed: dependencies were not checked"; fi

## The Python environment that tests and examples use.
venv: deps
	scripts/venv

## Packages of the system: installed where we are root, named where not.
deps:
	scripts/deps

clean:
	cargo clean
	rm -rf $(VENV)
