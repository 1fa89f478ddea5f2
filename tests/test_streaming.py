"""The stream door on SQLite, and on Apache Kafka as real processes: no ride lost, none answered twice."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import msgspec
import pyarrow.parquet as pq
import pytest
import requests
from streams import Reader, consumer, made_up, publish, stop

import conftest
from benchmarks.stream.broker import PASSWORD, USER
from conftest import PROJECT, StartKafka, free_port, until_answers
from ride_duration.model_file import load_model
from ride_duration.ride import check_ride
from ride_duration.stores import Address
from ride_duration.stores.databases import Database
from ride_duration.stores.predictions import DatabasePredictions
from streaming.engine import StreamError, open_consumer
from streaming.messages import DEAD_LETTERS, PREDICTIONS, RIDES, TOPICS, Event, answer, name_of

GROUP = name_of("duration")


def predicted(url: str, count: int, seconds: float = 90) -> list[dict[str, Any]]:
    with closing(Reader(url, PREDICTIONS)) as reader:
        return [msgspec.json.decode(value or b"null") for value in reader.until(count, seconds, silence=1)]


def each_once(url: str, count: int, seconds: float = 90) -> None:
    ids = Counter(message["prediction"]["ride_id"] for message in predicted(url, count, seconds))
    lost, repeated = set(range(count)) - ids.keys(), [ride for ride, times in ids.items() if times > 1]
    assert (len(lost), len(repeated), len(ids)) == (0, 0, count)


def test_a_ride_gets_the_models_answer_in_the_courses_message(stream: str) -> None:
    model = load_model(PROJECT / "model.bin")
    rides = made_up(300)
    publish(stream, rides)
    with consumer(stream):
        found = predicted(stream, 300)
    assert {message["model"] for message in found} == {"ride_duration_prediction_model"}
    assert {message["version"] for message in found} == {model.version}
    for message in found:
        ride = check_ride(message["ride"])
        duration = model.predict(ride)
        assert message["prediction"]["ride_duration"] == pytest.approx(duration, abs=1e-9)
        assert message["prediction"]["interval"] == pytest.approx(model.interval(ride, duration), abs=1e-9)
    assert {message["prediction"]["ride_id"] for message in found} == set(range(300))


POISON: dict[str, bytes] = {
    "it is not JSON": b"not JSON",
    "Expected `object`": b"[1, 2]",
    "`$.ride_id`": b'{"ride_id": 1.5, "ride": {}}',
    "missing required field `ride`": b'{"ride_id": 1}',
    "ride.PULocationID must be an integer from 1 to 265": (
        b'{"ride_id": 7, "ride": {"PULocationID": 266, "DOLocationID": 7, "trip_distance": 1}}'
    ),
    "ride must be a ride object": b'{"ride_id": 7, "ride": null}',
    "utf": b'{"ride_id": "\xff", "ride": {}}',
}


def test_what_cannot_be_answered_goes_to_the_dead_letters_and_holds_up_nobody(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_MESSAGE_MAX_BYTES", "3000000")  # as the broker's limit is raised
    publish(stream, made_up(100))
    large = b'{"ride_id": 8, "ride": {"x": "%s"}}' % (b"x" * 2_000_000)
    publish(stream, [(str(n), value) for n, value in enumerate([*POISON.values(), large])])
    publish(stream, made_up(100, first=100))
    with consumer(stream):
        each_once(stream, 200)
        with closing(Reader(stream, DEAD_LETTERS)) as reader:
            dead = reader.until(len(POISON) + 1, silence=1)
    assert {value for value in dead if value is not None} == set(POISON.values())
    assert dead.count(None) == 1  # too large to be repeated: its digest is in the headers


def test_dead_letters_say_why_and_where_they_came_from() -> None:
    model = load_model(PROJECT / "model.bin")
    values = [*POISON.values(), None]
    outputs = answer(model, [Event(RIDES, 3, 10 + n, value) for n, value in enumerate(values)], GROUP)
    assert [output.topic for output in outputs] == [DEAD_LETTERS] * len(values)
    for output, reason in zip(outputs, [*POISON, "null"], strict=True):
        assert reason in output.headers["error"]
        assert (output.headers["topic"], output.headers["partition"], output.headers["group"]) == (RIDES, "3", GROUP)
        assert output.key == f"{GROUP}:{RIDES}:3:{output.headers['offset']}"


def test_a_ride_that_comes_again_is_answered_once_and_counted(stream: str) -> None:
    publish(stream, made_up(100))
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    for _ in range(2):  # the second worker must find out what the first has published
        with consumer(stream, "--port", port) as process:
            until_answers(f"{url}/healthz", process, Path(os.devnull), seconds=60)
            each_once(stream, 100)
            publish(stream, made_up(50))
            end = time.monotonic() + 60
            while 'outcome="suppressed"} 50' not in (
                counts := requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
            ):
                assert time.monotonic() < end, counts
                time.sleep(0.2)
            assert requests.get(f"{url}/healthz", timeout=5).json() == {"status": "alive"}
            each_once(stream, 100)


def test_a_model_is_swapped_between_two_batches(stream: str, tmp_path: Path) -> None:
    shipped = load_model(PROJECT / "model.bin")
    path = tmp_path / "model.bin"
    shutil.copy(PROJECT / "model.bin", path)
    content = path.read_bytes().replace(shipped.version.encode(), shipped.version[:-1].encode() + b"X")
    publish(stream, made_up(200))
    with consumer(stream, "--model", str(path)):
        predicted(stream, 200)
        (tmp_path / "new.bin").write_bytes(content)
        (tmp_path / "new.bin").replace(path)
        time.sleep(2.5)
        publish(stream, made_up(200, first=200))
        found = predicted(stream, 400)
    versions = {message["prediction"]["ride_id"]: message["version"] for message in found}
    assert len(versions) == 400
    assert {versions[n] for n in range(200)} == {shipped.version}
    assert {versions[n] for n in range(200, 400)} == {shipped.version[:-1] + "X"}


def test_asked_to_end_it_finishes_the_batch_in_hand(stream: str) -> None:
    publish(stream, made_up(20_000))
    with consumer(stream, "--batch", "50") as process:
        with closing(Reader(stream, PREDICTIONS)) as reader:
            reader.until(1)
        process.terminate()
        assert process.wait(timeout=40) == 0
    with consumer(stream):
        each_once(stream, 20_000)


@pytest.mark.slow
def test_killed_eight_times_it_loses_nothing_and_repeats_nothing(stream: str) -> None:
    publish(stream, made_up(50_000))
    killed = 0
    for attempt in range(8):
        with closing(Reader(stream, PREDICTIONS)) as reader, consumer(stream, "--batch", "100") as process:
            if attempt < 4:  # while it starts, and while it answers
                reader.until(1 + attempt * 2000, seconds=120)
            time.sleep(0.1 * attempt)
            assert process.poll() is None
            process.kill()
            killed += 1
    assert killed == 8
    with consumer(stream):
        each_once(stream, 50_000, seconds=120)


@pytest.mark.slow
def test_workers_that_join_and_leave_share_the_work_exactly(stream: str) -> None:
    publish(stream, made_up(30_000))
    with consumer(stream, "--batch", "50") as first:
        with closing(Reader(stream, PREDICTIONS)) as reader:
            reader.until(1)
        with consumer(stream, "--batch", "50"), consumer(stream, "--batch", "50") as third:
            publish(stream, made_up(10_000, first=30_000))
            time.sleep(2)
            third.terminate()
            third.wait(timeout=40)
            first.terminate()
            first.wait(timeout=40)
            publish(stream, made_up(10_000, first=40_000))
            each_once(stream, 50_000, seconds=150)


@pytest.mark.slow
def test_a_worker_that_stood_still_while_another_took_over_publishes_nothing(stream: str) -> None:
    publish(stream, made_up(20_000))
    with consumer(stream, "--batch", "50") as still:
        with closing(Reader(stream, PREDICTIONS)) as reader:
            reader.until(1)
        stop(still, stream)
        with consumer(stream, "--batch", "500"):
            with closing(Reader(stream, PREDICTIONS)) as reader:
                reader.until(20_000, seconds=120)
            still.send_signal(signal.SIGCONT)
            publish(stream, made_up(2_000, first=20_000))
            each_once(stream, 22_000, seconds=120)


@pytest.mark.slow
def test_a_broker_that_is_killed_and_comes_back_loses_nothing(kafka: StartKafka) -> None:
    cluster = kafka()
    publish(cluster.url, made_up(20_000))
    with consumer(cluster.url, "--batch", "50"):
        with closing(Reader(cluster.url, PREDICTIONS)) as reader:
            reader.until(1)
        cluster.kill()
        time.sleep(2)
        cluster.start()
        cluster.wait()
        publish(cluster.url, made_up(5_000, first=20_000))
        each_once(cluster.url, 25_000, seconds=150)


@pytest.mark.slow
def test_three_brokers_killed_in_turn_lose_nothing(kafka: StartKafka) -> None:
    cluster = kafka(brokers=3)
    publish(cluster.url, made_up(10_000))
    with consumer(cluster.url, "--batch", "50"):
        for number in (1, 2, 3):
            cluster.kill(number)
            publish(cluster.url, made_up(5_000, first=5_000 + number * 5_000))
            cluster.start(number)
            cluster.wait()
            time.sleep(3)  # it must have caught up before the next is killed, or two would be away
        each_once(cluster.url, 25_000, seconds=150)


@pytest.mark.slow
def test_sasl_is_passed_on_and_its_secret_is_seen_nowhere(
    kafka: StartKafka, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = kafka(sasl=True)
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "PLAIN")
    monkeypatch.setenv("KAFKA_SASL_USERNAME", USER)
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", PASSWORD)
    publish(cluster.url, made_up(100))
    with consumer(cluster.url) as process:
        each_once(cluster.url, 100)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
    assert PASSWORD not in capsys.readouterr().out
    with consumer(cluster.url, KAFKA_SASL_PASSWORD="wrong-secret") as process:
        assert process.wait(timeout=90) == 3
    told = capsys.readouterr().out
    assert "does not answer" in told
    assert "wrong-secret" not in told


@pytest.mark.slow
def test_tls_is_passed_on_and_a_broker_that_is_not_trusted_is_told(
    kafka: StartKafka, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SSL")
    cluster = kafka(tls=True)
    with consumer(cluster.url) as process:  # the certificate is the broker's own, which nobody trusts
        assert process.wait(timeout=90) == 3
    assert "does not answer" in capsys.readouterr().out
    monkeypatch.setenv("KAFKA_SSL_CA_LOCATION", str(cluster.certificate))
    publish(cluster.url, made_up(100))
    with consumer(cluster.url):
        each_once(cluster.url, 100)


def test_a_setting_that_librdkafka_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SSL_CA_LOCATION_", "ca.pem")
    with pytest.raises(StreamError, match=r"ssl\.ca\.location\."):
        open_consumer("kafka://127.0.0.1:1", RIDES, GROUP)


@pytest.fixture
def mock_kafka() -> Iterator[str]:
    """Librdkafka's own cluster, in this process: it forgets the positions of transactions, so only the plumbing is tested."""
    cluster = ck.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    for topic in TOPICS:
        cluster.list_topics(topic, timeout=10)
    (broker,) = cluster.list_topics(timeout=10).brokers.values()
    yield f"kafka://{broker.host}:{broker.port}"
    cluster.flush()


