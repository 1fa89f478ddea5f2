"""Makes a plain `gunicorn predict:app` right; gunicorn reads this file by itself. Its command line overrides it."""

import os

from web import settings

bind = f"0.0.0.0:{settings.port()}"
workers = settings.workers()
threads = 4
worker_class = "gthread"  # keeps connections open; the default, sync, closes each after one answer
keepalive = 75  # longer than the idle timeout of the usual load balancers (60 s), so that they close first
preload_app = True  # one copy of the model for all workers; a model that can't be served ends the service at once
if os.path.isdir("/dev/shm"):
    worker_tmp_dir = "/dev/shm"  # heartbeats must not wait for a disk
graceful_timeout = 10
control_socket_disable = True  # nothing here uses it, and it wants a writable home


def post_worker_init(worker: object) -> None:
    """In each worker, look for a new model file from now on: threads don't survive the fork."""
    from predict import models

    models.watch()
