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
    doors = ["web", "training", "predict", "train", "client", "batch", "streaming"]
    for room, others in {
        "ride_duration": doors,
        "web": doors[1:],
        "training": [door for door in doors if door != "training"],
    }.items():
        for path in (PROJECT / room).glob("*.py"):
            imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
            assert not set(imported) & set(others), path


def test_make_alone_lists_the_commands() -> None:
    output = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for command in ("serve", "test", "train", "lint", "lock", "venv"):
        assert f"make {command} " in output
