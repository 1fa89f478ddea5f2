"""Print a stream: `python -m streaming.tail --stream sqlite:///rides.db predictions`."""

import sys
import time

import click

from streaming.engine import StreamError, follow
from streaming.messages import DEAD_LETTERS, PREDICTIONS, RIDES


@click.command(context_settings={"show_default": True})
@click.argument("topic", type=click.Choice([RIDES, PREDICTIONS, DEAD_LETTERS, "decisions"]), default=PREDICTIONS)
@click.option("--stream", required=True, envvar="STREAM", metavar="URL", help="sqlite:///FILE.db or kafka://HOST:PORT,….")
@click.option("--from-beginning", is_flag=True, help="What is there already too.")
@click.option("--idle", type=float, default=None, metavar="SECONDS", help="End when nothing has come for so long.")
def main(topic: str, stream: str, from_beginning: bool, idle: float | None) -> None:
    """Print the messages of TOPIC, a line each, until interrupted."""
    try:
        reader, at = follow(stream, topic, from_beginning), time.monotonic()
        while idle is None or time.monotonic() - at < idle:
            for event in reader.read(1000, 0.2):
                sys.stdout.write((event.value or b"null").decode(errors="replace") + "\n")
                at = time.monotonic()
            sys.stdout.flush()
    except StreamError as error:
        click.echo(f"streaming.tail: {error}", err=True)
        sys.exit(3)
    except (KeyboardInterrupt, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
