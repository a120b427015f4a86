"""What every GPU kernel must keep: it is launched in the tests, and compiles for each generation of GPUs without a register spilled."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.kernels.launches import LAUNCHES
from tunesmith.models import kernels

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(kernels.__file__).parent
GENERATIONS = {"Ampere": 80, "Hopper": 90}


def test_the_table_names_every_file():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"__init__", *kernels.KERNELS}


def test_every_kernel_is_launched():
    assert {name.split(",")[0] for name in LAUNCHES} == set(kernels.KERNELS)


def test_they_run_on_gpus_only(monkeypatch):
    assert not kernels.available("cpu") and not kernels.available("meta")
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert not kernels.available("cuda")
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    assert kernels.available("cuda:1")


def test_asking_does_not_import_triton():
    program = "import sys; from tunesmith.models import kernels, nf4; kernels.available('cuda'); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with CUDA builds of torch")
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_launch_compiles_without_a_gpu(generation):
    program = [sys.executable, "-m", "tests.models.kernels.compile_for_gpus", str(GENERATIONS[generation])]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {facts["launch"] for facts in found} == set(LAUNCHES)
    for facts in found:
        assert facts["spilled_bytes"] == 0 and facts["shared_bytes"] <= 48 * 1024, facts
        assert facts["registers"] * facts["warps"] * 32 <= 65536, f"{facts}: one program would not fit"
        if facts["launch"].startswith("nf4"):
            assert facts["fused_products"] == 0, "a fused multiply-add rounds once where bitsandbytes rounds twice"
