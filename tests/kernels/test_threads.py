"""Threads inside a call, calls in several threads, the GIL, and fork."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
import torch

from bptt.truncation import Truncation
from kernels import cases
from kernels.cases import KIND, NATIVE, NATIVES, Case, assert_bits, run
from kernels.law import assert_as_exact_as_torch
from literal import KINDS

pytestmark = NATIVE

SHAPES = [
    {"hidden": 1, "batch": 2, "time": 3, "inputs": 2},
    {"hidden": 33, "batch": 7, "time": 9, "inputs": 5, "layers": 2},
    {"hidden": 130, "batch": 1, "time": 20, "inputs": 40},
    {"hidden": 70, "batch": 33, "time": 12, "inputs": 129, "bidirectional": True},
    {"hidden": 256, "batch": 16, "time": 6, "inputs": 100},
    {"hidden": 48, "batch": 9, "time": 30, "inputs": 60, "ids": True},
    # So few rows that other threads form products before the loop and behind it, and
    # then so many of these that the loop's own thread takes a part.
    {"hidden": 64, "batch": 4, "time": 200, "inputs": 16},
    {"hidden": 24, "batch": 4, "time": 200, "inputs": 400},
]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: str(s["hidden"]))
CUT = Truncation(2, 5)
FORKS_WORK = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(),
    reason="no fork here, or, with CUDA, torch's autograd refuses to run in children",
)


@pytest.mark.parametrize(
    "shape", SHAPES[1:5] + SHAPES[6:], ids=lambda s: str(s["hidden"])
)
@pytest.mark.parametrize("threads", [1, 2])
@KIND
def test_the_same_bits_run_after_run(kind, threads, shape, set_threads):
    set_threads(threads)
    for truncation in (None, CUT):
        if shape.get("bidirectional") and truncation:
            continue
        case = Case(kind, truncation=truncation, **shape)
        module, data = case.modules()[0], case.data()
        with cases.native_only():
            first = run(module, data)
            for _ in range(threads):
                assert_bits(run(module, data), first)


@SHAPE
@pytest.mark.parametrize("threads", [2, 5])
@KIND
def test_as_exact_on_any_number_of_threads(kind, threads, shape, set_threads):
    set_threads(threads)
    assert_as_exact_as_torch(Case(kind, **shape))


def test_calls_in_many_threads_at_once_are_the_calls_one_by_one(set_threads):
    """Eight threads, other modules, sizes, truncations, forward and backward."""
    set_threads(2)
    jobs = []
    for at in range(8):
        shape = dict(SHAPES[(1, 3, 4, 5)[at % 4]])
        truncation = None if shape.get("bidirectional") or at % 2 else CUT
        case = Case(KINDS[at % 4], truncation=truncation, seed=at, **shape)
        jobs.append((case.modules()[0], case.data()))
    expected = [run(*job) for job in jobs]
    start, found = threading.Barrier(8), [None] * 8

    def work(at):
        start.wait()
        found[at] = [run(*jobs[at]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    for runs, once in zip(found, expected, strict=True):
        for again in runs:
            assert_bits(again, once)


def test_one_module_in_many_threads_at_once(set_threads):
    set_threads(2)
    case = Case("lstm", 40, batch=5, time=9, inputs=7, layers=2)
    module, data = case.modules()[0].requires_grad_(False), case.data()
    expected, found = module(data.x, data.state)[0], []

    def work():
        for _ in range(10):
            found.append(module(data.x, data.state)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 40
    for y in found:
        assert_bits({"y": y}, {"y": expected})


def test_other_threads_go_on_during_a_call():
    """A counter beside a long call. The call is one kernel's work nearly throughout, so
    a kernel that kept the GIL would leave one gap as long as it."""
    case = Case("lstm", 256, batch=48, time=120, inputs=8)
    module, data = case.modules()[0].requires_grad_(False), case.data()
    stamps: list[float] = []
    stop = threading.Event()

    def count():
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        shares = []
        for _ in range(5):
            begin = time.perf_counter()
            module(data.x, data.state)
            end = time.perf_counter()
            inside = [begin, *(s for s in stamps if begin < s < end), end]
            gaps = [b - a for a, b in pairwise(inside)]
            shares.append(max(gaps) / (end - begin))
    finally:
        stop.set()
        counter.join()
    assert min(shares) < 0.5, f"longest gaps, as shares of the calls: {shares}"


def _forward_and_backward(case, expected):
    """In a child: 0 where it finds the same bits."""
    assert_bits(run(case.modules()[0], case.data()), expected)


@FORKS_WORK
# Python warns of any thread; those of torch and of the kernels are what this is about.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
@KIND
def test_a_forked_child_computes_the_same(kind, threads, set_threads):
    """Though the parent's threads are not there, and while the parent goes on."""
    set_threads(threads)
    case = Case(kind, 64, batch=12, time=10, inputs=20)
    expected = run(case.modules()[0], case.data())
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_forward_and_backward, args=(case, expected))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    assert_bits(run(case.modules()[0], case.data()), expected)
    codes = []
    for child in children:
        child.join(timeout=60)
        if child.is_alive():
            child.kill()
            child.join()
        codes.append(child.exitcode)
    assert codes == [0, 0]  # a kill is -9: it hung


# For each kernel: what children exit with that were forked before it was used, after,
# and by a child. torch's own threads have worked before, as in every program.
FORKS = """
import json, os, signal, sys, torch

def forked(work, seconds):
    child = os.fork()
    if not child:
        try:
            signal.alarm(seconds)  # ends it even where it hangs in a kernel
            os._exit(work())
        finally:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def scenario(kernel):
    os.environ["BPTT_KERNEL"] = kernel
    torch.set_num_threads(2)
    torch.randn(10**6).exp().sum()
    import bptt
    lstm, x = bptt.LSTM(20, 64), torch.randn(10, 12, 20)

    def numbers():
        lstm.zero_grad()
        y, _ = lstm(x)
        y.sum().backward()
        return torch.cat([y.detach().flatten(), lstm.weight_hh_l0.grad.flatten()])

    def same():
        return 0 if torch.equal(numbers(), expected) else 1

    codes = {"before": forked(lambda: 0 if numbers().isfinite().all() else 1, 5)}
    expected = numbers()
    codes["after"] = forked(same, 5)
    codes["by a child"] = forked(lambda: same() or forked(same, 5), 10)
    print(json.dumps([kernel, codes]), flush=True)
    return 0

for kernel in sys.argv[1:]:
    forked(lambda: scenario(kernel), 60)
"""


@pytest.fixture(scope="module")
def forks():
    """{kernel: {when: exit code}}"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, *NATIVES],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(map(json.loads, done.stdout.splitlines()))


@FORKS_WORK
@pytest.mark.parametrize("when", ["before", "after", "by a child"])
def test_children_forked_before_and_after_the_first_use(kernel, forks, when):
    assert forks[kernel][when] == 0  # the alarm is -14: it hung


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_are_left_to_the_caller(threads, set_threads):
    """The core takes them for zero while it runs, and nobody else does afterwards."""
    set_threads(threads)
    case = Case("gru", **SHAPES[4])
    run(case.modules()[0], case.data())
    small = torch.full((100_000,), 1e-40)  # enough for every thread
    assert (small * 2).count_nonzero() == len(small)
