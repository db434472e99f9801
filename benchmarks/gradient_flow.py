"""How much faster is gradient flow than one autograd call for each output?

    python benchmarks/gradient_flow.py [--quick] [--json RESULT] [--rounds N]

A GRU. On one side what one writes without this package: `torch.nn.GRUCell` in a loop
that keeps the states, then for each output one `torch.autograd.grad` with respect to
all states before it, and the norms of what comes back. On the other `gradient_flow`,
from the user's loss to `norms`, and to `norms` and `by_lag`, which the autograd calls
do not even give. Both tables of norms are found to agree before anything is timed. The
time is also held to that of the matrix products that have to be done, at the
product peak measured in the same rounds, the better one of torch and NumPy.
"""

import argparse
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bptt
import timing
from timing import Figure, Target, alternate, ratios

# (time, batch, hidden): least ratios for norms, and for norms and by_lag; or None.
SHAPES = {(200, 8, 256): (6.0, 4.0), (200, 1, 64): (30.0, None)}
OF_PEAK = 1.5  # times the products' time, at the larger shape
LONG = (1000, 8, 256)
MOST_BYTES = 2 * 10**9
PEAK_SIZE = 2048


def main() -> None:
    """Compare the tables, then the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, metavar="N")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    targets: list[Target] = []
    results = [measure(shape, rounds, targets) for shape in SHAPES]
    result: dict[str, Any] = {
        "question": "time of one autograd call an output relative to gradient_flow's",
        "rounds": rounds,
        **timing.about(),
        "shapes": results,
    }
    if not arguments.quick:
        result["long"] = long_sequence(targets)
    for target in targets:
        print(target)
    timing.write_json(arguments.json, {**result, "targets": targets})


class Contestants:
    """The same GRU on both sides, with the same errors of its outputs."""

    def __init__(self, time: int, batch: int, hidden: int) -> None:
        torch.manual_seed(0)
        self.gru = torch.nn.GRU(hidden, hidden)
        self.cell = torch.nn.GRUCell(hidden, hidden)
        weights = {
            name.removesuffix("_l0"): w for name, w in self.gru.state_dict().items()
        }
        self.cell.load_state_dict(weights)
        self.x = torch.randn(time, batch, hidden)
        self.dy = torch.randn(time, batch, hidden)

    def loss(self) -> torch.Tensor:
        """With `dy` as the error of the outputs."""
        return (self.gru(self.x)[0] * self.dy).sum()

    def norms(self) -> torch.Tensor:
        """The table alone."""
        return bptt.gradient_flow(self.gru, self.loss).norms

    def norms_and_lags(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The table and the gradient by lag, of one sweep."""
        flow = bptt.gradient_flow(self.gru, self.loss)
        return flow.by_lag, flow.norms

    def autograd(self) -> torch.Tensor:
        """The table by one call for each output."""
        time, batch, hidden = self.x.shape
        h = torch.zeros(batch, hidden, requires_grad=True)
        states, losses = [], []
        for x_t, dy_t in zip(self.x, self.dy, strict=True):
            h = self.cell(x_t, h)
            states.append(h)
            losses.append((h * dy_t).sum())
        table = torch.zeros(time, time)
        for t in range(time):
            found = torch.autograd.grad(losses[t], states[: t + 1], retain_graph=True)
            table[t, : t + 1] = torch.stack([d.norm(dim=1).mean() for d in found])
        return table


def measure(
    shape: tuple[int, int, int], rounds: int, targets: list[Target]
) -> dict[str, Any]:
    """Both sides by turns at one shape."""
    time, batch, hidden = shape
    both = Contestants(*shape)
    difference = timing.relative_difference(both.norms(), both.autograd())
    assert difference < 1e-5, f"the tables differ by {difference}"
    a = torch.randn(PEAK_SIZE, PEAK_SIZE)
    b = a.numpy()
    times = alternate(
        {
            "norms": both.norms,
            "norms and by_lag": both.norms_and_lags,
            "autograd": both.autograd,
            "torch's product": lambda: a @ a,
            "NumPy's product": lambda: np.matmul(b, b),
        },
        rounds,
    )
    product_s = min(min(times["torch's product"]), min(times["NumPy's product"]))
    peak = 2 * PEAK_SIZE**3 / product_s
    # Every pass at every step: W once, and for the lags dW and dU.
    flops = time * (time + 1) / 2 * batch * 2 * 3 * hidden * hidden
    least = {"norms": flops / peak, "norms and by_lag": 3 * flops / peak}
    seconds = {name: Figure.of(s) for name, s in times.items()}
    found: dict[str, Any] = {}
    for (name, least_s), ratio in zip(least.items(), SHAPES[shape], strict=True):
        faster = ratios(times["autograd"], times[name])
        of_peak = seconds[name].median / least_s
        print(f"{shape} {name:<17} {seconds[name].median:.3f} s, {faster} times")
        found[name] = {"times_as_fast": faster, "of_products": of_peak}
        if ratio is not None:
            targets.append(Target(f"{shape} {name}", ratio, faster.median))
        if hidden >= 256:
            label = f"{shape} {name}: of its products"
            targets.append(Target(label, OF_PEAK, of_peak, at_most=True))
    return {
        "time": time,
        "batch": batch,
        "hidden": hidden,
        "largest_difference": difference,
        "peak_gflops": round(peak / 1e9, 1),
        "seconds": seconds,
        "products_s": least,
        **found,
    }


def long_sequence(targets: list[Target]) -> dict[str, Any]:
    """The largest resident memory with a long sequence, of the whole process."""
    Contestants(*LONG).norms_and_lags()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    targets.append(Target(f"{LONG}: resident bytes", MOST_BYTES, peak, at_most=True))
    return {"shape": LONG, "resident_bytes": peak}


if __name__ == "__main__":
    main()
