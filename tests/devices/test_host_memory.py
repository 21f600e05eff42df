"""The free memory of the host, on folders that stand in for /proc and /sys/fs/cgroup."""

import os
from pathlib import Path

import pytest

from trainer.devices.host_memory import free_host_memory

MIB = 2**20
MEMINFO = (
    "MemTotal:  8388608 kB\nMemFree:  100 kB\nMemAvailable:    4194304 kB\nHugePages_Total: 0\n"
)


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path, {"proc/meminfo": MEMINFO})
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def group(folder: str, limit: object, used: int, cache: int, version: int) -> dict[str, str]:
    """Returns the files of a control group, in a version's names."""
    if version == 2:
        names = ("memory.max", "memory.current", "inactive_file")
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 5\n{names[2]} {cache}\nactive_file 7\n"
    texts = {names[0]: f"{limit}\n", names[1]: f"{used}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/{folder}/{name}": text for name, text in texts.items()}


def test_without_limits_it_is_what_the_machine_has_available(root):
    found = free_host_memory(root)
    assert found == (4096 * MIB, "this machine's memory")


def test_a_system_that_does_not_say_has_no_figure(tmp_path):
    assert free_host_memory(tmp_path) is None
    write(tmp_path, {"proc/meminfo": "MemTotal: 12 kB\n"})  # Linux before 3.14
    assert free_host_memory(tmp_path) is None


def test_the_tightest_group_counts_without_its_inactive_cache(root):
    """Version 2, as in Kubernetes or systemd: the parent has less than the group itself."""
    write(root, {"proc/self/cgroup": "0::/slice/job\n"})
    write(root, group("slice/job", "max", 10 * MIB, 0, version=2))
    assert free_host_memory(root) == (4096 * MIB, "this machine's memory")
    write(root, group("slice", 1000 * MIB, 900 * MIB, 50 * MIB, version=2))
    found = free_host_memory(root)
    assert found is not None
    assert found.bytes == 150 * MIB
    assert f"limited by {root}/sys/fs/cgroup/slice/memory.max" in found.of
    write(root, group("slice/job", 100 * MIB, 110 * MIB, 0, version=2))  # lowered meanwhile
    found = free_host_memory(root)
    assert found is not None
    assert found.bytes == 0


@pytest.mark.parametrize("path", ["/slurm/job_3/step_0", "/"])
def test_version_1_as_in_slurm_and_in_a_container(root, path):
    """A container sees its own group at the root, whether its path is that of the host or not."""
    write(root, {"proc/self/cgroup": f"9:name=systemd:/x\n4:cpu,memory:{path}\n0::/\n"})
    unlimited = 9223372036854771712
    write(root, group("memory", unlimited, 5 * MIB, 0, version=1))
    assert free_host_memory(root) == (4096 * MIB, "this machine's memory")
    folder = "memory" if path == "/" else "memory/slurm/job_3"
    write(root, group(folder, 512 * MIB, 500 * MIB, 100 * MIB, version=1))
    found = free_host_memory(root)
    assert found is not None
    assert found.bytes == 112 * MIB


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="there is no /proc")
def test_this_machine_has_some():
    found = free_host_memory()
    assert found is not None
    assert 0 < found.bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
