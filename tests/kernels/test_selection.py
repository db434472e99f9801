"""Which kernel runs: by default, by the environment, by `use`, and for what tensors."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, vmap
from torch.utils.flop_counter import FlopCounterMode

import bptt
from bptt import kernels
from bptt.truncation import Truncation
from kernels.cases import BEST, KIND, NATIVE, NATIVES, Case, bits, run
from literal import ours, outputs

# Said once where there is no native kernel; what it says is tested below.
pytestmark = pytest.mark.filterwarnings("ignore:bptt was installed without its native")

NAMES = ("avx512", "avx2", "baseline", "torch")
SOME = pytest.mark.skipif(not NATIVES, reason="no native kernel is installed here")

# What processes say in which bptt is new: {"active": ..., "available": ..., "warned":
# [...], "steps": how many the definition took} or {"error": ..., "message": ...}.
SAYS = """
import importlib.machinery, json, os, sys, traceback, warnings
import torch

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("bptt.kernels.") and name.endswith("native"):
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is None or not str(spec.origin).endswith(".py"):
                raise ModuleNotFoundError(name, name=name)

def say(value, installed, asked_first):
    os.environ.pop("BPTT_KERNEL", None)
    if value is not None:
        os.environ["BPTT_KERNEL"] = value
    if not installed:
        sys.meta_path.insert(0, Without())
    import bptt
    from bptt.cells import GRUCell
    steps, true = [], GRUCell.step
    GRUCell.step = lambda *arguments: steps.append(1) or true(*arguments)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if asked_first:
                from bptt import kernels
                kernels.active()
            gru = bptt.GRU(3, 5)
            gru(torch.ones(4, 2, 3))[0].sum().backward()
            gru(torch.ones(4, 2, 3))
    except Exception as error:
        return dict(error=type(error).__name__, message=str(error))
    from bptt import kernels
    return dict(active=kernels.active(), available=kernels.available(),
                warned=[str(w.message) for w in warned], steps=len(steps))

