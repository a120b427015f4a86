import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tunesmith import hardware
from tunesmith.errors import UserError

CPU = torch.device("cpu")


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n", encoding="utf-8")
    return root


def cores(root: Path, pairs: list[tuple[int, int]], **files: object) -> int:
    """Physical cores of a machine whose CPU i is core `pairs[i]` = (package, core)."""
    topology: dict[str, object] = {}
    for cpu, (package, core) in enumerate(pairs):
        folder = f"devices/system/cpu/cpu{cpu}/topology"
        topology |= {f"{folder}/physical_package_id": package, f"{folder}/core_id": core}
    write(root / "sys", topology)
    write(root / "proc", {"self/cgroup": "0::/"} | files)
    return hardware.physical_cores(root / "sys", root / "proc")


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
def test_hyper_threads_count_once_and_packages_apart(tmp_path: Path) -> None:
    assert cores(tmp_path / "a", [(0, i % 4) for i in range(8)]) == 4
    assert cores(tmp_path / "b", [(i // 4, i % 4) for i in range(8)]) == 8
    assert cores(tmp_path / "c", []) == 8  # a system that does not tell its topology


def test_affinity_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 5}, raising=False)
    assert cores(tmp_path, [(0, i % 4) for i in range(8)]) == 2  # 0 and 4 are one core


@pytest.mark.usefixtures("eight")
def test_the_quota_of_a_container_is_honoured(tmp_path: Path) -> None:
    whole = [(0, i) for i in range(8)]
    write(tmp_path / "v2/sys/fs/cgroup", {"cpu.max": "max 100000", "pod/cpu.max": "250000 100000", "pod/run/cpu.max": "max 100000"})
    assert cores(tmp_path / "v2", whole, **{"self/cgroup": "0::/pod/run"}) == 2  # the parent's 2.5 CPUs
    write(
        tmp_path / "v1/sys/fs/cgroup/cpu", {"box/cpu.cfs_quota_us": "300000", "box/cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"}
    )
    assert cores(tmp_path / "v1", whole, **{"self/cgroup": "4:cpu,cpuacct:/box\n1:memory:/other"}) == 3
    write(tmp_path / "little/sys/fs/cgroup", {"cpu.max": "50000 100000"})
    assert cores(tmp_path / "little", whole) == 1
    # in a container the path may be the host's: the limits stand at the root
    write(tmp_path / "host/sys/fs/cgroup", {"cpu.max": "400000 100000"})
    assert cores(tmp_path / "host", whole, **{"self/cgroup": "0::/docker/0123"}) == 4


def test_the_memory_limit_of_a_container_is_honoured(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/pod\n5:memory:/box"})
    sys_ = write(
        tmp_path / "sys/fs/cgroup",
        {
            "memory.max": "max",
            "memory.current": 10,
            "pod/memory.max": 8000,
            "pod/memory.current": 5000,
            "pod/memory.stat": "anon 3000\ninactive_file 1500\nactive_file 500",
            "memory/box/memory.limit_in_bytes": 9000,
            "memory/box/memory.usage_in_bytes": 1000,
            "memory/memory.limit_in_bytes": 9223372036854771712,  # version 1's way to say none
            "memory/memory.usage_in_bytes": 1000,
        },
    )
    assert sorted(hardware._memory_limits(sys_.parents[1], proc)) == [(8000, 3500), (9000, 1000)]


def test_free_memory_is_what_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_memory_limits", lambda: [(6000, 5000), (8000, 9000)])
    assert hardware.total_memory(CPU) == 6000
    assert hardware.free_memory(CPU) == 0  # over the second limit
    monkeypatch.setattr(hardware, "_memory_limits", lambda: [])
    assert 0 < hardware.free_memory(CPU) < hardware.total_memory(CPU)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.device("auto") == CPU
    with pytest.raises(UserError, match="no device is called 'gpu'"):
        hardware.device("gpu")
    with pytest.raises(UserError, match="cuda:"):
        hardware.device("cuda:1")
    with pytest.raises(UserError, match="only cpu, cuda and mps"):
        hardware.device("xla")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert hardware.device("auto") == torch.device("cuda", 0)
    assert hardware.device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="2 GPUs, cuda:0 to cuda:1"):
        hardware.device("cuda:2")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [({"avx2"}, torch.float32), ({"avx512f"}, torch.float32), ({"avx512_bf16"}, torch.bfloat16), ({"bf16", "asimd"}, torch.bfloat16)],
)
def test_bfloat16_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: torch.dtype) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
    found, reason = hardware.default_dtype(CPU)
    assert found == dtype and reason.startswith(str(dtype).removeprefix("torch."))


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)])
def test_bfloat16_on_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.default_dtype(torch.device("cuda", 0))[0] == dtype


