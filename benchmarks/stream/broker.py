"""Apache Kafka as real processes: for the benchmark and the tests of the stream."""

import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

from conftest import PROJECT, free_port

LIBS = PROJECT / ".kafka" / "libs"
USER, PASSWORD = "rides", "a-secret-of-the-tests"


class Kafka:
    """A cluster of brokers on free ports, each a controller too."""

    def __init__(self, folder: Path, brokers: int = 1, sasl: bool = False, tls: bool = False) -> None:
        if not list(LIBS.glob("kafka_*.jar")) or not shutil.which("java"):
            raise FileNotFoundError("Apache Kafka is not installed: `make kafka` installs it")
        self.folder, self.count = folder, brokers
        self.ports = [free_port() for _ in range(brokers)]
        controllers = [free_port() for _ in range(brokers)]
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controllers, 1))
        copies, least = min(brokers, 3), 2 if brokers > 2 else 1
        protocol = "SASL_PLAINTEXT" if sasl else "SSL" if tls else "PLAINTEXT"
        cluster = str(uuid.uuid4())
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * brokers
        for number, (port, controller) in enumerate(zip(self.ports, controllers, strict=True), 1):
            properties = {
                "process.roles": "broker,controller",
                "node.id": number,
                "controller.quorum.voters": voters,
                "listeners": f"{protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                "controller.listener.names": "CONTROLLER",
                "inter.broker.listener.name": protocol,
                "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{protocol}:{protocol}",
                "log.dirs": folder / f"log-{number}",
                "default.replication.factor": copies,
                "min.insync.replicas": least,
                "offsets.topic.replication.factor": copies,
                "offsets.topic.num.partitions": 4,
                "transaction.state.log.replication.factor": copies,
                "transaction.state.log.min.isr": least,
                "transaction.state.log.num.partitions": 4,
                "group.initial.rebalance.delay.ms": 0,
                "message.max.bytes": 3_000_000,
                "auto.create.topics.enable": "false",
            }
            if sasl:
                login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
                properties |= {
                    "sasl.enabled.mechanisms": "PLAIN",
                    "sasl.mechanism.inter.broker.protocol": "PLAIN",
                    "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
                        f'{login} username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
                    ),
                }
            if tls:
                properties |= self._certificate()
            file = self._file(number)
            file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
            self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(file)).wait(timeout=60)
        for number in range(1, brokers + 1):
            self.start(number)
        self.wait()

    @property
    def url(self) -> str:
        """What `--stream` takes."""
        return "kafka://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def start(self, number: int = 1) -> None:
        """Start a broker."""
        self.processes[number - 1] = self._java("kafka.Kafka", str(self._file(number)))

    def kill(self, number: int = 1) -> None:
        """Kill -9."""
        process = self.processes[number - 1]
        assert process
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait(self) -> None:
        """Until every broker takes connections."""
        end = time.monotonic() + 60
        for port, process in zip(self.ports, self.processes, strict=True):
            while True:
                with socket.socket() as probe:
                    if not probe.connect_ex(("127.0.0.1", port)):
                        break
                assert process
                assert process.poll() is None, "Kafka did not start"
                assert time.monotonic() < end, "Kafka did not start within 60 s"
                time.sleep(0.1)

    def close(self) -> None:
        """End all."""
        for process in self.processes:
            if process and process.poll() is None:
                process.kill()
                process.wait()

    @property
    def certificate(self) -> Path:
        """What clients trust, with TLS."""
        return self.folder / "broker.pem"

    def _certificate(self) -> dict[str, object]:
        """The broker's own certificate, and the properties that name it."""
        store = self.folder / "broker.p12"
        keytool = ["keytool", "-keystore", str(store), "-storepass", PASSWORD, "-storetype", "PKCS12", "-alias", "broker"]
        make = [*["-genkeypair", "-keyalg", "RSA", "-dname", "CN=127.0.0.1", "-ext", "SAN=ip:127.0.0.1", "-validity", "2"]]
        for command in (make, ["-exportcert", "-rfc", "-file", str(self.certificate)]):
            subprocess.run([*keytool, *command], check=True, capture_output=True)
        return {
            f"ssl.{use}store.{name}": value
            for use in ("key", "trust")
            for name, value in {"location": store, "password": PASSWORD, "type": "PKCS12"}.items()
        }

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.properties"

    def _java(self, *command: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(["java", "-Xmx400m", "-cp", f"{LIBS}/*", *command], stdout=quiet, stderr=quiet, cwd=self.folder)
