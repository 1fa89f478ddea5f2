"""A stream in Apache Kafka, through confluent-kafka (librdkafka).

Outputs and offsets are one transaction, and every reader is `read_committed`: a worker that is killed, or overtaken while it
stands still, publishes nothing. Transactions can't see that a producer has sent a ride twice, so each worker remembers the
newest names that its partitions have published, and reads them back when it is given a partition.

Any property of librdkafka may be set by an environment variable: `KAFKA_SASL_USERNAME` is `sasl.username`.
"""

import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from streaming.engine import Committed, StreamError, TakenOverError

try:
    import confluent_kafka as ck
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic
except ModuleNotFoundError:
    raise StreamError("kafka:// needs confluent-kafka: run `make venv CATEGORIES=stream`") from None

from ride_duration.logs import log
from streaming.messages import DEAD_LETTERS, PREDICTIONS, RIDES, Event, Output, name_of_message

PARTITIONS = 6
"""Of a topic that is made because it wasn't there: so many workers can share it."""

REMEMBERED = 100_000
"""Names that are remembered of each partition."""

_SECONDS = 30.0
_TRANSACTION_MS = 10_000
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


_complained: dict[str, float] = {}
_COMPLAIN_SECONDS = 10.0


def _complain(error: ck.KafkaError) -> None:
    """Log what went wrong, and the same again only after some seconds: a broker that is away is missed many times a second."""
    code, now = str(error.name()), time.monotonic()
    if now - _complained.get(code, -_COMPLAIN_SECONDS) >= _COMPLAIN_SECONDS:
        _complained[code] = now
        log.warning("kafka", extra={"fields": {"reason": error.str(), "code": code}})


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except ck.KafkaException as error:
        raise StreamError(f"{what}: {error.args[0].str()}") from None


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
    if absent:
        counts = [len(topics[name].partitions) for name in names if name in topics]
        wanted = [NewTopic(name, num_partitions=max(counts, default=PARTITIONS)) for name in absent]
        for name, future in admin.create_topics(wanted).items():
            try:
                future.result(timeout=_SECONDS)
            except ck.KafkaException as error:
                if error.args[0].code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise StreamError(f"the topic {name} can't be made: {error.args[0].str()}") from None
        end = time.monotonic() + _SECONDS
        while not all(name in (topics := admin.list_topics(timeout=_SECONDS).topics) for name in names):
            if time.monotonic() > end:
                raise StreamError(f"the topics {', '.join(absent)} were made, and are not there")
            time.sleep(0.1)
    return {name: len(topics[name].partitions) for name in names}


