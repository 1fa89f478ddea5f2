"""gunicorn's threaded worker, with two things that no setting gives: an end to slow clients, and a drain.

A client that stops in the middle of its head or body would hold a thread for ever. Here every request has a deadline for its
whole arrival, and another for its answer to be taken. And a worker that is told to end first says so at /readyz, for
DRAIN_SECONDS, while it still takes connections, so that whoever sends traffic can look elsewhere.
"""

import errno
import socket
import threading
import time
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from web import settings

ARRIVAL_SECONDS = 10.0
"""Within which a request must have arrived whole: 2 MiB in it are 1.7 Mbit/s."""

ANSWER_SECONDS = 30.0
"""Within which a client must take each part of an answer."""

LINGER_SECONDS = 1.0

DRAINING = threading.Event()
"""Set in a worker that is about to end."""


class TooSlowError(ConnectionResetError):
    """The client did not send or take in time. gunicorn ends a connection that is reset without a word of error."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client was too slow")


class DeadlineSocket(socket.socket):
    """A connection whose reads all end by a deadline, which starts anew when a request begins.

    The worker makes its socket blocking at the start of each request, and non-blocking between them.
    """

    _deadline = 0.0

    def setblocking(self, flag: bool, /) -> None:
        """Begin a request's time."""
        if self.fileno() >= 0:
            self._deadline = time.monotonic() + ARRIVAL_SECONDS
            super().setblocking(flag)

    def shutdown(self, how: int, /) -> None:
        """End the sending side; what the client still sends is read for a moment, so that it gets to read our answer."""
        super().shutdown(how)
        self._deadline = time.monotonic() + LINGER_SECONDS

    def recv(self, *args: Any) -> bytes:
        """As of a socket; TooSlowError when the request's time is over."""
        try:
            self.settimeout(max(self._deadline - time.monotonic(), 0.001))
            return super().recv(*args)
        except TimeoutError:
            raise TooSlowError from None

    def sendall(self, *args: Any) -> None:
        """As of a socket; TooSlowError when the client doesn't read."""
        try:
            self.settimeout(ANSWER_SECONDS)
            super().sendall(*args)
        except TimeoutError:
            raise TooSlowError from None


class Worker(ThreadWorker):  # type: ignore[misc]
    """See the module."""

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, with deadlines."""
        try:
            accepted, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        connection = DeadlineSocket(fileno=accepted.detach())
        connection.setblocking(True)
        self.enqueue_req(TConn(self.cfg, connection, address, listener.getsockname()))

    def handle(self, conn: TConn) -> Any:
        """Answer a request, and close its connection here if it can't be kept.

        gunicorn would close it in the loop that accepts connections, where waiting for one client's last bytes holds up all.
        """
        kept = super().handle(conn)
        if not kept:
            conn.close(graceful=True)
        return kept

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: drain, then end."""
        seconds = settings.drain_seconds()
        if DRAINING.is_set() or not seconds:
            DRAINING.set()
            super().handle_exit(sig, frame)
            return
        DRAINING.set()
        timer = threading.Timer(seconds, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()
