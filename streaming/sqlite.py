"""A stream in a SQLite file: the embedded default, for one machine.

A topic is the rows of `messages` that name it. A consumer's position and its outputs are written in one transaction; several
workers of a group read the same events, and the first to commit has them.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from streaming.engine import Committed, StreamError, TakenOverError
from streaming.messages import Event, Output

LOCK_SECONDS = 60
_POLL_SECONDS = 0.02

_SCHEMA = """
create table if not exists messages (
    position integer primary key autoincrement, topic text not null, key text, value blob, headers text, once text, at real);
create index if not exists messages_by_topic on messages (topic, position);
create unique index if not exists messages_once on messages (topic, once) where once is not null;
create table if not exists positions (consumer_group text, topic text, position integer, primary key (consumer_group, topic));
"""


class _File:
    """A connection to the file."""

    def __init__(self, url: str, seconds: float = LOCK_SECONDS) -> None:
        self.path = Path(url.removeprefix("sqlite:///"))
        if not self.path.absolute().parent.is_dir():
            raise StreamError(f"there is no folder {self.path.absolute().parent}")
        with self.told():
            self.connection = sqlite3.connect(self.path, timeout=seconds, isolation_level=None, check_same_thread=False)
            self.connection.execute("pragma journal_mode = wal")
            self.connection.executescript(_SCHEMA)

    @contextmanager
    def told(self) -> Iterator[None]:
        """SQLite's errors as a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise StreamError(f"{self.path}: {error}") from None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; the only one that writes."""
        with self.told():
            self.connection.execute("begin immediate")
            try:
                yield self.connection
                self.connection.execute("commit")
            except BaseException:
                with suppress(sqlite3.Error):  # where the disk is full it is rolled back already
                    self.connection.execute("rollback")
                raise

    def close(self) -> None:
        """Let go of it."""
        self.connection.close()


class SqliteFollower:
    """A reader without a group: `engine.Reader`."""

    def __init__(self, url: str, topic: str, beginning: bool = True) -> None:
        self.file, self.topic = _File(url), topic
        self._next = 0
        """Behind the newest event that was read."""
        if not beginning:
            with self.file.told():
                newest = "select coalesce(max(position), 0) from messages where topic = ?"
                (self._next,) = self.file.connection.execute(newest, (topic,)).fetchone()

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events."""
        end = time.monotonic() + seconds
        while not (found := self._found(limit)) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        events = [
            Event(self.topic, 0, position, value, (key or "").encode(), at, msgspec.json.decode(headers) if headers else {})
            for position, key, value, at, headers in found
        ]
        if events:
            self._next = events[-1].offset
        return events

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def _found(self, limit: int) -> list[Any]:
        with self.file.told():
            return self.file.connection.execute(
                "select position, key, value, at, headers from messages "
                "where topic = ? and position > ? order by position limit ?",
                (self.topic, self._next, limit),
            ).fetchall()


class SqliteConsumer(SqliteFollower):
    """A worker of a group: `engine.Consumer`. There is one partition, and all workers of a group are at it."""

    def __init__(self, url: str, topic: str, group: str) -> None:
        super().__init__(url, topic)
        self.group = group
        self._committed = self._next = self._position()

    def commit(self, outputs: Sequence[Output], held: Mapping[int, int] = MappingProxyType({})) -> Committed:
        """Publish outputs and move past what was read."""
        position = min(self._next, held.get(0, self._next + 1) - 1)
        with self.file.transaction() as connection:
            self._check()
            now, published = time.time(), {}
            for topic in {output.topic for output in outputs}:
                before = connection.total_changes
                connection.executemany(
                    "insert into messages (topic, key, value, headers, once, at) values (?, ?, ?, ?, ?, ?) "
                    "on conflict (topic, once) where once is not null do nothing",
                    [
                        (topic, o.key, o.value, msgspec.json.encode({**o.headers}).decode() if o.headers else None, o.once, now)
                        for o in outputs
                        if o.topic == topic
                    ],
                )
                published[topic] = connection.total_changes - before
            connection.execute("insert or replace into positions values (?, ?, ?)", (self.group, self.topic, position))
        self._committed = position
        return Committed(published, len(outputs) - sum(published.values()))

    def partitions(self) -> Set[int]:
        """The only one."""
        return {0}

    def lag(self) -> int:
        """Events that it has still to read."""
        with self.file.told():
            (count,) = self.file.connection.execute(
                "select count(*) from messages where topic = ? and position > ?", (self.topic, self._next)
            ).fetchone()
        return int(count)

    def _found(self, limit: int) -> list[Any]:
        self._check()
        return super()._found(limit)

    def _check(self) -> None:
        """Has another worker of the group moved on? Then go on from there."""
        if (position := self._position()) != self._committed:
            self._committed = self._next = position
            raise TakenOverError

    def _position(self) -> int:
        with self.file.told():
            row = self.file.connection.execute(
                "select position from positions where consumer_group = ? and topic = ?", (self.group, self.topic)
            ).fetchone()
        return int(row[0]) if row else 0


class SqliteProducer:
    """Publishes messages: `engine.Producer`."""

    def __init__(self, url: str, topic: str, seconds: float = LOCK_SECONDS) -> None:
        self.file, self.topic = _File(url, seconds), topic

    def send(self, messages: Iterable[tuple[str, bytes]]) -> int:
        """Publish keys and values, in one transaction."""
        now = time.time()
        rows = [(self.topic, key, value, now) for key, value in messages]
        with self.file.transaction() as connection:
            connection.executemany("insert into messages (topic, key, value, at) values (?, ?, ?, ?)", rows)
        return len(rows)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()
