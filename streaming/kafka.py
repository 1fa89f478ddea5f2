"""A stream in Apache Kafka, through confluent-kafka (librdkafka).

Outputs and offsets are one transaction, and every reader is `read_committed`: a worker that is killed, or overtaken while it
stands still, publishes nothing. Transactions can't see that a producer has sent a ride twice, so each worker remembers the
newest names that its partitions have published, and reads them back when it is given a partition.

Any property of librdkafka may be set by an environment variable: `KAFKA_SASL_USERNAME` is `sasl.username`.
"""

import math
import os
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import prometheus_client

from streaming.engine import Committed, Heart, StreamError, TakenOverError

try:
    import confluent_kafka as ck
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic
except ModuleNotFoundError:
    raise StreamError("kafka:// needs confluent-kafka: run `make venv CATEGORIES=stream`") from None

from ride_duration.logs import log
from streaming.messages import DEAD_LETTERS, RIDES, Event, Output, name_of_message

Result = TypeVar("Result")

PARTITIONS = 6
"""Of a topic that is made because it wasn't there: so many workers can share it."""

REMEMBERED = 100_000
"""Names that are remembered of each partition."""

MAX_FAILURES = 10
"""Transactions in a row that may go wrong: after that it is no broker's death, but something that comes again."""

_SECONDS = 30.0
_AGAIN_SECONDS = 0.5
_TRANSACTION_SECONDS = 20
"""Two of the broker's limits of 10 s: what takes longer has no chance left."""

_PREFIX = "KAFKA_"


def settings(url: str) -> dict[str, Any]:
    """Librdkafka's properties: the servers of `kafka://HOST:PORT,HOST:PORT`, and those of the environment."""
    found = {
        name.removeprefix(_PREFIX).lower().replace("_", "."): value
        for name, value in os.environ.items()
        if name.startswith(_PREFIX)
    }
    # `log_level`: what goes wrong is told by `_complain`, once
    calm = {"error_cb": _complain, "log_level": 0, "reconnect.backoff.ms": 500, "reconnect.backoff.max.ms": 5000}
    return calm | found | {"bootstrap.servers": url.removeprefix("kafka://").rstrip("/")}


ERRORS = prometheus_client.Counter(
    "ride_duration_stream_errors_total", "What librdkafka complained about, by its code.", ["code"]
)
_complained: dict[str, float] = {}
_COMPLAIN_SECONDS = 10.0


def _complain(error: ck.KafkaError) -> None:
    """Log what went wrong, and the same again only after some seconds: a broker that is away is missed many times a second."""
    code, now = str(error.name()), time.monotonic()
    ERRORS.labels(code).inc()
    if now - _complained.get(code, -_COMPLAIN_SECONDS) >= _COMPLAIN_SECONDS:
        _complained[code] = now
        log.warning("kafka", extra={"fields": {"reason": error.str(), "code": code}})


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except ck.KafkaException as error:
        raise StreamError(f"{what}: {error.args[0].str()}") from None
    except TimeoutError:
        raise StreamError(f"{what}: no answer within {_SECONDS:.0f} s") from None


