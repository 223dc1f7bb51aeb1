# Two commands do all the set-up there is: `make demo` trains and samples, `make test` passes the tests.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
RUN ?= runs/demo

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null; then \
	  UV_FIND_LINKS="$$PIP_FIND_LINKS" uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'; \
	fi
	touch $@

demo: $(VENV)/.installed
	rm -rf $(RUN)
	$(BIN)/flowdsl train meanflow --out $(RUN)
	$(BIN)/flowdsl sample $(RUN) --steps 1,2,4 --out $(RUN)/samples.png
	$(BIN)/flowdsl evaluate $(RUN) --steps 1,2,4

test: $(VENV)/.installed
	$(BIN)/python -m pytest --cov=flowdsl --cov-report=term

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: demo test lint
