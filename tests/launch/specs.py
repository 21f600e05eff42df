"""A run on this machine, and its first record."""

from launch import local, records
from launch.records import Record
from launch.spec import JobSpec


def spec(**values) -> JobSpec:
    fixed = {
        "name": "digits",
        "run": "RUN",
        "backend": "local",
        "nodes": 2,
        "workdir": "",
        "max_restarts": 10,
    }
    fixed |= {"env": (), "folder": "/home/me/trainer", "options": local.Options("/opt/bin/python")}
    fixed["record_dir"] = str(records.home() / "digits")
    return JobSpec(**{**fixed, "args": ("--strategy=multi_worker",), **values})


def made() -> Record:
    """Returns a run's first record, which nobody has locked."""
    with records.create(spec()) as record:
        return record