def test_kafkas_plumbing_on_librdkafkas_mock_cluster(mock_kafka: str) -> None:
    publish(mock_kafka, [*made_up(500), ("x", b"not JSON")])
    with closing(open_consumer(mock_kafka, RIDES, GROUP, PREDICTIONS)) as worker:
        events: list[Event] = []
        end = time.monotonic() + 60
        while len(events) < 501:
            events += worker.read(1000, 0.5)
            assert time.monotonic() < end, len(events)
        assert worker.lag() == 0
        assert worker.partitions() == {event.partition for event in events} | worker.partitions()
        outputs = answer(load_model(PROJECT / "model.bin"), events, GROUP)
        assert worker.commit(outputs) == ({PREDICTIONS: 500, DEAD_LETTERS: 1}, 0)
        assert worker.commit(outputs[1:]) == ({}, 500)  # each name once
    each_once(mock_kafka, 500)
    with closing(Reader(mock_kafka, DEAD_LETTERS)) as reader:
        assert reader.until(1) == [b"not JSON"]


def test_tail_says_why_a_ride_is_a_dead_letter(tmp_path: Path) -> None:
    stream = f"sqlite:///{tmp_path}/s.db"
    publish(stream, [("1", POISON["ride must be a ride object"])])
    with consumer(stream), closing(Reader(stream, DEAD_LETTERS)) as reader:
        reader.until(1)
    command = [sys.executable, "-m", "streaming.tail", "--stream", stream, "--from-beginning", "--idle", "1", DEAD_LETTERS]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    letter = msgspec.json.decode(run.stdout)
    assert "ride must be a ride object" in letter["error"]
    assert (letter["topic"], letter["offset"], letter["value"]) == (RIDES, "1", '{"ride_id": 7, "ride": null}')


