"""The kernels within a memory budget: as exact as without one."""

import pytest

from bptt.truncation import Truncation
from kernels import cases
from kernels.cases import BEST, KIND, NATIVE, Case
from kernels.law import assert_lawful


@NATIVE
@BEST
@KIND
@pytest.mark.parametrize(
    "truncation", [None, Truncation(16, 16), Truncation(5, 20)], ids=str
)
def test_float32_is_as_exact_as_the_law_asks(kernel, kind, truncation):
    case = Case(kind, 40, 3, 120, 9, layers=2, truncation=truncation, seed=2)
    module, data = case.modules()[0], case.data()
    module.memory_budget = 1
    with pytest.raises(ValueError, match="cannot be met") as caught:
        cases.run(module, data)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    for budget in (least, int(1.3 * least), 3 * least):
        module.memory_budget = budget
        with cases.native_only():
            found = cases.run(module, data)
        assert_lawful(case, found)
