"""What a stream engine must do: read a batch, publish its answers together with the position, and no more."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from streaming.messages import Event, Output


class StreamError(RuntimeError):
    """A stream that can't be used, and why, in a sentence; never with its password."""


class TakenOverError(RuntimeError):
    """Another worker has taken over what was read: nothing was published, and whoever has it now reads it again."""


class Committed(NamedTuple):
    """What became of a batch's outputs."""

    published: int
    suppressed: int
    """Those whose name had been published before."""


class Consumer(Protocol):
    """A worker of a consumer group."""

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events, `limit` at most, or none after `seconds`; read again if they are not committed."""

    def commit(self, outputs: Sequence[Output]) -> Committed:
        """Publish outputs and move past what was read, both or neither.

        Raises
        ------
        TakenOverError, StreamError
            If neither was done.
        """

    def lag(self) -> int:
        """Events that this worker's group has still to read, of those that are this worker's."""

    def close(self) -> None:
        """Leave the group."""


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
        raise StreamError(f"{re.sub(r'//[^/@]*@', '//…@', url)!r} is not a stream: give {_FORMS}")
    return scheme


def open_consumer(url: str, topic: str, group: str) -> Consumer:
    """A worker of a group that reads a topic.

    Raises
    ------
    StreamError
        If the stream can't be reached.
    """
    if _scheme(url) == "sqlite":
        from streaming.sqlite import SqliteConsumer

        return SqliteConsumer(url, topic, group)
    from streaming.kafka import KafkaConsumer

    return KafkaConsumer(url, topic, group)


def open_producer(url: str, topic: str) -> Producer:
    """A producer to a topic.

    Raises
    ------
    StreamError
        If the stream can't be reached.
    """
    if _scheme(url) == "sqlite":
        from streaming.sqlite import SqliteProducer

        return SqliteProducer(url, topic)
    from streaming.kafka import KafkaProducer

    return KafkaProducer(url, topic)


def follow(url: str, topic: str, beginning: bool) -> Consumer:
    """A reader of a topic that belongs to no group and commits nothing, from the beginning or from now on."""
    if _scheme(url) == "sqlite":
        from streaming.sqlite import SqliteFollower

        return SqliteFollower(url, topic, beginning)
    from streaming.kafka import KafkaFollower

    return KafkaFollower(url, topic, beginning)
