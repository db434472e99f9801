"""What programs do around a module: DistributedDataParallel, and many shapes."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from literal import KINDS, assert_same, pair

KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@KIND
def test_burn_in_under_distributed_data_parallel(kind, one_process):
    """Steps that only warm the state up leave no parameter waiting for a gradient."""
    module, reference = pair(kind, 3, 4, 2)
    x = torch.linspace(-1, 1, 9 * 2 * 3).double().view(9, 2, 3)
    found = []
    for model in (DistributedDataParallel(module), reference):
        for _ in range(2):  # the second pass is what would complain of the first
            model.zero_grad()
            with torch.no_grad():
                _, state = model(x[:5])
            y, _ = model(x[5:], state)
            y.square().sum().backward()
        owner = model.module if model is not reference else model
        found.append({n: p.grad for n, p in owner.named_parameters()} | {"y": y})
    assert_same(*found)


_MANY_SHAPES = """
import random, torch, bptt
def resident():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
random.seed(0)
modules = [bptt.RNN(8, 24), bptt.GRU(8, 24, 2), bptt.LSTM(8, 24)]
def run(count):
    for _ in range(count):
        time, batch = random.randint(1, 60), random.randint(1, 40)
        x = torch.randn(time, batch, 8)
        ends = torch.randint(1, time + 1, (batch,))
        lengths = ends if random.random() < 0.5 else None
        y, _ = random.choice(modules)(x, lengths=lengths)
        y.sum().backward()
torch.set_num_threads(1)
run(400)
before = resident()
run(1600)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_many_shapes():
    out = subprocess.run(
        [sys.executable, "-c", _MANY_SHAPES], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 8 << 20
