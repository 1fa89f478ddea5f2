"""Makes a plain `gunicorn predict:app` right; gunicorn reads this file by itself. Its command line overrides it."""

import os
from typing import Any

from web import settings

memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # neither heartbeats nor counts must wait for a disk
settings.share_counts(memory)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads for matrices, which nothing here has, cost 0.1 s

bind = f"0.0.0.0:{settings.port()}"
workers = settings.workers()
worker_class = "web.worker.Worker"  # gthread, which keeps connections open (sync closes each), and bears slow clients
threads = 64  # at most: they start when none is idle, which is when clients are slow to send
keepalive = 75  # longer than the idle timeout of the usual load balancers (60 s), so that they close first
preload_app = True  # one copy of the model for all workers; a model that can't be served ends the service at once
worker_tmp_dir = memory
graceful_timeout = 8 + settings.drain_seconds()
control_socket_disable = True  # nothing here uses it, and it wants a writable home


def post_worker_init(worker: object) -> None:
    """In each worker, look for new model files from now on: threads don't survive the fork."""
    from predict import watch

    watch()


def child_exit(server: object, worker: Any) -> None:
    """Keep a dead worker's counts, and forget what it was only as long as it lived."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
