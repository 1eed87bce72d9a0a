# Two commands do everything, set-up included, on a machine that has only Python 3.11+ and make:
#   make demo    the whole experiment, offline, on a fictional newsroom
#   make test    every test
#   make compare BASE=HuggingFaceTB/SmolLM2-135M-Instruct ARTICLES=articles.jsonl   the experiment on your own articles
#   make all BASE=HuggingFaceTB/SmolLM2-135M-Instruct   the same after new articles are scraped (docs/schedule.md)
#   make bench   train.py beside transformers' Trainer: hours on a CPU; one row of it: make bench-small
#   make bench-growth   how its cost grows with the context and the model
# TORCH_INDEX picks another build of torch, for example
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
VENV = .venv
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test lint bench bench-growth clean compare all scrape comparison check FORCE

demo: $(VENV)/run-time
	$(VENV)/bin/python -m nanoprune.demo $(DEMO)

test: $(VENV)/development
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(or $(TESTS),-n 2 --dist worksteal)

lint: $(VENV)/development
	$(VENV)/bin/ruff check .

bench: $(VENV)/development
	$(VENV)/bin/python -m benchmarks.train $(BENCH)

bench-growth: $(VENV)/run-time
	$(VENV)/bin/python -m benchmarks.growth $(BENCH)

bench-%: $(VENV)/development
	$(VENV)/bin/python -m benchmarks.train $* $(BENCH)

# ---- the comparison: python -m nanoprune.compare locks, logs, and makes these steps as far as they are not up to date.
# NAME names its folders, CONFIG holds the settings of both arms. SCRAPE, PREPARE, SCORE, TRAIN and EVAL hold further
# options of the scripts. A signal that make passes on reaches Python itself, because of exec.
SETTINGS = BASE ARTICLES NAME CONFIG SCRAPE PREPARE SCORE TRAIN EVAL
BASE =
SCRAPE =
PREPARE =
SCORE =
TRAIN =
EVAL =
ARTICLES = data/raw/articles.jsonl
NAME = $(notdir $(BASE))
CONFIG = configs/smollm2_full.py
PY = $(VENV)/bin/python
DATA = data/$(NAME)
RUNS = runs/$(NAME)
REDUCED = models/$(NAME)-reduced
RESULTS = results/$(NAME)
WEIGHTS = $(wildcard $(BASE)/*.safetensors $(BASE)/model/*.safetensors)
ARM = $(CONFIG) --data=$(DATA) --runs=$(RUNS) $(TRAIN)
given = $(foreach setting,$(SETTINGS),$(if $($(setting)),'$(setting)=$($(setting))'))
changed = $(addprefix $(RESULTS)/settings/,$(1))

compare: $(VENV)/run-time
	@$(PY) -m nanoprune.compare comparison $(given)

all: $(VENV)/run-time
	@$(PY) -m nanoprune.compare scrape comparison $(given)

comparison: check $(RESULTS)/results.md
	@echo "$(RESULTS)/results.md is up to date"

check:
	@test "$(words $(BASE) $(ARTICLES) $(NAME))" = 3 || { echo "give BASE=, the model: a hub name or a folder" \
		"(without a slash at its end; names have no spaces)"; exit 2; }
	@test -f "$(ARTICLES)" || { echo "there is no file $(ARTICLES): give ARTICLES=, as scrape.py writes it"; exit 2; }

scrape:
	exec $(PY) scrape.py --out $(ARTICLES) $(SCRAPE)

# A file for each setting, written when it changes.
$(RESULTS)/settings/%: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$($*)' | cmp -s - $@ || printf '%s\n' '$($*)' > $@

$(DATA)/meta.json: $(ARTICLES) $(call changed,BASE ARTICLES PREPARE)
	exec $(PY) prepare.py $(ARTICLES) --out $(DATA) --tokenizer $(BASE) $(PREPARE)

# A file may be written again with the same content: what follows rests on the content.
$(RESULTS)/dataset: $(DATA)/meta.json
	@cat $(DATA)/*.safetensors $(DATA)/qa/*.jsonl 2>/dev/null | cksum > $@.new
	@cmp -s $@.new $@ || cp $@.new $@

$(REDUCED)/config.json: $(RESULTS)/dataset $(WEIGHTS) $(call changed,BASE SCORE)
	exec $(PY) train.py $(ARM) --name=time --base=$(BASE) --dry-run
	exec $(PY) prune.py $(BASE) --data $(DATA) --score $(RESULTS)/blocks.csv --choose 1 --out $(REDUCED) $(SCORE)

# Training goes on where it was stopped. A run that has no state yet, or began before what it rests on was made, is
# kept under another name. A stamp says that a run is finished.
define train
	@mkdir -p $(RUNS)
	@if test -d $(@D) && { ! ls $(@D)/state/step-* || test -n "$$(find $^ -newer $(@D)/config.json)"; } >/dev/null 2>&1; \
		then mv -v $(@D) $(@D)-until-$$(date +%Y-%m-%d-%H%M%S); fi
	exec $(PY) train.py $$(test -d $(@D) && echo --resume $(@D) || echo $(ARM) --name=$(1) --base=$(2))
	@touch $@
endef

$(RUNS)/full/.finished: $(RESULTS)/dataset $(WEIGHTS) $(CONFIG) $(call changed,BASE CONFIG TRAIN)
	$(call train,full,$(BASE))

$(RUNS)/reduced/.finished: $(REDUCED)/config.json $(CONFIG) $(call changed,CONFIG TRAIN)
	$(call train,reduced,$(REDUCED))

$(RESULTS)/results.md: $(REDUCED)/config.json $(RUNS)/full/.finished $(RUNS)/reduced/.finished $(call changed,EVAL)
	exec $(PY) eval.py $(BASE) $(REDUCED) $(RUNS)/full $(RUNS)/reduced --data $(DATA) --out $(RESULTS) $(EVAL)

.PRECIOUS: $(DATA)/meta.json $(REDUCED)/config.json $(RESULTS)/results.md $(RESULTS)/settings/%
FORCE:

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nanoprune needs Python 3.11 or newer; none was found. Give one: make demo PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamp files say what is installed: a second run installs nothing, a changed pin installs again.
$(VENV)/run-time: requirements.txt | $(VENV)/bin/python
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $$(grep '^torch==' requirements.txt))
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/development: requirements-dev.txt $(VENV)/run-time
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV)
