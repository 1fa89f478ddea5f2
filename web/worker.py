"""gunicorn's threaded worker, with what no setting gives: an end to slow clients, a drain, fewer threads woken.

A client that stops in the middle of its head or body would hold a thread for ever. Here every request has a deadline for its
whole arrival, and another for its answer to be taken. And a worker that is told to end first says so at /readyz, for
DRAIN_SECONDS, while it still takes connections, so that whoever sends traffic can look elsewhere.
"""

import errno
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gunicorn.http.errors import (
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from gunicorn.workers.gthread import TConn, ThreadWorker

from ride_duration import logs
from web import metrics, settings
from web.problems import CONTENT_TYPE, Problem

ARRIVAL_SECONDS = 10
"""Within which a request must have arrived whole: 2 MiB in it are 1.7 Mbit/s."""

ANSWER_SECONDS = 30
"""Within which a client must take each part of an answer."""

LINGER_SECONDS = 1.0

NEXT_MILLISECONDS = 5
"""How long a thread waits for a kept connection's next request before it lets go of it."""

DRAINING = threading.Event()
"""Set in a worker that is about to end."""


class TooSlowError(ConnectionResetError):
    """The client did not send or take in time. gunicorn ends a connection that is reset without a word of error."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client was too slow")


class DeadlineSocket(socket.socket):
    """A connection whose reads all end by a deadline, which starts anew when a request begins.

    It always blocks, for as long as the kernel is told at the start: `settimeout` before each call would cost two more
    system calls and as many chances for other threads to take the interpreter's lock. Nearly every request arrives in one
    read; only what needs a second is timed to the rest of its deadline.
    """

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        super().setblocking(True)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ARRIVAL_SECONDS, 0))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ANSWER_SECONDS, 0))
        self.setblocking(True)

    def setblocking(self, flag: bool, /) -> None:
        """Begin a request's time: the worker calls this before each, and after, where nothing needs it."""
        self._deadline = time.monotonic() + ARRIVAL_SECONDS
        self._read_before = False

    def shutdown(self, how: int, /) -> None:
        """End the sending side; what the client still sends is read for a moment, so that it gets to read our answer."""
        super().shutdown(how)
        self._deadline = time.monotonic() + LINGER_SECONDS
        self._read_before = True

    def recv(self, *args: Any) -> bytes:
        """As of a socket; TooSlowError when the request's time is over."""
        if self._read_before:
            self.settimeout(max(self._deadline - time.monotonic(), 0.001))
        elif self.gettimeout() is not None:
            self.settimeout(None)
        self._read_before = True
        received: bytes = self._timed(super().recv, *args)
        return received

    def sendall(self, *args: Any) -> None:
        """As of a socket; TooSlowError when the client doesn't read."""
        if self.gettimeout() is not None:
            self.settimeout(None)
        self._timed(super().sendall, *args)

    def _timed(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except (TimeoutError, BlockingIOError):  # ours, and the kernel's
            raise TooSlowError from None


def _sends_again(conn: TConn) -> bool:
    """Whether a connection has a next request, or the beginning of one, within a moment."""
    poller = select.poll()
    poller.register(conn.sock, select.POLLIN)
    return bool(conn.parser.unreader.buf.getvalue() or poller.poll(NEXT_MILLISECONDS))


class Worker(ThreadWorker):  # type: ignore[misc]
    """See the module."""

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, with deadlines."""
        try:
            accepted, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        connection = DeadlineSocket(accepted.detach())
        self.enqueue_req(TConn(self.cfg, connection, address, listener.getsockname()))

    def handle(self, conn: TConn) -> Any:
        """Answer a request, those that follow it closely, and close the connection here if it can't be kept.

        gunicorn would give a kept connection back to the loop that accepts connections, and take it from there with the next
        request: two threads woken for each. While there is a thread for every connection, this one rather waits for a moment.
        It would also close the connection in that loop, where waiting for one client's last bytes holds up all.
        """
        kept = super().handle(conn)
        while kept is True and self.alive and self.nr_conns <= self.cfg.threads and _sends_again(conn):
            kept = super().handle(conn)
        if not kept:
            conn.close(graceful=True)
        return kept

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what never reaches the app, not being HTTP or within its limits, as a problem like any other."""
        if not isinstance(exc, ParseException) or isinstance(exc, (InvalidResponseHeader, InvalidResponseHeaderName)):
            super().handle_error(req, client, addr, exc)
            return
        kinds = {LimitRequestLine: "uri-too-long", LimitRequestHeaders: "head-too-large"}
        problem = Problem(kinds.get(type(exc), "not-http"), f"{str(exc)[:200]}.")
        metrics.count_request(None, problem.status, 0.0)
        logs.write("request", {"route": None, "status": problem.status, "detail": problem.detail})
        content = problem.content()
        head = (
            f"HTTP/1.1 {problem.status} {problem.status.phrase}\r\nConnection: close\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with suppress(OSError):  # a client that is gone
            client.sendall(head.encode() + content)

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
