"""What the commands of the registry ask for alike."""

import click

registry_option = click.option(
    "--registry",
    "uri",
    default="sqlite:///mlflow.db",
    show_default=True,
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="MLflow's server, http://HOST:PORT, or a file of its own, sqlite:///FILE.db.",
)
