"""What the commands of the registry ask for alike."""

import os

import click

EMBEDDED = "sqlite:///mlflow.db"

registry_option = click.option(
    "--registry",
    "uri",
    default=EMBEDDED,
    show_default=True,
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="MLflow's server, http://HOST:PORT, or a file of its own, sqlite:///FILE.db.",
)


def default_registry() -> str:
    """What is meant where no registry is named."""
    return os.environ.get("MLFLOW_TRACKING_URI") or EMBEDDED