for name, arguments in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        try:
            print(json.dumps([name, say(*arguments)]), flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""
FRESH = {  # name -> (BPTT_KERNEL, whether the extension is installed, "asked first")
    "by default": (None, True, False),
    "asked first": (None, True, True),
    **{f"BPTT_KERNEL={name}": (name, True, False) for name in kernels.available()},
    "a wrong name": ("avx1024", True, False),
    "a wrong name, asked first": ("AVX2", True, True),
    "not installed": (None, False, False),
    "not installed, torch": ("torch", False, False),
    "not installed, avx2": ("avx2", False, False),
}


def test_where_there_is_a_compiler_the_core_is_installed():
    """The install falls back on the definition, also from a mistake in our own code."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compilers = [shutil.which(name) for name in ("c++", "g++", "clang++")]
    if not any(compilers) or not headers.exists() or os.name == "nt":
        pytest.skip("the core cannot be compiled here")
    assert NATIVES, "pip install --verbose shows why the core was not compiled"


@pytest.fixture(scope="module")
def fresh():
    """What fresh processes say."""
    if not hasattr(os, "fork"):
        pytest.skip("the system has no fork, and to import torch each time takes long")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAYS, json.dumps(FRESH)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = dict(map(json.loads, done.stdout.splitlines()))
    assert said.keys() == FRESH.keys(), done.stderr
    return said


@pytest.mark.parametrize("name", ["by default", "asked first"])
def test_the_best_kernel_is_the_default(fresh, name):
    says = fresh[name]
    assert tuple(says["available"]) == kernels.available()
    assert says["active"] == kernels.available()[0]
    if NATIVES:
        assert says["warned"] == []
        assert says["steps"] == 0


@pytest.mark.parametrize("name", kernels.available())
def test_the_environment_chooses_each_kernel(fresh, name):
    says = fresh[f"BPTT_KERNEL={name}"]
    assert says["active"] == name
    assert says["warned"] == []
    assert says["steps"] == (8 if name == "torch" else 0)


@pytest.mark.parametrize("name", [name for name in FRESH if "wrong" in name])
def test_a_wrong_name_in_the_environment_is_an_error_that_says_what_is_possible(
    fresh, name
):
    says = fresh[name]
    assert says["error"] in ("ValueError", "RuntimeError")
    for part in ("BPTT_KERNEL", FRESH[name][0], *kernels.available()):
        assert part in says["message"]
    assert "\n" not in says["message"]


def test_without_the_extension_the_definition_runs_and_says_so_once(fresh):
    says = fresh["not installed"]
    assert (says["active"], says["available"]) == ("torch", ["torch"])
    assert says["steps"] == 8
    (warning,) = says["warned"]
    assert "\n" not in warning
    for part in ("BPTT_KERNEL=torch", "compiler", "pip install --verbose"):
        assert part in warning


def test_without_the_extension_torch_by_name_is_no_reason_to_warn(fresh):
    says = fresh["not installed, torch"]
    assert (says["active"], says["warned"], says["steps"]) == ("torch", [], 8)


def test_without_the_extension_a_native_kernel_by_name_is_an_error(fresh):
    says = fresh["not installed, avx2"]
    assert says["error"] in ("ValueError", "RuntimeError")
    for part in ("BPTT_KERNEL", "avx2", "torch"):
        assert part in says["message"]


def test_available_is_best_first_and_ends_in_torch():
    found = kernels.available()
    assert isinstance(found, tuple)
    assert found == tuple(name for name in NAMES if name in found)
    assert found[-1] == "torch"
    assert not NATIVES or "baseline" in found
    assert kernels.active() in found


def test_use_forces_one_kernel_and_gives_the_other_back():
    before = kernels.active()
    for name in kernels.available():
        with kernels.use(name):
            assert kernels.active() == name
            with kernels.use("torch"):
                assert kernels.active() == "torch"
            assert kernels.active() == name
        assert kernels.active() == before
        with pytest.raises(KeyError), kernels.use(name):
            raise KeyError
        assert kernels.active() == before


@pytest.mark.parametrize("name", ["avx1024", "", "Torch", "native"])
def test_use_refuses_what_is_not_there_and_says_what_is(name):
    before = kernels.active()
    with pytest.raises((ValueError, RuntimeError)) as caught:
        kernels.use(name).__enter__()
    for possible in (name, *kernels.available()):
        assert possible in str(caught.value)
    assert kernels.active() == before


@SOME
def test_a_kernel_that_this_processor_lacks_is_refused_by_name():
    lacking = [name for name in NAMES if name not in kernels.available()]
    for name in lacking:
        with pytest.raises((ValueError, RuntimeError), match=name):
            kernels.use(name).__enter__()


@NATIVE
@pytest.mark.parametrize("truncation", [None, Truncation(2, 3)], ids=str)
@pytest.mark.parametrize("ids", [False, True])
@KIND
def test_float32_on_the_cpu_is_the_kernels_work(kind, ids, truncation, definition):
    case = Case(kind, 9, 3, 5, inputs=4, layers=2, ids=ids, truncation=truncation)
    for other in (case, replace(case, batch_first=True), replace(case, batch=None)):
        module, data = other.modules()[0], other.data()
        run(module, data)
        with torch.no_grad():
            module(data.x)
        module.requires_grad_(False)(data.x)
    assert not definition


@SOME
def test_kernels_differ_in_their_last_bits():
    """So that a test of one kernel is not a test of another under its name."""
    case = Case("lstm", 100, batch=20, time=20, inputs=50)
    found = {}
    for name in kernels.available():
        with kernels.use(name):
            found[name] = bits(run(case.modules()[0], case.data())["dweight_hh_l0"])
    for name in NATIVES:
        assert not torch.equal(found[name], found["torch"])
    if "avx2" in found:
        assert not torch.equal(found["avx2"], found["baseline"])


def plain(kind):
    return ours(kind, 3, 4, dtype=torch.float32), torch.randn(5, 2, 3)


def in_float64(kind):
    module, x = plain(kind)
    run_both_ways(module.double(), x.double())


def in_bfloat16(kind):
    module, x = plain(kind)
    run_both_ways(module.bfloat16(), x.bfloat16())


def under_vmap(kind):
    module, x = plain(kind)
    weights = {n: w.expand(3, *w.shape) for n, w in module.named_parameters()}
    vmap(lambda w: functional_call(module, w, (x,))[0])(weights)


def through_double_backward(kind):
    module, x = plain(kind)
    y, _ = module(x.requires_grad_())
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    dx.sum().backward()


def without_a_device(kind):
    module, x = plain(kind)
    y, _ = module.to("meta")(x.to("meta"))
    assert (y.shape, y.device.type) == ((5, 2, 4), "meta")


def with_a_subclass(kind):
    class Marked(torch.Tensor):
        pass

    module, x = plain(kind)
    y, _ = module(x.as_subclass(Marked))
    torch.testing.assert_close(y.as_subclass(torch.Tensor), module(x)[0])


def while_operations_are_counted(kind):
    module, x = plain(kind)
    with FlopCounterMode(display=False) as counted:
        module(x)
    assert counted.get_total_flops() > 0


def with_a_negative_input(kind):
    module, x = plain(kind)
    found, expected = module(torch._neg_view(x))[0], module(-x)[0]
    torch.testing.assert_close(found, expected)


def run_both_ways(module, x):
    sum(t.sum() for t in outputs(module, x).values()).backward()


ELSEWHERE = [
    in_float64,
    in_bfloat16,
    under_vmap,
    through_double_backward,
    without_a_device,
    with_a_subclass,
    while_operations_are_counted,
    with_a_negative_input,
]


@NATIVE
@BEST
@pytest.mark.parametrize("use", ELSEWHERE, ids=lambda use: use.__name__)
@KIND
def test_the_definition_runs_where_the_kernels_do_not_apply(kind, use, definition):
    use(kind)
    assert definition["step"]


@NATIVE
def test_a_choice_is_silent(kernel):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bptt.LSTM(2, 3)(torch.ones(2, 1, 2))
    assert kernels.active() == kernel
