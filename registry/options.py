"""What the commands of the registry ask for alike."""

import os

import click

from registry.embedded import wrong

EMBEDDED = "sqlite:///mlflow.db"


def checked_registry(_context: click.Context, _parameter: click.Parameter, uri: str | None) -> str | None:
    """Refuse what can never be a registry as a wrong option, before anything else is done."""
    if uri is not None and (reason := wrong(uri)):
        raise click.BadParameter(reason)
    return uri


registry_option = click.option(
    "--registry",
    "uri",
    default=EMBEDDED,
    show_default=True,
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    callback=checked_registry,
    help="MLflow's server, http://HOST:PORT, or a file of its own, sqlite:///FILE.db.",
)


def default_registry() -> str:
    """What is meant where no registry is named; a wrong option if it can't be one."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or EMBEDDED
    if reason := wrong(uri):
        raise click.UsageError(f"MLFLOW_TRACKING_URI: {reason}")
    return uri
