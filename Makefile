# The commands of this project. `make` lists them.

PYTHON ?= python3
CATEGORIES ?=
PULL_TO ?= served
RECORDS ?= --month 2021-01 --test-month 2021-02 --final

VENV := .venv
BIN := $(VENV)/bin
# a stamp for each category of the Pipfile that is installed
installed = $(foreach category,$(1),$(VENV)/.installed-$(category))

# what tests and checks need
DEVELOPMENT := packages train report client batch dashboard stream registry dev-packages

# slow tests that mostly wait, for brokers, databases, Spark, MLflow, answers, and for workers to be overtaken: two at a time
WAITING := $(addprefix tests/test_,$(addsuffix .py,fuzz deploy streaming decide registry batch spark live dashboard))

.DEFAULT_GOAL := help
.PHONY: help venv serve batch-demo stream-demo test test-slow browser postgresql spark kafka registry prometheus train models lint lock image clean
# a stamp must not survive a command that failed
.DELETE_ON_ERROR:

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

venv: $(call installed,packages $(CATEGORIES)) ## build .venv with what serving needs, and CATEGORIES="train client" beside it

serve: $(call installed,packages $(if $(MODEL_URI),registry)) ## answer on port 9696 (PORT, MODEL, WEB_CONCURRENCY are obeyed, MODEL_URI follows MLflow)
ifdef MODEL_URI
	$(BIN)/python -m registry.pull --to $(PULL_TO)
	@$(BIN)/python -m registry.pull --to $(PULL_TO) --watch --every 2 & pull=$$!; MODEL=$(PULL_TO)/model.bin $(BIN)/gunicorn predict:app & web=$$!; asked=; \
	trap 'asked=1; kill $$web $$pull' TERM INT; wait $$web; failed=$$?; trap - TERM INT; kill $$pull 2> /dev/null; wait; test "$$asked" || exit $$failed
else
	$(BIN)/gunicorn predict:app
endif

batch-demo: $(call installed,packages batch dashboard) ## make a rides database, score it by the day, show the dashboard on port 8050
	$(BIN)/python -m batch.demo

stream-demo: $(call installed,packages batch stream) ## send rides through the stream, from asking to the offer, and tell what became of them
	$(BIN)/python -m streaming.demo

test: $(call installed,$(DEVELOPMENT)) ## run the tests
	$(BIN)/pytest -m 'not slow' -n auto --maxprocesses 4

test-slow: $(call installed,$(DEVELOPMENT)) ## run the tests that take minutes: Kafka, PostgreSQL, Spark, kills, fuzzing, memory, deploys under load
	$(BIN)/pytest -m slow $(foreach file,$(WAITING),--ignore $(file))
	$(BIN)/pytest -m slow -n 2 $(WAITING)

browser: $(call installed,$(DEVELOPMENT)) ## install Chromium, which the tests of the page drive
	@command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -qq -y chromium; } || $(BIN)/playwright install chromium

postgresql: ## install PostgreSQL, which the tests of the batch door start
	@ls /usr/lib/postgresql/*/bin/initdb || command -v initdb || { apt-get update -qq && apt-get install -qq -y postgresql; }

spark: $(call installed,packages batch spark) ## install Spark, and Java if there is none, for the batch job on a cluster
	@command -v java || { apt-get update -qq && apt-get install -qq -y default-jre-headless; }

kafka: ## install Apache Kafka's jars, and Java and Maven if there are none, for the tests of the stream
	@command -v mvn || { apt-get update -qq && apt-get install -qq -y maven default-jre-headless; }
	@ls .kafka/libs/kafka_*.jar || mvn -q -B -f benchmarks/stream/kafka/pom.xml dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(abspath .kafka/libs)

prometheus: ## install Prometheus' promtool, which the tests of the alert rules run
	@command -v promtool || ls .prometheus/usr/bin/promtool 2> /dev/null || { mkdir -p .prometheus && cd .prometheus && apt-get update -qq && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb; }

registry: $(VENV)/.pipenv ## install MLflow in an environment of its own, .registry; .registry/bin/mlflow server is a registry
	@.registry/bin/mlflow --version 2> /dev/null || { $(PYTHON) -m venv --clear .registry && .registry/bin/pip install --quiet 'mlflow>=3.1' scikit-learn skops; }

train: $(call installed,packages train) ## train model.bin on RECORDS, by default January and February 2021, fetched from TLC
	$(BIN)/python train.py $(RECORDS)

models: $(call installed,packages train) ## train the three models on RECORDS: duration into model.bin, fare and tip into models/
	@mkdir -p models
	$(BIN)/python train.py $(RECORDS)
	$(BIN)/python train.py $(RECORDS) --target fare --out models/fare.bin
	$(BIN)/python train.py $(RECORDS) --target tip --out models/tip.bin

lint: $(call installed,$(DEVELOPMENT)) ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

lock: $(VENV)/.pipenv ## write Pipfile.lock anew, from the newest packages
	env -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null PIPENV_VERBOSITY=-1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/pipenv lock
	$(PYTHON) -c "$$STRIP_LOCK"

image: ## build the container's image
	docker build -t ride-duration .

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.pipenv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; PYTHON=/path/to/python3.12 names another")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pipenv>=2026.7'
	@touch $@

$(VENV)/.installed-%: Pipfile.lock $(VENV)/.pipenv
	PIPENV_VERBOSITY=-1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/pipenv sync --categories "$*"
	@touch $@

# The lock names no package index: whatever index a machine is set up with serves.
define STRIP_LOCK
import json, pathlib
path = pathlib.Path("Pipfile.lock")
lock = json.loads(path.read_text())
lock["_meta"]["sources"] = []
for packages in (section for name, section in lock.items() if name != "_meta"):
    for package in packages.values():
        package.pop("index", None)
path.write_text(json.dumps(lock, indent=4, sort_keys=True) + "\n")
endef
export STRIP_LOCK
