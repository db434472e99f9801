"""The public gradient checker, and certificates of the gradients of this machine.

The idea of HIPS autograd's `check_grads`, extended to truncations: compare
`<gradient, v>` with a difference of the objective along a random direction `v`, and the
float32 gradient, which people train with, against the float64 one. `rtrl` is the exact
gradient by another way, forward through time.
"""

from bptt.verify.certificates import CASES as CASES
from bptt.verify.certificates import Certificate as Certificate
from bptt.verify.certificates import certify as certify
from bptt.verify.check import check_gradients as check_gradients
from bptt.verify.forward_mode import rtrl as rtrl
from bptt.verify.report import GradientReport as GradientReport
from bptt.verify.report import TensorCheck as TensorCheck