def _within(seconds: float, call: Callable[[], None]) -> None:
    """Call in a thread of its own, and wait so long for it.

    After a broker's death `send_offsets_to_transaction` may wait for ever for what was the group's coordinator, whatever
    timeout it was given (librdkafka's issues 5456 and 5511): its thread is left behind then.

    Raises
    ------
    TimeoutError
        If it hasn't returned.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done.result(seconds)


def _insist(call: Callable[[], Result], seconds: float = math.inf) -> Result:
    """Call again and again, since brokers that die and come back refuse for a while what they will grant.

    Raises
    ------
    StreamError
        If they still refuse after so many seconds.
    """
    end = time.monotonic() + seconds
    while True:
        Heart.beat()
        try:
            return call()
        except ck.KafkaException as error:
            _complain(error.args[0])
            if time.monotonic() > end or error.args[0].fatal():
                raise StreamError(f"the brokers refuse: {error.args[0].str()}; start this again") from None
        time.sleep(_AGAIN_SECONDS)


def _enqueue(producer: ck.Producer, topic: str, value: bytes | None, key: str, **options: Any) -> None:
    """Hand a message to librdkafka, when its queue has room for it."""
    while True:
        try:
            producer.produce(topic, value, key, **options)
            return
        except BufferError:
            producer.poll(0.1)


def ensure_topics(url: str, names: Collection[str]) -> dict[str, int]:
    """Make the topics that aren't there; how many partitions each has.

    Raises
    ------
    StreamError
        If no broker answers, or a topic can't be made.
    """
    with _told(f"{url} does not answer"):
        admin = AdminClient(settings(url))
        topics = admin.list_topics(timeout=_SECONDS).topics
    absent = [name for name in names if name not in topics]
    with _told(f"the topics {', '.join(absent)} can't be made"):
        if absent:
            counts = [len(topics[name].partitions) for name in names if name in topics]
            wanted = [NewTopic(name, num_partitions=max(counts, default=PARTITIONS)) for name in absent]
            for future in admin.create_topics(wanted).values():
                try:
                    future.result(timeout=_SECONDS)
                except ck.KafkaException as error:
                    if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
        end = time.monotonic() + _SECONDS
        while not all(name in (topics := admin.list_topics(timeout=_SECONDS).topics) for name in names):
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.1)
    return {name: len(topics[name].partitions) for name in names}


class KafkaFollower:
    """A reader without a group: `engine.Reader`."""

    def __init__(self, url: str, topic: str, beginning: bool = True) -> None:
        self.url, self.topic = url, topic
        partitions = ensure_topics(url, [topic])[topic]
        with _told(url):
            self._consumer = self._new_consumer("none")
            starts = [ck.TopicPartition(topic, number, ck.OFFSET_BEGINNING) for number in range(partitions)]
            if not beginning:  # asked for here, not OFFSET_END, which is looked up when what comes next may have come
                for start in starts:
                    start.offset = self._consumer.get_watermark_offsets(start, _SECONDS)[1]
            self._consumer.assign(starts)

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events."""
        with _told(self.url):
            # not `consume(limit, seconds)`, which waits for the last of them where one has come; and one call's answer, since
            # partitions may be revoked in the next
            messages: list[Any] = self._consumer.consume(limit, 0) or self._consumer.consume(1, seconds)
        events = []
        for message in messages:
            if message.error():
                _complain(message.error())
                continue
            at, found = message.timestamp()[1] / 1000, message.headers()
            headers = {name: (value or b"").decode(errors="replace") for name, value in found} if found else {}
            events.append(Event(self.topic, message.partition(), message.offset(), message.value(), message.key(), at, headers))
        return events

    def close(self) -> None:
        """Leave the group, if there is one."""
        self._consumer.close()

    def _new_consumer(self, group: str, **properties: Any) -> ck.Consumer:
        fixed = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        return ck.Consumer(
            {"session.timeout.ms": 10_000, "queued.min.messages": 20_000} | settings(self.url) | fixed | properties
        )


