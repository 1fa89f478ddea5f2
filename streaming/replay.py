"""Put dead letters back into the stream, when what was wrong is mended: `python -m streaming.replay --stream …`."""

import time
from contextlib import closing

import click

from streaming.engine import TakenOverError, open_consumer
from streaming.messages import DEAD_LETTERS, RIDES, Output
from streaming.worker import stream_option, told

GROUP = "replay"


@click.command()
@stream_option
@click.option(
    "--idle", type=float, default=5.0, show_default=True, metavar="SECONDS", help="End when none has come for so long."
)
def main(stream: str, idle: float) -> None:
    """Publish the events of `rides.dlq` into `rides` again, each once; those too large to have been kept are counted.

    Exit codes: 0 done, 2 wrong options, 3 the stream can't be used.
    """
    replayed = lost = 0
    began = time.time()
    with told("replay"), closing(open_consumer(stream, DEAD_LETTERS, GROUP)) as consumer:
        # one by one, up to those that came of what was replayed here: what is still wrong would go round for ever
        while True:
            try:
                events = consumer.read(1, idle)
                if not events or events[0].at >= began:
                    break
                kept = [event for event in events if event.value is not None and event.headers.get("topic") == RIDES]
                consumer.commit([Output(RIDES, "", e.value, e.partition, f"{GROUP}:{e.partition}:{e.offset}") for e in kept])
            except TakenOverError:
                continue
            replayed, lost = replayed + len(kept), lost + len(events) - len(kept)
    click.echo(f"{replayed:,} events are in {RIDES} again; {lost:,} were null, too large to be kept, or no rides")


if __name__ == "__main__":
    main()
