"""The model registry: MLflow's, spoken to through its REST API."""

import sys
from importlib.util import find_spec

if not find_spec("requests"):  # all modules here need it
    sys.exit("registry needs requests: run `make venv CATEGORIES=registry`")
