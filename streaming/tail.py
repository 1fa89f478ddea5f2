"""Print a stream: `python -m streaming.tail --stream sqlite:///rides.db predictions`."""

import json
import sys
import time
from contextlib import suppress

import click

from streaming.engine import follow
from streaming.messages import PREDICTIONS, TOPICS
from streaming.worker import stream_option, told


@click.command(context_settings={"show_default": True})
@click.argument("topic", type=click.Choice(TOPICS), default=PREDICTIONS)
@stream_option
@click.option("--from-beginning", is_flag=True, help="What is there already too.")
@click.option("--idle", type=click.IntRange(1, 86_400), metavar="SECONDS", help="End when nothing has come for so long.")
def main(topic: str, stream: str, from_beginning: bool, idle: int | None) -> None:
    """Print the messages of TOPIC, a line each, until interrupted; dead letters with the error that made them so."""
    with told("tail"), suppress(KeyboardInterrupt, BrokenPipeError):
        reader, at = follow(stream, topic, from_beginning), time.monotonic()
        while idle is None or time.monotonic() - at < idle:
            for event in reader.read(1000, 0.2):
                value = (event.value or b"null").decode(errors="replace")
                sys.stdout.write((json.dumps({**event.headers, "value": value}) if event.headers else value) + "\n")
                at = time.monotonic()
            sys.stdout.flush()


if __name__ == "__main__":
    main()
