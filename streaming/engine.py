"""What a stream engine must do: read a batch, publish its answers together with the position, and no more."""

import time
from collections.abc import Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import NamedTuple, Protocol

from ride_duration.logs import shown
from streaming.messages import Event, Output


class StreamError(RuntimeError):
    """A stream that can't be used, and why, in a sentence; never with its password."""


class TakenOverError(RuntimeError):
    """Another worker has, or may have, what was read: nothing was published, and whoever has it now reads it again.

    What was built on events that were read and not moved past is void: those that are still this worker's come again.
    """


class Committed(NamedTuple):
    """What became of a batch's outputs."""

    published: Mapping[str, int]
    """How many, by topic."""
    suppressed: int
    """Those whose name had been published before."""


class Heart:
    """When this process was last seen to do something, were it only to ask brokers again that are away."""

    at = time.monotonic()

    @classmethod
    def beat(cls) -> None:
        """It does something."""
        cls.at = time.monotonic()


class Reader(Protocol):
    """Reads a topic."""

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events, `limit` at most, or none after `seconds`.

        Raises
        ------
        TakenOverError, StreamError
        """

    def close(self) -> None:
        """Let go of the stream, and leave the group."""


class Consumer(Reader, Protocol):
    """A worker of a consumer group: what it has read and not committed comes again, to it or to another."""

    def commit(self, outputs: Sequence[Output], held: Mapping[int, int] = MappingProxyType({})) -> Committed:
        """Publish outputs and move past what was read, both or neither.

        Parameters
        ----------
        held
            The first offset of a partition that must come again, should this worker end: the position stays before it.

        Raises
        ------
        TakenOverError, StreamError
            If neither was done.
        """

    def partitions(self) -> Set[int]:
        """Those that are this worker's."""

    def lag(self) -> int:
        """Events of this worker's partitions that it has still to read."""


class Producer(Protocol):
    """Publishes messages, each acknowledged when `send` returns."""

    def send(self, messages: Iterable[tuple[str, bytes]]) -> int:
        """Publish keys and values in order; how many."""

    def close(self) -> None:
        """Let go of the stream."""


_FORMS = "sqlite:///FILE.db or kafka://HOST:PORT"


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme not in ("sqlite", "kafka") or not url.partition("://")[2].strip("/"):
        raise StreamError(f"{shown(url)!r} is not a stream: give {_FORMS}")
    if scheme == "kafka" and "@" in url:
        raise StreamError(f"{shown(url)} names a user: give KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD in the environment")
    return scheme


def open_consumer(url: str, topic: str, group: str, answers: str | None = None) -> Consumer:
    """A worker of a group that reads a topic.

    Parameters
    ----------
    answers
        The topic that it answers into, each name once: its partitions go with those of `topic`.

    Raises
    ------
    StreamError
        If the stream can't be reached.
    """
    if _scheme(url) == "sqlite":
        from streaming.sqlite import SqliteConsumer

        return SqliteConsumer(url, topic, group)
    from streaming.kafka import KafkaConsumer

    return KafkaConsumer(url, topic, group, answers)


def open_producer(url: str, topic: str, seconds: float = 30.0) -> Producer:
    """A producer to a topic, which gives up on a message after so many seconds.

    Raises
    ------
    StreamError
        If the stream can't be reached.
    """
    if _scheme(url) == "sqlite":
        from streaming.sqlite import SqliteProducer

        return SqliteProducer(url, topic, seconds)
    from streaming.kafka import KafkaProducer

    return KafkaProducer(url, topic, seconds)


def follow(url: str, topic: str, beginning: bool) -> Reader:
    """A reader of a topic that belongs to no group and commits nothing, from the beginning or from now on."""
    if _scheme(url) == "sqlite":
        from streaming.sqlite import SqliteFollower

        return SqliteFollower(url, topic, beginning)
    from streaming.kafka import KafkaFollower

    return KafkaFollower(url, topic, beginning)
