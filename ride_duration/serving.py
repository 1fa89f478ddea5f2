"""gunicorn on an application that a command makes, whatever configuration file is about."""

from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, make: Callable[[], Any], settings: dict[str, Any]) -> None:
        self.make, self.settings = make, settings
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self.make()


def serve(make: Callable[[], Any], host: str, port: int, workers: int, threads: int) -> None:
    """Answer with the WSGI application that `make` makes, in each worker, until asked to end."""
    settings = {
        "bind": f"{host}:{port}",
        "workers": workers,
        "threads": threads,
        "timeout": 120,
        "graceful_timeout": 5,
        "control_socket_disable": True,
    }
    _Server(make, settings).run()