def test_dead_letters_are_replayed_once(stream: str) -> None:
    publish(stream, [("1", b"not JSON"), *made_up(10)])
    with consumer(stream):
        each_once(stream, 10)
        idle = "8" if stream.startswith("kafka") else "2"  # a group takes its time to assign partitions
        command = [sys.executable, "-m", "streaming.replay", "--stream", stream, "--idle", idle]
        run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "events are in rides again" in run.stdout
        with closing(Reader(stream, RIDES)) as reader:
            assert reader.until(12, silence=1).count(b"not JSON") == 2


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_the_sink_fills_the_batch_doors_database_exactly_once(
    stream: str, store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    predictions = f"sqlite:///{tmp_path}/predictions.db"
    if store == "postgresql":
        predictions = request.getfixturevalue("postgresql")
    # every spelling that the contract takes is as good a ride as any
    zones = b'"PULocationID": 130.0, "DOLocationID": 205'
    odd = b'{"ride_id": 4998, "ride": {%s, "trip_distance": 3, "pickup_datetime": "2021-02-01T17:30"}}' % zones
    bare = b'{"ride_id": "4999", "ride": {%s, "trip_distance": null}}' % zones
    publish(stream, [*made_up(4_998), ("4998", odd), ("4999", bare)])
    poison = [b"\xff", b"[" * 100_000, b'{"model": "taxi"}', b'{"ride_id": 1}']
    publish(stream, [("x", value) for value in poison], PREDICTIONS)
    command = [sys.executable, "-m", "streaming.sink", "--stream", stream, "--predictions", predictions, "--batch", "200"]
    with consumer(stream), closing(Reader(stream, PREDICTIONS)) as reader:
        reader.until(5_000 + len(poison))
    for attempt in range(4):
        sink = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert sink.stdout
        assert "writing predictions" in sink.stdout.readline()
        if attempt < 3:
            time.sleep(0.1 + 0.3 * attempt)
            sink.kill()
        else:
            end = time.monotonic() + 60
            while counted(predictions)["predictions"] < 5_000:
                assert time.monotonic() < end, counted(predictions)
                assert sink.poll() is None
                time.sleep(0.3)
            with closing(Reader(stream, DEAD_LETTERS)) as reader:
                assert sorted(value or b"" for value in reader.until(len(poison), silence=1)) == sorted(poison)
            sink.terminate()
            assert sink.wait(timeout=30) == 0
        sink.communicate()
    assert counted(predictions) == {"predictions": 5_000, "ids": 5_000, "hourly": 4_999}  # one has no hour


def counted(url: str) -> dict[str, int]:
    with closing(DatabasePredictions(Database(Address.of(url), create=True))) as store:
        (row,) = store.database.rows(
            "select (select count(*) from predictions) as predictions, "
            "(select count(distinct ride_id) from predictions) as ids, "
            "cast((select sum(rides) from hourly) as bigint) as hourly"
        )
        return row


def test_a_full_disk_is_a_clear_stop_and_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/rides.db"
    publish(url, made_up(3_000))
    with closing(sqlite3.connect(tmp_path / "rides.db")) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    size = (tmp_path / "rides.db").stat().st_size
    run = subprocess.run(
        [sys.executable, "-m", "streaming.consume", "--stream", url],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, size + 50_000)),
    )
    assert run.returncode == 3, run.stderr
    assert "rides.db: " in run.stderr
    assert "Traceback" not in run.stderr
    with consumer(url):
        each_once(url, 3_000)


