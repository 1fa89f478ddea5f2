"""Promises about the project's own files."""

import json
import re
import subprocess

from conftest import PROJECT


def test_no_package_index_is_named() -> None:
    assert "[[source]]" not in re.sub("^#.*$", "", (PROJECT / "Pipfile").read_text(), flags=re.MULTILINE)
    lock = json.loads((PROJECT / "Pipfile.lock").read_text())
    assert lock["_meta"]["sources"] == []
    assert not [
        name
        for section in lock.values()
        for name, package in section.items()
        if isinstance(package, dict) and "index" in package
    ]


def test_the_lock_is_of_this_pipfile() -> None:
    """A package added to the Pipfile alone would be missing on a fresh machine."""
    import tomllib

    pipfile = tomllib.loads((PROJECT / "Pipfile").read_text())
    lock = json.loads((PROJECT / "Pipfile.lock").read_text())
    names = {"packages": "default", "dev-packages": "develop"}
    for category, packages in pipfile.items():
        assert set(packages) <= set(lock[names.get(category, category)]), category


def test_the_core_imports_no_door_and_doors_do_not_import_each_other() -> None:
    doors = {"web", "training", "predict", "train", "client", "batch", "streaming", "registry"}
    allowed = {"streaming": {"client"}, "predict.py": {"web"}, "train.py": {"training", "registry"}}
    for room in ("ride_duration", "web", "training", "batch", "streaming", "registry", "predict.py", "train.py", "client.py"):
        paths = [PROJECT / room] if room.endswith(".py") else sorted((PROJECT / room).rglob("*.py"))
        for path in paths:
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
            assert not imported & (doors - {room} - allowed.get(room, set())), path


def test_make_alone_lists_the_commands() -> None:
    output = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for command in ("serve", "test", "train", "lint", "lock", "venv"):
        assert f"make {command} " in output