class KafkaConsumer:
    """A worker of a group: `engine.Consumer`."""

    def __init__(self, url: str, topic: str, group: str) -> None:
        self.url, self.topic, self.group = url, topic, group
        self._partitions = partitions = ensure_topics(url, {topic, RIDES, PREDICTIONS, DEAD_LETTERS})
        if topic == RIDES and partitions[PREDICTIONS] != partitions[topic]:
            raise StreamError(
                f"{PREDICTIONS} has {partitions[PREDICTIONS]} partitions and {topic} has {partitions[topic]}: make them alike, "
                "so that a ride's prediction is looked for where it was published"
            )
        self._remembered: dict[int, OrderedDict[str, None]] = {}
        self._batch: list[ck.TopicPartition] = []
        self._next: list[ck.TopicPartition] = []
        with _told(url):
            self._producer = self._new_producer()
            self._consumer = ck.Consumer(
                {"session.timeout.ms": 10_000, "queued.min.messages": 20_000}
                | settings(url)
                | {
                    "group.id": group,
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "isolation.level": "read_committed",
                }
            )
            self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def read(self, limit: int, seconds: float) -> list[Event]:
        """The next events."""
        with _told(self.url):
            messages: list[Any] = self._consumer.consume(limit, seconds)
        events: list[Event] = []
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for message in messages:
            if message.error():
                _complain(message.error())
                continue
            partition, offset = message.partition(), message.offset()
            first.setdefault(partition, offset)
            last[partition] = offset
            events.append(Event(self.topic, partition, offset, message.value(), message.key(), message.timestamp()[1] / 1000))
        self._batch = [ck.TopicPartition(self.topic, partition, offset) for partition, offset in first.items()]
        self._next = [ck.TopicPartition(self.topic, partition, offset + 1) for partition, offset in last.items()]
        return events

    def commit(self, outputs: Sequence[Output]) -> Committed:
        """Publish outputs and the position in one transaction."""
        new: dict[str, Output] = {}
        for output in outputs:
            name = output.once or f"{len(new)}"
            if name not in self._remembered.get(output.partition, ()):
                new.setdefault(name, output)
        try:
            self._producer.begin_transaction()
            for output in new.values():
                self._produce(output)
            self._producer.send_offsets_to_transaction(self._next, self._consumer.consumer_group_metadata(), _SECONDS)
            self._end_transaction()
        except ck.KafkaException as error:
            self._undo(error.args[0])
            raise TakenOverError from None
        for name, output in new.items():
            if output.topic == PREDICTIONS:
                names = self._remembered.setdefault(output.partition, OrderedDict())
                names[name] = None
                if len(names) > REMEMBERED:
                    names.popitem(last=False)
        return Committed(len(new), len(outputs) - len(new))

    def lag(self) -> int:
        """Events that this worker has still to read."""
        lag = 0
        try:
            for at in self._consumer.position(self._consumer.assignment()):
                _, high = self._consumer.get_watermark_offsets(at, cached=True)
                low = max(at.offset, 0)
                lag += max(high - low, 0)
        except ck.KafkaException as error:
            _complain(error.args[0])
        return lag

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _produce(self, output: Output) -> None:
        partition = output.partition % self._partitions[output.topic]
        while True:
            try:
                self._producer.produce(
                    output.topic, output.value, output.key, partition=partition, headers=list(output.headers.items())
                )
                return
            except BufferError:  # librdkafka's queue is full: let it send
                self._producer.poll(0.1)

    def _end_transaction(self) -> None:
        while True:
            try:
                self._producer.commit_transaction(_SECONDS)
                return
            except ck.KafkaException as error:
                if not error.args[0].retriable():
                    raise
                _complain(error.args[0])  # the broker is away: it must be asked again, since it may have committed

    def _undo(self, error: ck.KafkaError) -> None:
        """Nothing was published: begin again where the batch began, as far as its partitions are still ours."""
        _complain(error)
        while True:
            try:
                self._producer.abort_transaction(_SECONDS)
                break
            except ck.KafkaException as failure:
                error = failure.args[0]
                _complain(error)
                if error.fatal():  # the broker has given up on the transaction, and on who began it
                    with _told(self.url):
                        self._producer = self._new_producer()
                    break
                if not error.retriable():
                    break  # there is no transaction to abort
        ours = {at.partition for at in self._consumer.assignment()}
        for at in self._batch:
            if at.partition in ours:
                try:
                    self._consumer.seek(at)
                except ck.KafkaException as failure:
                    raise StreamError(f"{self.url}: {failure.args[0].str()}; start this worker again") from None

    def _new_producer(self) -> ck.Producer:
        """A producer that the broker can tell from all others."""
        producer = ck.Producer(
            settings(self.url)
            | {
                "transactional.id": f"{self.group}-{uuid.uuid4()}",
                "transaction.timeout.ms": _TRANSACTION_MS,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        while True:
            try:
                producer.init_transactions(_SECONDS)
                return producer
            except ck.KafkaException as error:
                if not error.args[0].retriable():
                    raise
                _complain(error.args[0])

    def _assigned(self, _: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        if self.topic == RIDES:
            for at in partitions:
                self._remembered[at.partition] = self._read_back(at.partition)
        log.info("partitions assigned", extra={"fields": {"partitions": sorted(at.partition for at in partitions)}})

    def _revoked(self, _: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        for at in partitions:
            self._remembered.pop(at.partition, None)
        log.info("partitions revoked", extra={"fields": {"partitions": sorted(at.partition for at in partitions)}})

    def _read_back(self, partition: int) -> OrderedDict[str, None]:
        """The names that a partition of the predictions has published, the newest of them."""
        reader = ck.Consumer(
            settings(self.url)
            | {
                "group.id": f"{self.group}-none",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )
        names: OrderedDict[str, None] = OrderedDict()
        message: Any
        try:
            low, high = reader.get_watermark_offsets(ck.TopicPartition(PREDICTIONS, partition), timeout=_SECONDS)
            if high > low:
                reader.assign([ck.TopicPartition(PREDICTIONS, partition, max(low, high - 2 * REMEMBERED))])
            end = high <= low
            while not end:
                for message in reader.consume(10_000, 1.0):
                    if message.error():
                        end = message.error().code() == ck.KafkaError._PARTITION_EOF
                    elif (name := name_of_message(message.key(), message.value())).startswith(self.group):
                        names[name] = None
        except ck.KafkaException as error:
            raise StreamError(f"{self.url}: {error.args[0].str()}") from None
        finally:
            reader.close()
        while len(names) > REMEMBERED:
            names.popitem(last=False)
        return names


class KafkaFollower(KafkaConsumer):
    """A reader without a group."""

    def __init__(self, url: str, topic: str, beginning: bool) -> None:
        self.url, self.topic = url, topic
        partitions = ensure_topics(url, [topic])[topic]
        with _told(url):
            self._consumer = ck.Consumer(
                settings(url) | {"group.id": "none", "enable.auto.commit": False, "isolation.level": "read_committed"}
            )
            offset = ck.OFFSET_BEGINNING if beginning else ck.OFFSET_END
            self._consumer.assign([ck.TopicPartition(topic, number, offset) for number in range(partitions)])


class KafkaProducer:
    """Publishes messages: `engine.Producer`."""

    def __init__(self, url: str, topic: str) -> None:
        self.url, self.topic = url, topic
        ensure_topics(url, [topic])
        self._failed: list[str] = []
        with _told(url):
            self._producer = ck.Producer(
                settings(url) | {"acks": "all", "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4"}
            )

    def send(self, messages: Iterable[tuple[str, bytes]]) -> int:
        """Publish keys and values; returns when all are acknowledged."""
        count = 0
        for key, value in messages:
            while True:
                try:
                    self._producer.produce(self.topic, value, key, on_delivery=self._delivered)
                    break
                except BufferError:
                    self._producer.poll(0.1)
                except ck.KafkaException as error:
                    raise StreamError(f"{self.url}: {error.args[0].str()}") from None
            self._producer.poll(0)
            count += 1
        while self._producer.flush(_SECONDS):
            log.warning("kafka", extra={"fields": {"reason": f"{len(self._producer)} messages are not acknowledged yet"}})
        if self._failed:
            raise StreamError(f"{self.url}: {len(self._failed)} messages were not taken: {self._failed[0]}")
        return count

    def close(self) -> None:
        """Nothing is held that isn't sent."""

    def _delivered(self, error: ck.KafkaError | None, _: ck.Message) -> None:
        if error:
            self._failed.append(error.str())