def test_cpuinfo(tmp_path: Path) -> None:
    x86 = write(tmp_path, {"x86": "processor : 0\nmodel name\t: Fast 9000\nflags\t\t: fpu avx2 amx_bf16"}) / "x86"
    arm = write(tmp_path, {"arm": "processor : 0\nFeatures\t: asimd bf16"}) / "arm"
    assert hardware.cpu_flags(x86) == {"fpu", "avx2", "amx_bf16"} and hardware.cpu_name(x86) == "Fast 9000"
    assert hardware.cpu_flags(arm) == {"asimd", "bf16"}
    assert hardware.cpu_flags(tmp_path / "absent") == set() and hardware.cpu_name(tmp_path / "absent")


def test_the_matmul_rate_is_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: 1 ms a product of 16 rows, so that 0.04 s allow 640 rows, and the best time counts."""
    shapes, now = [], [0.0]

    def seconds(device: torch.device, left: torch.Tensor, right: torch.Tensor) -> float:
        shapes.append((left.shape[0], *right.shape))
        now[0] += 0.06
        return {0: 0.004, 1: 0.001, 2: 0.05}.get(len(shapes) - 1, 0.02)

    monkeypatch.setattr(hardware, "_seconds", seconds)
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    rate = hardware.matmul_flops(CPU, torch.float32, 4096, 8, 32)
    assert shapes[:3] == [(16, 32, 8), (16, 32, 8), (640, 32, 8)]
    assert rate == 2 * 640 * 8 * 32 / 0.02


def test_the_matmul_rate_is_measured_quickly() -> None:
    start = time.perf_counter()
    rate = hardware.matmul_flops(CPU, torch.float32, 256, 256, 256)
    assert time.perf_counter() - start < 3  # 0.2 s on an idle machine
    assert 1e8 < rate < 1e15


def test_the_sampler_sees_an_allocation_between_two_marks() -> None:
    with hardware.MemorySampler() as memory:
        before = memory.mark()
        block = torch.ones(25_000_000)  # 100 MB
        time.sleep(0.1)  # several samples
        del block
        seen = memory.peak_bytes
    assert 90e6 < seen - before < 150e6
    assert memory.peak_bytes >= seen


def test_mapped_weights_count_while_they_are_mapped(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "w.safetensors"
    path.write_bytes(b"1" * 40_000_000)
    before = hardware.mapped_weight_bytes(os.getpid())
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        assert weights[::4096].count(b"1") == 9766  # every page is touched
        with hardware.MemorySampler() as memory:
            assert memory.mark() >= 40_000_000
        assert hardware.mapped_weight_bytes(os.getpid()) - before >= 40_000_000
    assert hardware.mapped_weight_bytes(os.getpid()) == before


def test_smaps_are_read_right(tmp_path: Path) -> None:
    smaps = """7f0000000000-7f0000100000 r--p 00000000 fd:00 11   /models/a b.safetensors
Rss:                1000 kB
Anonymous:           100 kB
7f0000100000-7f0000200000 r-xp 00000000 fd:00 12   /lib/libtorch.so
Rss:                5000 kB
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
Rss:                7000 kB
Anonymous:          7000 kB
7f0000300000-7f0000400000 r--s 00000000 fd:00 13   /models/b.gguf (deleted)
Rss:                  20 kB
"""
    proc = write(tmp_path, {"7/smaps": smaps, "7/status": "Name: x\nRssAnon:\t 300 kB\nRssFile:\t 9999 kB\nRssShmem:\t 5 kB", "self/x": ""})
    assert hardware.mapped_weight_bytes(7, proc) == (900 + 20) * 1024
    assert hardware.private_bytes(7, proc) == 305 * 1024
    assert hardware.private_bytes(8, proc) == 0  # ended


def test_another_process_is_measured_too() -> None:
    program = "x = bytearray(80_000_000); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout and peer.stdout.readline() == "ready\n"
        with hardware.MemorySampler(process=peer.pid) as memory:
            memory.mark()
        peer.communicate("\n")
    assert 80e6 < memory.peak_bytes < 160e6


def test_without_proc_the_unique_set_is_taken(tmp_path: Path) -> None:
    assert hardware.private_bytes(os.getpid(), tmp_path) > 20e6
    assert hardware.private_bytes(2**22 + 7, tmp_path) == 0


def test_the_machine_is_described_without_names_of_its_own() -> None:
    import json
    import socket

    described = hardware.describe()
    assert described["torch"] == torch.__version__ and described["physical_cores"] == hardware.physical_cores()
    text = json.dumps(described)
    assert socket.gethostname() not in text and str(Path.home()) not in text


def test_sizes_are_read_as_people_write_them() -> None:
    assert hardware.bytes_of("8GB") == 8 * 10**9 and hardware.bytes_of("1.5 GiB") == 3 << 29 and hardware.bytes_of("512MB") == 512 * 10**6
    assert hardware.bytes_of("80%") is None and hardware.bytes_of("8") is None


def test_a_team_that_was_given_back_leaves_products_as_they_are() -> None:
    a, b = torch.randn(300, 300), torch.randn(300, 300)
    before = a @ b
    hardware.give_threads_back()
    hardware.give_threads_back()
    assert torch.equal(a @ b, before)
