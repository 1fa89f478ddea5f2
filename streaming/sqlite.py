"""A stream in a SQLite file: the embedded default, for one machine.

A topic is the rows of `messages` that name it. A consumer's position and its outputs are written in one transaction; several
workers of a group read the same events, and the first to commit has them.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

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

    def __init__(self, url: str) -> None:
        self.path = Path(url.removeprefix("sqlite:///"))
        if not self.path.absolute().parent.is_dir():
            raise StreamError(f"there is no folder {self.path.absolute().parent}")
        with self.told():
            self.connection = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
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


class SqliteConsumer:
    """A worker of a group: `engine.Consumer`."""

    def __init__(self, url: str, topic: str, group: str) -> None:
        self.file, self.topic, self.group = _File(url), topic, group
        self._from = self._to = 0

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events."""
        end = time.monotonic() + seconds
        while True:
            with self.file.told():
                self._from = self._to = self._position()
                found = self.file.connection.execute(
                    "select position, key, value, at from messages where topic = ? and position > ? order by position limit ?",
                    (self.topic, self._from, limit),
                ).fetchall()
            if found or time.monotonic() >= end:
                break
            time.sleep(_POLL_SECONDS)
        events = [Event(self.topic, 0, position, value, (key or "").encode(), at) for position, key, value, at in found]
        if events:
            self._to = events[-1].offset
        return events

    def commit(self, outputs: Sequence[Output]) -> Committed:
        """Publish outputs and move past what was read."""
        with self.file.transaction() as connection:
            if self._position() != self._from:
                raise TakenOverError
            before = connection.total_changes
            now = time.time()
            connection.executemany(
                "insert into messages (topic, key, value, headers, once, at) values (?, ?, ?, ?, ?, ?) "
                "on conflict (topic, once) where once is not null do nothing",
                [
                    (o.topic, o.key, o.value, msgspec.json.encode(dict(o.headers)).decode() if o.headers else None, o.once, now)
                    for o in outputs
                ],
            )
            published = connection.total_changes - before
            connection.execute("insert or replace into positions values (?, ?, ?)", (self.group, self.topic, self._to))
        self._from = self._to
        return Committed(published, len(outputs) - published)

    def lag(self) -> int:
        """Events that the group has still to read."""
        with self.file.told():
            (count,) = self.file.connection.execute(
                "select count(*) from messages where topic = ? and position > ?", (self.topic, self._position())
            ).fetchone()
        return int(count)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def _position(self) -> int:
        row = self.file.connection.execute(
            "select position from positions where consumer_group = ? and topic = ?", (self.group, self.topic)
        ).fetchone()
        return int(row[0]) if row else 0


class SqliteFollower(SqliteConsumer):
    """A reader without a group."""

    def __init__(self, url: str, topic: str, beginning: bool) -> None:
        super().__init__(url, topic, "")
        self._at = 0
        if not beginning:
            with self.file.told():
                row = self.file.connection.execute("select max(position) from messages where topic = ?", (topic,)).fetchone()
            self._at = row[0] or 0

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events."""
        events = super().read(limit, seconds)
        self._at = self._to
        return events

    def _position(self) -> int:
        return self._at


class SqliteProducer:
    """Publishes messages: `engine.Producer`."""

    def __init__(self, url: str, topic: str) -> None:
        self.file, self.topic = _File(url), topic

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
