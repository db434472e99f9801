"""How much faster than jax's lax.scan are bptt's RNN, GRU and LSTM in training?

    python benchmarks/against_jax.py [--quick] [--json RESULT] [--rounds N]
        [--only SUBSTRING ...]

The training steps without dx of the grid of `against_torch.py`. On jax's side the input
product of all steps is formed at once, before `lax.scan` runs the recurrence; loss and
gradients of the weights are one function under `jit`, compiled before it is timed, on
the CPU. It gets bptt's weights, and has to agree in outputs and gradients first. Ratios
are jax's time divided by bptt's, from alternating runs in one process, each library
with its own threads.

jax is no dependency of bptt: without it this prints a line and ends. To have it:

    .venv/bin/pip install jax==0.10.2
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

if importlib.util.find_spec("jax") is None:
    print("jax is not installed: nothing to compare with; see the docstring's end")
    sys.exit(0)

import jax
import jax.numpy as jnp
import torch
from jax import lax

import bptt
import timing
from against_torch import (
    AT_PEAK,
    GATES,
    LARGER,
    SMALLEST,
    TASKS,
    TOLERANCE,
    Shape,
    inputs,
    new_module,
    operations,
    training_step,
)
from timing import Figure, alternate, geometric_mean, ratios

Record = dict[str, Any]
Run = Callable[[], object]
jax.config.update("jax_platforms", "cpu")


def main() -> None:
    """Measure, print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SUBSTRING")
    arguments = parser.parse_args()
    shapes = (LARGER[0], AT_PEAK, SMALLEST) if arguments.quick else (*LARGER, SMALLEST)
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    least_s = 0.003 if arguments.quick else timing.LEAST_S
    result = {
        "question": "training step of jax's lax.scan relative to bptt's",
        "rounds": rounds,
        **timing.about(),
        "jax": jax.__version__,
    }
    records: list[Record] = []
    for name, cell, shape in cases(shapes):
        if any(text in name for text in arguments.only):
            contestants, worst = both(cell, shape)
            times = alternate(contestants, rounds, least_s)
            records.append(record(name, cell, shape, times, worst))
            print(line(records[-1]), flush=True)
    means = {}
    larger = {str(shape) for shape in LARGER}
    for cell in GATES:
        of = [r for r in records if r["cell"] == cell and r["shape"] in larger]
        if len(of) == len(LARGER):
            means[cell] = geometric_mean([r["ratio"].median for r in of])
            print(f"geometric mean of the larger shapes, {cell}: {means[cell]:.2f}")
    result |= {"figures": records, "geometric_means": means}
    timing.write_json(arguments.json, result)


def cases(shapes: Sequence[Shape]) -> Iterator[tuple[str, str, Shape]]:
    """Name, cell and shape of every figure."""
    for cell, shape in product(GATES, shapes):
        yield f"{cell} {shape}", cell, shape


def both(cell: str, shape: Shape) -> tuple[dict[str, Run], float]:
    """The training steps of both, and by how much they differ."""
    x, dy = inputs(shape)
    module = new_module(bptt, cell, shape)
    step = training_step(module, x, dy)
    weights = {name: jnp.asarray(p.detach()) for name, p in module.named_parameters()}
    x_jax, dy_jax = jnp.asarray(x), jnp.asarray(dy)
    scan = SCANS[cell]

    def loss(weights: dict[str, jax.Array], x: jax.Array, dy: jax.Array) -> jax.Array:
        return jnp.sum(scan(weights, x) * dy)

    compiled = jax.jit(jax.value_and_grad(loss))
    step()
    _, gradients = compiled(weights, x_jax, dy_jax)
    pairs = [(module(x)[0], jax.jit(scan)(weights, x_jax))]
    pairs += [(p.grad, gradients[name]) for name, p in module.named_parameters()]
    worst = max(timing.relative_difference(a, as_torch(b)) for a, b in pairs)
    if not worst <= TOLERANCE:
        raise SystemExit(f"{cell} {shape}: bptt and jax differ by {worst:.1e}")

    def jax_step() -> None:
        jax.block_until_ready(compiled(weights, x_jax, dy_jax))

    return {"jax": jax_step, "bptt": step}, worst


def as_torch(a: jax.Array) -> torch.Tensor:
    """A copy for comparing."""
    return torch.tensor(jax.device_get(a))


def input_product(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`U x + b_ih` of all steps."""
    return x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]


def zero_state(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """(batch, hidden)."""
    return jnp.zeros((x.shape[1], weights["weight_hh_l0"].shape[1]), x.dtype)


def rnn(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Outputs of `h_t = tanh(U x_t + W h_{t-1} + b)`."""
    gx = input_product(weights, x) + weights["bias_hh_l0"]
    W = weights["weight_hh_l0"]

    def step(h: jax.Array, gx: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(gx + h @ W.T)
        return h, h

    return lax.scan(step, zero_state(weights, x), gx)[1]


def gru(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Outputs of torch.nn's GRU, gates r z n."""
    gx = input_product(weights, x)
    W, b_hh = weights["weight_hh_l0"], weights["bias_hh_l0"]

    def step(h: jax.Array, gx: jax.Array) -> tuple[jax.Array, jax.Array]:
        gx_r, gx_z, gx_n = jnp.split(gx, 3, axis=-1)
        gh_r, gh_z, gh_n = jnp.split(h @ W.T + b_hh, 3, axis=-1)
        r, z = jax.nn.sigmoid(gx_r + gh_r), jax.nn.sigmoid(gx_z + gh_z)
        n = jnp.tanh(gx_n + r * gh_n)
        h = n + z * (h - n)
        return h, h

    return lax.scan(step, zero_state(weights, x), gx)[1]


def lstm(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Outputs of torch.nn's LSTM, gates i f g o."""
    gx = input_product(weights, x) + weights["bias_hh_l0"]
    W = weights["weight_hh_l0"]

    def step(
        state: tuple[jax.Array, jax.Array], gx: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        i, f, g, o = jnp.split(gx + h @ W.T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = zero_state(weights, x)
    return lax.scan(step, (zero, zero), gx)[1]


SCANS = {"rnn": rnn, "gru": gru, "lstm": lstm}


def record(
    name: str, cell: str, shape: Shape, times: dict[str, list[float]], worst: float
) -> Record:
    """What the times say."""
    flop = operations(cell, shape, TASKS[0])
    gflops = {n: Figure.of([flop / s / 1e9 for s in of]) for n, of in times.items()}
    return {
        "name": name,
        "cell": cell,
        "shape": str(shape),
        "ratio": ratios(times["jax"], times["bptt"]),
        "seconds": {name: Figure.of(s) for name, s in times.items()},
        "gflops": gflops,
        "relative_difference": worst,
    }


def line(record: Record) -> str:
    """A record as a line of the table."""
    text = f"{record['name']:<24}"
    for name, figure in record["seconds"].items():
        rate = record["gflops"][name].median
        text += f"{name:>6}{figure.median * 1e3:10.3f} ms {rate:4.0f} GFLOP/s"
    return f"{text}  ratio {record['ratio']}"


if __name__ == "__main__":
    main()
