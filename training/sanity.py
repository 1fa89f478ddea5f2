"""The sweep of `ride_duration.sanity`, as a command: `python -m training.sanity RECORDS`."""

import sys
from pathlib import Path

import click

from ride_duration.model import ModelError
from ride_duration.model_file import load_model
from ride_duration.sanity import examine
from training.records import RecordsError, read_trips


@click.command(context_settings={"show_default": True})
@click.argument("records", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--model", "path", default="model.bin", help="The model file.")
def main(records: Path, path: str) -> None:
    """Sweep a model over the rides of RECORDS (a Parquet file of TLC's) and say what is absurd; exit code 1 if anything is."""
    try:
        sanity = examine(load_model(path, "duration"), read_trips([records])[0].rides)
    except (ModelError, RecordsError) as error:
        raise click.ClickException(str(error)) from None
    for name, value in sanity._asdict().items():
        click.echo(f"{name:15}{value:9.4f}")
    for fault in sanity.faults():
        click.echo(f"absurd: {fault}")
    sys.exit(1 if sanity.faults() else 0)


if __name__ == "__main__":
    main()
