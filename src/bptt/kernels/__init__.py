"""The loop through time in C++, for float32 on the CPU, and the choice of its variant.

The native core computes what `bptt.through_time` defines, with the same arguments, in
one call a layer. It is built once per kind of processor ("avx512", "avx2", "baseline");
the best that this machine runs is chosen at the first use. "torch" is the definition
itself, which also runs wherever the native core does not apply: other dtypes and
devices, `torch.func` transforms, derivatives of the gradient.

The environment variable BPTT_KERNEL=torch|baseline|avx2|avx512 chooses one by name.
"""

from bptt.kernels.choice import active as active
from bptt.kernels.choice import available as available
from bptt.kernels.choice import use as use
