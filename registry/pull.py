"""From the registry into a folder that a door watches: `python -m registry.pull models:/ride-duration@champion --to served`.

The doors know no registry: they watch a file, and what replaces it is a hot swap. While the registry is away, the last good
file serves on.
"""

import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import click

from registry.embedded import open_registry
from registry.mlflow import FORMS, NotThereError, Registry, RegistryError, is_model
from registry.options import registry_option
from ride_duration import logs
from ride_duration.logs import log
from ride_duration.model import LinearModel, ModelError
from ride_duration.model_file import load_model, parse_model, write_whole
from ride_duration.ride import Target
from ride_duration.watch import identity

EXIT_REGISTRY, EXIT_MODEL = 3, 4
FILE = "model.bin"
REFUSED_SECONDS = 60.0
"""How long a refused model isn't fetched again: its upload may not have been finished, or a proxy may have answered."""


class Puller:
    """Keeps a file as the registry has it.

    Parameters
    ----------
    target
        What a model must predict to be put in place; None takes any.
    """

    def __init__(self, registry: Registry, uri: str, folder: Path, target: Target | None) -> None:
        self.registry, self.uri, self.path, self.target = registry, uri, folder / FILE, target
        self._found = ""
        self._written: tuple[int, ...] | None = None
        self._refused: dict[str, tuple[float, ModelError]] = {}

    def pull(self) -> None:
        """Put the model in place if it is another than that which is there.

        Raises
        ------
        RegistryError, ModelError, OSError
            What is in place stays.
        """
        place = self.registry.find(self.uri)
        # the file may have been replaced or deleted by somebody else
        if place.folder == self._found and self._written and identity(self.path) == self._written:
            return
        until, refusal = self._refused.get(place.folder, (0.0, None))
        if refusal and time.monotonic() < until:
            raise refusal
        try:
            content = self.registry.model_file(place)
            model = parse_model(content, self.target)
        except ModelError as error:
            refusal = ModelError(f"{place.name}: {error}")
            self._refused[place.folder] = time.monotonic() + REFUSED_SECONDS, refusal
            raise refusal from None
        if not self.path.exists() or self.path.read_bytes() != content:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(content, self.path)
            log.info("pulled", extra={"fields": {"model": place.name, "model_version": model.version, "to": str(self.path)}})
        self._found, self._written = place.folder, identity(self.path)


def in_place(path: Path, target: Target | None) -> LinearModel | None:
    """The good model that a file is, if it is one."""
    try:
        return load_model(path, target)
    except ModelError:
        return None


def tell(error: Exception, serving: LinearModel | None) -> None:
    """Log why nothing was pulled, and what serves on."""
    fields = {"reason": str(error), "model_version": serving and serving.version}
    log.warning("not pulled", extra={"fields": fields})


def checked_model(_context: click.Context, _parameter: click.Parameter, uri: str) -> str:
    """Refuse what can never name a model as a wrong option, also when a good file is in place."""
    if not is_model(uri):
        raise click.BadParameter(f"{uri[:200]!r} is not a model: give {FORMS}")
    return uri


@click.command(context_settings={"show_default": True})
@click.argument("model_uri", metavar="URI", envvar="MODEL_URI", callback=checked_model)
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder; the file in it is model.bin.",
)
@registry_option
@click.option("--watch", is_flag=True, help="Go on, and follow what the URI stands for.")
@click.option("--every", type=click.IntRange(1, 86_400), default=5, metavar="SECONDS", help="How often --watch looks.")
@click.option("--target", type=click.Choice(["duration", "fare", "tip"]), help="What the model must predict; any without it.")
def main(model_uri: str, folder: Path, uri: str, watch: bool, every: int, target: Target | None) -> None:
    """Fetch a model from MLflow, check it, and put it where a door watches.

    URI is models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/PATH.

    A file that is not a model is refused, and what is in place serves on; so it does while the registry is away, which is told.
    With --watch it never gives up: what isn't there yet may come, and an MLflow of its own that doesn't start or dies is
    started again.

    Exit codes: 0 a good model is in place, or --watch was ended, 2 wrong options, 3 none is, and the registry can't be asked,
    4 none is, since what the registry has is refused.
    """
    logs.set_up()
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())
    told, puller = "", None
    with ExitStack() as opened:
        while True:
            try:
                if puller is None:
                    puller = Puller(opened.enter_context(open_registry(uri, stopped)), model_uri, folder, target)
                puller.pull()
                told = ""
            except (RegistryError, ModelError, OSError) as error:
                serving = in_place(folder / FILE, target)
                if not (watch or serving):
                    click.echo(f"registry.pull: {error}", err=True)
                    sys.exit(EXIT_MODEL if isinstance(error, ModelError) else EXIT_REGISTRY)
                ended = watch and puller is None and stopped.is_set()  # while the registry was opened: that is no news
                if str(error) != told and not ended:
                    told = str(error)
                    tell(error, serving)
                if isinstance(error, RegistryError) and not isinstance(error, NotThereError):
                    opened.close()  # a server of its own may have died
                    puller = None
            if not watch or stopped.wait(every):
                return


if __name__ == "__main__":
    main()
