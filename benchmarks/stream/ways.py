"""The same consumer as others would write it: `python -m benchmarks.stream.ways plain SERVERS`, as a process of its own.

Each reads `rides`, predicts duration and interval with the same model, and publishes the same message. None knows a ride that
comes again, and all but `quixstreams_exactly` may answer twice what they answered before a kill.
"""

import asyncio
import json
import sys
import tempfile
from typing import Any

from ride_duration.model_file import load_model
from ride_duration.ride import check_ride

MODEL = load_model("model.bin")
GROUP = "peer"


def answered(event: dict[str, Any]) -> dict[str, Any]:
    """The course's message for an event."""
    ride = check_ride(event["ride"])
    duration = MODEL.predict(ride)
    prediction = {"ride_duration": duration, "ride_id": event["ride_id"], "interval": MODEL.interval(ride, duration)}
    return {
        "model": "ride_duration_prediction_model",
        "version": MODEL.version,
        "prediction": prediction,
        "ride": event["ride"],
    }


def plain(servers: str) -> None:
    """The loop of confluent-kafka's documentation: poll, publish, and commit every 500 messages."""
    from confluent_kafka import Consumer, Producer

    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 5, "compression.type": "lz4"})
    consumer.subscribe(["rides"])
    count = 0
    while True:
        message = consumer.poll(0.2)
        if message is not None and not message.error():
            event = json.loads(message.value() or b"null")
            producer.produce("predictions", json.dumps(answered(event)).encode(), key=message.key())
            producer.poll(0)
            count += 1
        if count >= 500 or (message is None and count):
            producer.flush()
            consumer.commit(asynchronous=False)
            count = 0


def faststream(servers: str, policy: str = "ACK_FIRST") -> None:
    """A subscriber that is a publisher, as its documentation begins; offsets are committed before rides are answered."""
    from faststream import AckPolicy, FastStream
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(servers, logger=None)

    async def handle(event: dict[str, Any]) -> dict[str, Any]:
        return answered(event)

    handle = broker.publisher("predictions")(handle)
    broker.subscriber("rides", group_id=GROUP, auto_offset_reset="earliest", ack_policy=AckPolicy[policy])(handle)
    asyncio.run(FastStream(broker, logger=None).run())


def faststream_acknowledged(servers: str) -> None:
    """The same, committed after each ride."""
    faststream(servers, "NACK_ON_ERROR")


def quixstreams(servers: str, guarantee: str = "at-least-once") -> None:
    """A streaming data frame from topic to topic."""
    from quixstreams import Application

    app = Application(
        broker_address=servers,
        consumer_group=GROUP,
        auto_offset_reset="earliest",
        processing_guarantee=guarantee,
        loglevel="ERROR",
        state_dir=tempfile.mkdtemp(),
        commit_every=500,
    )
    frame = app.dataframe(app.topic("rides", value_deserializer="json")).apply(answered)
    frame.to_topic(app.topic("predictions", value_serializer="json"))
    app.run()


def quixstreams_exactly(servers: str) -> None:
    """The same in transactions."""
    quixstreams(servers, "exactly-once")


if __name__ == "__main__":
    {way.__name__: way for way in (plain, faststream, faststream_acknowledged, quixstreams, quixstreams_exactly)}[sys.argv[1]](
        sys.argv[2]
    )
