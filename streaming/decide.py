"""predictions → decisions: `python -m streaming.decide --stream sqlite:///rides.db`.

The predictions of a ride are joined in a window. Its decision, and a position that stays before the oldest ride that is still
open, are one transaction: killed at any instant, what was open is read again, and what was decided is not decided again. (A
dead letter that came after an open ride may come twice from Kafka then.)
"""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from contextlib import closing

import click
import msgspec
from prometheus_client import Gauge

from ride_duration.logs import log
from ride_duration.ride import Target
from streaming.engine import open_consumer
from streaming.messages import (
    DECISION,
    DECISIONS,
    PREDICTIONS,
    TARGETS,
    BadEvent,
    Decision,
    Event,
    Offer,
    Output,
    PredictionEvent,
    dead_letter,
    read_prediction,
)
from streaming.worker import Step, Worker, port_option, service, stream_option

REMEMBERED = 100_000
"""Decided rides whose later predictions are known to be late; the stream itself remembers what was decided."""

PAUSE = 1.0
"""Seconds between two steps that are more than waiting for the next events."""

OPEN = Gauge("ride_duration_stream_open_rides", "Rides that wait for a model's prediction.")

_encode = msgspec.json.Encoder().encode


class _Open:
    """A ride that isn't decided."""

    def __init__(self, event: Event) -> None:
        self.offset, self.opened = event.offset, event.at
        self.came: dict[Target, PredictionEvent] = {}


class _Partition:
    """What is known of a partition: its open rides in the order of their offsets, and its clocks."""

    def __init__(self) -> None:
        self.open: dict[str, _Open] = {}
        self.time, self.read_at = 0.0, 0.0


class Decider:
    """Joins the predictions of a ride.

    A ride is decided when all `targets` are there; without the missing ones when `window` seconds of message time have gone by
    since its first, or when nothing has come in its partition for `idle` seconds.
    """

    def __init__(self, targets: Sequence[Target] = TARGETS, window: float = 30.0, idle: float = 30.0) -> None:
        self.targets, self.window, self.idle = targets, window, idle
        self._partitions: dict[int, _Partition] = {}
        self._decided: OrderedDict[str, None] = OrderedDict()
        self._stepped = 0.0

    def step(self, events: Sequence[Event], owned: Set[int], now: float) -> Step:
        """What is decided when `events` have come, of the partitions that are owned; `now` is seconds of any clock."""
        for number in self._partitions.keys() - owned:
            del self._partitions[number]  # another worker reads its open rides again
        if (pause := now - self._stepped) > PAUSE:  # ours, or the brokers': the stream may have gone on meanwhile
            for partition in self._partitions.values():
                partition.read_at += pause
        self._stepped = now
        outputs: list[Output] = []
        late = incomplete = 0
        for event in events:
            if event.partition not in owned:
                continue
            partition = self._partitions.setdefault(event.partition, _Partition())
            partition.time, partition.read_at = max(partition.time, event.at), now
            try:
                target, came = read_prediction(event.value)
            except BadEvent as error:
                outputs.append(dead_letter(event, str(error), DECISION))
                continue
            key = str(came.prediction.ride_id)
            if target not in self.targets:
                continue
            if key in self._decided:
                late += 1
                continue
            ride = partition.open.setdefault(key, _Open(event))
            ride.came.setdefault(target, came)
            if len(ride.came) == len(self.targets):
                outputs.append(self._decide(key, partition, event.partition))
        for number, partition in self._partitions.items():
            idle = now - partition.read_at >= self.idle
            closing_ = [k for k, ride in partition.open.items() if idle or partition.time - ride.opened >= self.window]
            outputs += [self._decide(key, partition, number) for key in closing_]
            incomplete += len(closing_)
        while len(self._decided) > REMEMBERED:
            self._decided.popitem(last=False)
        return Step(outputs, self._held(), {"late": late, "incomplete": incomplete})

    def forget(self) -> None:
        """What was read and not committed comes again."""
        self._partitions.clear()
        self._decided.clear()

    @property
    def open(self) -> int:
        """Rides that are not decided yet."""
        return sum(len(partition.open) for partition in self._partitions.values())

    def _held(self) -> Mapping[int, int]:
        return {
            number: next(iter(partition.open.values())).offset
            for number, partition in self._partitions.items()
            if partition.open
        }

    def _decide(self, key: str, partition: _Partition, number: int) -> Output:
        came = partition.open.pop(key).came
        self._decided[key] = None
        offer = Offer(versions={target: event.version for target, event in came.items()})
        for target, event in came.items():
            setattr(offer, target, event.prediction.value(target))
        if "duration" in came:
            offer.interval = came["duration"].prediction.interval
        ride_id = next(iter(came.values())).prediction.ride_id
        missing = tuple(target for target in self.targets if target not in came)
        return Output(DECISIONS, key, _encode(Decision(ride_id, offer, missing)), number, f"{DECISION}:{key}")


@click.command(context_settings={"show_default": True})
@stream_option
@click.option(
    "--target", "targets", multiple=True, type=click.Choice(TARGETS), default=TARGETS, help="What to wait for; may be repeated."
)
@click.option(
    "--window", type=click.IntRange(0, 86_400), default=30, metavar="SECONDS", help="Of message time, from a ride's first."
)
@click.option("--idle", type=click.IntRange(0, 86_400), default=30, metavar="SECONDS", help="Without anything new.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=500, help="Predictions in a transaction, at most.")
@port_option
def main(stream: str, targets: tuple[Target, ...], window: float, idle: float, batch: int, port: int) -> None:
    """Join each ride's predictions into one decision, in `decisions`: an offer, and which models are missing in it.

    It is made when all have come, and without the missing ones when --window or --idle is over; what comes later is counted.

    Exit codes: 0 asked to end, 2 wrong options, 3 the stream can't be used.
    """
    decider = Decider(targets, window, idle)
    with service("decide"), closing(open_consumer(stream, PREDICTIONS, DECISION, DECISIONS)) as consumer:

        def step(events: Sequence[Event]) -> Step:
            found = decider.step(events, consumer.partitions(), time.monotonic())
            OPEN.set(decider.open)
            return found

        log.info("deciding", extra={"fields": {"targets": list(targets)}})
        Worker(consumer, step, "decided", batch, decider.forget).run(port)


if __name__ == "__main__":
    main()