def test_rides_of_a_store_are_published_with_the_batch_jobs_ids(tmp_path: Path) -> None:
    rows = conftest.made_up(200)
    pq.write_table(conftest.typed(rows), tmp_path / "rides.parquet")
    with closing(sqlite3.connect(tmp_path / "rides.db")) as database, database:
        database.execute(f"create table rides ({', '.join(conftest.COLUMN_TYPES)})")
        database.executemany("insert into rides values (?, ?, ?, ?, ?)", rows)
    urls = [str(tmp_path / "rides.parquet"), f"sqlite:///{tmp_path}/rides.db"]
    of_file, of_table = (produced(f"sqlite:///{tmp_path}/{n}.db", url, len(rows)) for n, url in enumerate(urls))
    assert of_file == of_table
    predictions = f"sqlite:///{tmp_path}/predictions.db"
    command = [sys.executable, "-m", "batch.score", "--rides", urls[0], "--predictions", predictions, *conftest.FEBRUARY]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    with closing(sqlite3.connect(tmp_path / "predictions.db")) as database:
        scored = database.execute("select ride_id from predictions union select ride_id from rejects").fetchall()
    assert {ride_id for (ride_id,) in scored} == of_file.keys()


def test_rides_of_json_lines_are_published(tmp_path: Path) -> None:
    (tmp_path / "rides.jsonl").write_bytes(b"\n".join(value for _, value in made_up(50)))
    assert produced(f"sqlite:///{tmp_path}/s.db", str(tmp_path / "rides.jsonl"), 50).keys() == set(range(50))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"no Parquet", "a.parquet"),
        ("a.jsonl", b'{"PULocationID": 1}\n{', "line 2"),
        ("a.jsonl", b"[]", "a ride, or a ride event, is wanted"),
        ("a.csv", b"x", "a.csv"),
    ],
)
def test_rides_that_cannot_be_read_are_told(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-m", "streaming.produce", "--stream", f"sqlite:///{tmp_path}/s.db", str(tmp_path / name)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 3, run.stderr
    assert reason in run.stderr
    assert "Traceback" not in run.stderr


def produced(stream: str, url: str, count: int) -> dict[Any, Any]:
    command = [sys.executable, "-m", "streaming.produce", "--stream", stream, url]
    run = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert f"{count} rides published" in run.stdout
    with closing(Reader(stream, RIDES)) as reader:
        events = [msgspec.json.decode(value or b"") for value in reader.until(count)]
    return {event["ride_id"]: event["ride"] for event in events}


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--stream", "amqp://u:secret@host"], 3, "is not a stream"),
        (["--stream", "kafka://u:secret@127.0.0.1:1"], 3, "KAFKA_SASL_PASSWORD"),
        (["--stream", "sqlite:////nowhere/at/all.db"], 3, "there is no folder"),
        (["--stream", "sqlite:///x.db", "--model", "README.md"], 4, "it is refused"),
        (["--stream", "kafka://127.0.0.1:1", "--batch", "0"], 2, "batch"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(options: list[str], code: int, reason: str) -> None:
    command = [sys.executable, "-m", "streaming.consume", *options]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert reason in run.stderr
    assert "secret" not in run.stderr + run.stdout
    assert "Traceback" not in run.stderr


def test_a_stream_that_is_not_a_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with pytest.raises(StreamError, match="not a database"):
        open_consumer(f"sqlite:///{tmp_path}/text.db", RIDES, GROUP)