class KafkaConsumer(KafkaFollower):
    """A worker of a group: `engine.Consumer`."""

    def __init__(self, url: str, topic: str, group: str, answers: str | None = None) -> None:
        self.url, self.topic, self.group, self.answers = url, topic, group, answers
        self._name = f"{group}-{uuid.uuid4()}"
        self._partitions = partitions = ensure_topics(url, {topic, RIDES, DEAD_LETTERS} | ({answers} if answers else set()))
        if answers and partitions[answers] != partitions[topic]:
            raise StreamError(
                f"{answers} has {partitions[answers]} partitions and {topic} has {partitions[topic]}: make them alike, "
                "so that what a ride was answered is looked for where it was published"
            )
        self._failures = 0
        self._remembered: dict[int, OrderedDict[str, None]] = {}
        self._next: dict[int, int] = {}
        """Behind the newest event that was read, by partition."""
        with _told(url):
            self._producer = self._new_producer(_SECONDS)
            self._consumer = self._new_consumer(group, **{"auto.offset.reset": "earliest"})
            self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events."""
        events = super().read(limit, seconds)
        for event in events:
            self._next[event.partition] = event.offset + 1
        return events

    def commit(self, outputs: Sequence[Output], held: Mapping[int, int] = MappingProxyType({})) -> Committed:
        """Publish outputs and the position in one transaction."""
        owned = self.partitions()
        self._next = {at: offset for at, offset in self._next.items() if at in owned}
        new: dict[str, Output] = {}
        for output in outputs:
            if output.partition not in owned:
                continue  # whose they are answers them
            name = output.once or f"{len(new)}"
            if name not in self._remembered.get(output.partition, ()):
                new.setdefault(name, output)
        offsets = [ck.TopicPartition(self.topic, at, min(offset, held.get(at, offset))) for at, offset in self._next.items()]
        group = self._consumer.consumer_group_metadata()
        try:
            _within(_TRANSACTION_SECONDS, partial(self._transact, self._producer, [*new.values()], offsets, group))
        except (ck.KafkaException, TimeoutError) as error:
            if isinstance(error, ck.KafkaException):
                reason = error.args[0].str()
                _complain(error.args[0])
            else:
                reason = f"a transaction has hung for {_TRANSACTION_SECONDS} s"
                log.warning("kafka", extra={"fields": {"reason": reason}})
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise StreamError(f"{self._failures} transactions in a row went wrong, the last: {reason}") from None
            self._recover()
            raise TakenOverError from None
        self._failures = 0
        for name, output in new.items():
            if output.topic == self.answers:
                names = self._remembered.setdefault(output.partition, OrderedDict())
                names[name] = None
                if len(names) > REMEMBERED:
                    names.popitem(last=False)
        return Committed(Counter(output.topic for output in new.values()), len(outputs) - len(new))

    def partitions(self) -> Set[int]:
        """Those that are this worker's."""
        return {at.partition for at in self._consumer.assignment()}

    def lag(self) -> int:
        """Events of this worker's partitions that it has still to read."""
        lag = 0
        try:
            positions = self._consumer.position(self._consumer.assignment())
            unread = [at.partition for at in positions if at.offset < 0]  # nothing of it was read yet
            for at in [at for at in positions if at.offset >= 0] + self._committed(unread):
                low, high = self._consumer.get_watermark_offsets(at, cached=True)
                lag += max(high - max(at.offset, low, 0), 0)
        except ck.KafkaException as error:
            _complain(error.args[0])
        return lag

    def _transact(self, producer: ck.Producer, outputs: list[Output], offsets: list[ck.TopicPartition], group: object) -> None:
        producer.begin_transaction()
        for output in outputs:
            partition = output.partition % self._partitions[output.topic]
            _enqueue(producer, output.topic, output.value, output.key, partition=partition, headers={**output.headers})
        producer.send_offsets_to_transaction(offsets, group, _SECONDS)
        producer.commit_transaction(_SECONDS)

    def _recover(self) -> None:
        """Go on from what the brokers have, after a transaction that went wrong, or that may stand after all.

        A new producer of the same name has the broker end the old one's transaction, one way or the other, and keeps out the
        old one, should it wake up. What was published and committed then says which way it went.
        """
        self._producer = self._new_producer()
        self._next.clear()
        for at in self._read_back(sorted(self.partitions())):
            start = ck.TopicPartition(self.topic, at.partition, max(at.offset, ck.OFFSET_BEGINNING))
            _insist(partial(self._consumer.seek, start), _SECONDS)

    def _committed(self, partitions: Sequence[int]) -> list[ck.TopicPartition]:
        """What the group has committed; `OFFSET_INVALID` where it is nothing."""
        if not partitions:
            return []
        found: list[Any] = self._consumer.committed([ck.TopicPartition(self.topic, n) for n in partitions], _SECONDS)
        for at in found:
            if at.error:
                raise ck.KafkaException(at.error)
        return found

    def _new_producer(self, seconds: float = math.inf) -> ck.Producer:
        """A producer that the brokers know by this worker's name."""
        producer = ck.Producer(
            settings(self.url)
            | {
                "transactional.id": self._name,
                "transaction.timeout.ms": _TRANSACTION_SECONDS * 500,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,  # a batch is published at once
                "retry.backoff.ms": 10,  # the broker is still ending the last transaction when the next begins
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        _insist(partial(producer.init_transactions, _SECONDS), seconds)
        return producer

    def _assigned(self, _: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        self._read_back([at.partition for at in partitions])
        log.info("partitions assigned", extra={"fields": {"partitions": sorted(at.partition for at in partitions)}})

    def _revoked(self, _: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        for at in partitions:
            self._remembered.pop(at.partition, None)
            self._next.pop(at.partition, None)
        log.info("partitions revoked", extra={"fields": {"partitions": sorted(at.partition for at in partitions)}})

    def _read_back(self, partitions: list[int]) -> list[ck.TopicPartition]:
        """Remember the newest answers of partitions; what the group has committed of them.

        That first: the brokers don't tell it before the transaction of whoever had a partition has ended, whose answers must be
        remembered too.
        """
        committed = _insist(partial(self._committed, partitions))
        self._remembered |= {number: OrderedDict() for number in partitions}
        if not self.answers or not partitions:
            return committed
        ends: dict[int, int] = {}
        starts = []
        with closing(self._new_consumer(f"{self.group}-none", **{"isolation.level": "read_uncommitted"})) as reader:
            for number in partitions:
                at = ck.TopicPartition(self.answers, number)
                low, high = _insist(partial(reader.get_watermark_offsets, at, _SECONDS))
                if high > low:
                    ends[number] = high
                    starts.append(ck.TopicPartition(self.answers, number, max(low, high - 2 * REMEMBERED)))
        message: Any
        with closing(self._new_consumer(f"{self.group}-none", **{"enable.partition.eof": True})) as reader:
            reader.assign(starts)
            while ends:  # an open transaction, of whomever, is waited for
                Heart.beat()
                for message in reader.consume(10_000, 0.1):
                    number = message.partition()
                    if not message.error():
                        name = name_of_message(self.answers, message.key(), message.value())
                        if name.startswith(self.group):
                            self._remembered[number][name] = None
                    elif message.error().code() != ck.KafkaError._PARTITION_EOF:
                        _complain(message.error())
                    elif message.offset() >= ends.get(number, 0):
                        ends.pop(number, None)
        for names in self._remembered.values():
            while len(names) > REMEMBERED:
                names.popitem(last=False)
        return committed


class KafkaProducer:
    """Publishes messages: `engine.Producer`."""

    def __init__(self, url: str, topic: str, seconds: float = _SECONDS) -> None:
        self.url, self.topic = url, topic
        ensure_topics(url, [topic])
        self._failed: list[str] = []
        with _told(url):
            self._producer = ck.Producer(
                # as Java's producers do it: a ride that comes again, from whomever, must come to the same partition
                {"partitioner": "murmur2_random", "message.timeout.ms": int(seconds * 1000)}
                | settings(url)
                | {"acks": "all", "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4"}
            )

    def send(self, messages: Iterable[tuple[str, bytes]]) -> int:
        """Publish keys and values; returns when all are acknowledged."""
        count = 0
        with _told(self.url):
            for key, value in messages:
                _enqueue(self._producer, self.topic, value, key, on_delivery=self._delivered)
                self._producer.poll(0)
                count += 1
        while self._producer.flush(_SECONDS):
            log.warning("kafka", extra={"fields": {"reason": f"{len(self._producer)} messages are not acknowledged yet"}})
        failed, self._failed = self._failed, []
        if failed:
            raise StreamError(f"{self.url}: {len(failed)} messages were not taken: {failed[0]}")
        return count

    def close(self) -> None:
        """Nothing is held that isn't sent."""

    def _delivered(self, error: ck.KafkaError | None, _: ck.Message) -> None:
        if error:
            self._failed.append(error.str())
