"""Others' libraries, in environments of their own, since ours has none of them."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".peers"


def python_of(name: str) -> Path:
    """The Python of the environment of that name."""
    return FOLDER / name / "bin" / "python"


def install(name: str, requirements: Sequence[str], prepare: Callable[[], object] = lambda: None) -> None:
    """Make the environment of that name, unless it is there with the same requirements; `prepare` is part of it.

    Raises
    ------
    subprocess.CalledProcessError
        If that fails.
    """
    folder = FOLDER / name
    stamp = folder / "requirements"
    if not stamp.exists() or stamp.read_text() != "\n".join(requirements):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True)
        subprocess.run(
            [folder / "bin" / "pip", "install", "--quiet", *requirements], check=True, capture_output=True, text=True
        )
        prepare()
        stamp.write_text("\n".join(requirements))
