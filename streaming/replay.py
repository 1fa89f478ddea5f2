"""Put dead letters back into the stream, when what was wrong is mended: `python -m streaming.replay --stream …`."""

import sys
import time

import click

from streaming.engine import StreamError, TakenOverError, open_consumer
from streaming.messages import DEAD_LETTERS, RIDES, Output

GROUP = "replay"


@click.command()
@click.option("--stream", required=True, envvar="STREAM", metavar="URL", help="sqlite:///FILE.db or kafka://HOST:PORT,….")
@click.option(
    "--idle", type=float, default=5.0, show_default=True, metavar="SECONDS", help="End when none has come for so long."
)
def main(stream: str, idle: float) -> None:
    """Publish the events of `rides.dlq` into `rides` again, each once; those too large to have been kept are counted.

    Exit codes: 0 done, 2 wrong options, 3 the stream can't be used.
    """
    replayed = lost = 0
    began = time.time()
    try:
        consumer = open_consumer(stream, DEAD_LETTERS, GROUP)
        # one by one, up to those that came of what was replayed here: what is still wrong would go round for ever
        while (events := consumer.read(1, idle)) and events[0].at < began:
            kept = [event for event in events if event.value is not None]
            outputs = [
                Output(RIDES, "", event.value, event.partition, f"{GROUP}:{event.partition}:{event.offset}") for event in kept
            ]
            try:
                consumer.commit(outputs)
            except TakenOverError:
                continue
            replayed, lost = replayed + len(kept), lost + len(events) - len(kept)
        consumer.close()
    except StreamError as error:
        click.echo(f"streaming.replay: {error}", err=True)
        sys.exit(3)
    click.echo(f"{replayed:,} events are in {RIDES} again; {lost:,} were null, or too large to be kept")


if __name__ == "__main__":
    main()
