"""Put dead letters back into the stream, when what was wrong is mended: `python -m streaming.replay --stream …`."""

import uuid
from contextlib import closing

import click

from streaming.engine import TakenOverError, open_consumer
from streaming.messages import DEAD_LETTERS, RIDES, Output
from streaming.worker import stream_option, told

GROUP = "replay"
BATCH = 500


@click.command()
@stream_option
@click.option(
    "--idle",
    type=click.IntRange(1, 3600),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="End when none has come for so long.",
)
def main(stream: str, idle: int) -> None:
    """Publish the events of `rides.dlq` into `rides` again, each once; those too large to have been kept are counted.

    Exit codes: 0 done, 2 wrong options, 3 the stream can't be used.
    """
    replayed = lost = wrong = 0
    run = uuid.uuid4().hex
    with told("replay"), closing(open_consumer(stream, DEAD_LETTERS, GROUP)) as consumer:
        while True:
            try:
                events = consumer.read(BATCH, idle)
                if not events:
                    break
                kept = [event for event in events if event.value is not None and event.headers.get("topic") == RIDES]
                # what came of this very run is still wrong, and would go round for ever
                fresh = [event for event in kept if event.headers.get("replayed") != run]
                consumer.commit(
                    [
                        Output(RIDES, "", e.value, e.partition, f"{GROUP}:{e.partition}:{e.offset}", {"replayed": run})
                        for e in fresh
                    ]
                )
            except TakenOverError:
                continue
            replayed, wrong, lost = replayed + len(fresh), wrong + len(kept) - len(fresh), lost + len(events) - len(kept)
    click.echo(
        f"{replayed:,} events are in {RIDES} again, {wrong:,} of them came back; {lost:,} were null, too large, or no rides"
    )


if __name__ == "__main__":
    main()
