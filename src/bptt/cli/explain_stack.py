"""The worked example of gated cells and of several layers: norms, largest entries."""

from typing import final

import numpy as np

from bptt.cells import Cell, GRUCell, LSTMCell, ReLUCell, TanhCell
from bptt.cli import explain_parts as parts
from bptt.cli.explain_parts import COLUMNS, norm
from bptt.cli.grid import Array, numbers, words
from bptt.cli.sheet import Sheet
from bptt.explain import WorkedExample

_NAMES = parts.Names(h="h", o="p")
_EQUATIONS: dict[type[Cell], tuple[str, ...]] = {
    TanhCell: ("h_t = tanh(U x_t + W h_{t-1} + b)",),
    ReLUCell: ("h_t = max(0, U x_t + W h_{t-1} + b)",),
    LSTMCell: (
        "i, f, o = sigmoid(U x_t + W h_{t-1} + b)",
        "g = tanh(U x_t + W h_{t-1} + b); each gate has its own rows of U and W",
        "c_t = f * c_{t-1} + i * g",
        "h_t = o * tanh(c_t)",
    ),
    GRUCell: (
        "r, z = sigmoid(U x_t + W h_{t-1} + b)",
        "n = tanh(U x_t + b + r * (W h_{t-1} + b')); each has its own rows of U and W",
        "h_t = (1 - z) * n + z * h_{t-1}",
    ),
}


@final
class StackPage:
    """Prints a worked example for a terminal of 80 columns, part by part."""

    def __init__(self, sheet: Sheet, example: WorkedExample) -> None:
        self._sheet = sheet
        self._example = example
        self._network = example.network
        self._t = example.t
        self._is_gru = isinstance(example.network.cell, GRUCell)

    def print(self) -> None:
        """All of it."""
        sheet, example, t = self._sheet, self._example, self._t
        self._print_network()
        parts.forward(sheet, example, _NAMES)
        self._print_gates()
        parts.softmax_part(sheet, example, _NAMES)
        self._print_deltas()
        self._print_jacobians()
        self._print_carrier()
        sheet.head(f"4. dE_{t}/dW = sum over k of delta_k^({t}) outer h_{{k-1}}")
        dW = [(term.hidden_delta, term.h_before) for term in example.terms]
        self._print_sum(dW, example.dW, example.engine.W, "h")
        parts.difference(sheet, example.differences.dW)
        sheet.note("  Step 0 adds nothing to W: the state before it is 0.")
        sheet.head(f"5. dE_{t}/dU = sum over k of delta_k^({t}) outer x_k")
        dU = [(term.delta, term.x) for term in example.terms]
        self._print_sum(dU, example.dU, example.engine.U, "x")
        parts.difference(sheet, example.differences.dU)
        parts.truncations(sheet, example)
        self._print_unshared()

    def _print_network(self) -> None:
        network, sheet = self._network, self._sheet
        layer, layers = self._example.layer, len(self._network.layers)
        parts.title(sheet, self._example)
        softmax = "p_t = softmax(V h_t + d)", "E_t = -log p_t[y_t]"
        for equation in (*_EQUATIONS[type(network.cell)], *softmax):
            if not network.has_biases:
                for bias in (" + b'", " + b", " + d"):
                    equation = equation.replace(bias, "")
            sheet.line(f"  {equation}")
        sheet.line()
        start = " = ".join(f"{part}_{{-1}}" for part in network.parts)
        parts.sizes(sheet, self._example, f"{start} = 0")
        if layers > 1:
            below = f"; its x_t is h_t of layer {layer - 1}" if layer > 1 else ""
            sheet.line(f"  Layer {layer} of {layers} is explained{below}.")
        if layer < layers:
            sheet.note("  Its errors come through the layers above, at every step.")

    def _print_gates(self) -> None:
        """How open they are in the layer that is explained, and what it holds."""
        if not self._network.gates:
            return
        gates = [f"|{gate}|" if gate in "gn" else gate for gate in self._network.gates]
        held = [f"|{part}_t|" for part in self._network.parts]
        layers, layer = len(self._network.layers), self._example.layer
        of = f" of layer {layer}" if layers > 1 else ""
        self._sheet.line()
        self._sheet.note(f"  Gates{of}, mean over the units, and norms:")
        self._sheet.note(f"  {'t':>2}{words(gates + held)}")
        for step in self._example.steps:
            self._sheet.line(
                f"  {step.t:2}{numbers(np.abs(step.gates).mean(axis=1))}"
                f"{numbers(self._parts(step.s))}"
            )

    def _print_deltas(self) -> None:
        network, t = self._network, self._t
        what = "deltas of the gates" if network.gates else "delta vectors"
        self._sheet.head(f"3. Back: the {what} and the Jacobians between the states")
        bias = " + b" if network.has_biases else ""
        self._sheet.note(
            f"  delta_k^({t}) is the derivative of E_{t} by U x_k + W h_{{k-1}}{bias}; "
            "norms:"
        )
        errors = [f"dE/d{part}_k" for part in network.parts]
        deltas = list(network.gates) if network.gates else ["delta_k"]
        in_W = ["n, in W"] if self._is_gru else []
        self._sheet.note(f"  {'k':>2}{words([*errors, *deltas, *in_W])}")
        for term in self._example.terms:
            found = [*self._parts(term.ds), *self._by_gate(term.delta)]
            if in_W:
                found.append(self._by_gate(term.hidden_delta)[-1])
            self._sheet.line(f"  {term.k:2}{numbers(found)}")
        if in_W:
            self._sheet.note("  W h_{k-1} reaches n through r, so W has r * its delta.")
        if self._example.layer < len(network.layers):
            above = self._example.layer + 1
            self._sheet.note(
                "  What later steps hand back is dE/d"
                f"{' and dE/d'.join(f'{part}_k' for part in network.parts)}; layer "
                f"{above} hands down more."
            )
        self._print_largest_deltas()

    def _print_largest_deltas(self) -> None:
        deltas = np.stack([term.delta for term in self._example.terms])
        largest = _largest(np.abs(deltas).max(axis=0, keepdims=True))
        self._sheet.line()
        names = words(self._row_name(at) for _, at in largest)
        self._sheet.note(f"  {'k':>2}{names}   largest entries")
        for term, delta in zip(self._example.terms, deltas, strict=True):
            self._sheet.line(f"  {term.k:2}{numbers(delta[at] for _, at in largest)}")

    def _print_jacobians(self) -> None:
        example, network, t = self._example, self._network, self._t
        held = " and ".join(network.parts)
        layers = " of all layers" if len(network.layers) > 1 else ""
        text = (
            f"s is {held}{layers}, {network.state} numbers. The error at s_k has come "
            f"through the product of the Jacobians, ds_{t}/ds_k. Their 2-norms, the "
            "most that they lengthen a vector:"
        )
        self._sheet.line()
        self._sheet.note(parts.filled(text))
        heads = ["one step", "product"]
        if network.carrier is not None:
            gate, part = network.carrier
            heads += [f"in {part}", f"{gate} alone", "mean"]
        self._sheet.note(f"  {'k':>2}{words(heads)}")
        for term in example.terms[1:]:
            found = [term.stretch_of_step or 0.0, term.stretch]
            if term.carried is not None:
                found += [example.stretch_of_part(term) or 0.0]
                found += [float(term.carried.max()), float(term.carried.mean())]
            self._sheet.line(f"  {term.k:2}{numbers(found)}")
        self._sheet.line(
            f"  Largest difference of a dE_{t}/ds_k to that by the product: "
            f"{parts.gap(example.differences.products)}"
        )

    def _print_carrier(self) -> None:
        """What a gate changes about the product, with its numbers."""
        example, t = self._example, self._t
        first = example.terms[-1]
        if self._network.carrier is None or first.carried is None or not t:
            return
        gate, part = self._network.carrier
        at = self._network.gates.index(gate)
        mean = float(np.mean([step.gates[at] for step in example.steps[1:]]))
        best, usual = float(first.carried.max()), float(first.carried.mean())
        text = (
            "Where a tanh network has diag(1 - s_j^2) W for each step, here also "
            f"{part}_{{j-1}} reaches {part}_j as {gate}_j * {part}_{{j-1}}, past W and "
            f"every tanh. So d{part}_{t}/d{part}_k ('in {part}') has a part, '{gate} "
            f"alone', that is the product of {gate} over the steps: 1 where {gate} is "
            f"1, less with each step where it is less. Here {gate} is {mean:.3f} on "
            f"average, and over {t} step{'s' * (t > 1)} this part is {usual:.2g} for "
            f"the mean unit, {best:.2g} for the best."
        )
        self._sheet.line()
        self._sheet.line(parts.filled(text))

    def _print_sum(
        self,
        terms: list[tuple[Array, Array]],
        total: Array,
        engine: Array,
        column: str,
    ) -> None:
        """Outer products: their norms, then the entries that are largest in the sum."""
        ks = [f"{term.k:2}" for term in self._example.terms]
        sums = {"sum": total, "engine": engine}
        self._sheet.note(f"  {'k':>2}    {words(self._norm_names)}   norms")
        for k, (delta, given) in zip(ks, terms, strict=True):
            size = norm(given)
            norms = numbers(size * each for each in self._norms(delta))
            self._sheet.line(f"  {k:6}{norms}")
        for name, matrix in sums.items():
            self._sheet.line(f"  {name:6}{numbers(self._norms(matrix))}", _style(name))
        entries = _largest(total)
        row_names = words(self._row_name(row) for row, _ in entries)
        column_names = words(self._column_name(column, at) for _, at in entries)
        self._sheet.line()
        self._sheet.note(f"  {'':6}{row_names}   largest entries")
        self._sheet.note(f"  {'k':>2}    {column_names}   row, column")
        for k, (delta, given) in zip(ks, terms, strict=True):
            values = numbers(delta[row] * given[at] for row, at in entries)
            self._sheet.line(f"  {k:6}{values}")
        for name, matrix in sums.items():
            values = numbers(matrix[entry] for entry in entries)
            self._sheet.line(f"  {name:6}{values}", _style(name))

    def _print_unshared(self) -> None:
        example = self._example
        parts.unshared_head(self._sheet, example)
        self._sheet.note(f"  {'k':>2}    {words(self._norm_names)}  |term k - it|")
        for term, dW in zip(example.terms, example.unshared, strict=True):
            gap = parts.gap(float(np.abs(term.dW - dW).max()))
            self._sheet.line(f"  {term.k:2}    {numbers(self._norms(dW))}{gap:>15}")
        norms = numbers(self._norms(example.sum_of_unshared))
        self._sheet.line(f"  {'=':>2}    {norms}", "bold")
        parts.difference(self._sheet, example.differences.unshared_sum)

    @property
    def _norm_names(self) -> list[str]:
        return [*self._network.gates, "all"]

    def _norms(self, rows: Array) -> list[float]:
        """Of the rows of each gate, if there are gates, and of all rows."""
        gates = self._by_gate(rows) if self._network.gates else []
        return [*gates, norm(rows)]

    def _parts(self, s: Array) -> list[float]:
        """The norms of `h`, or of `h` and `c`, of the layer that is explained."""
        part = self._network.part
        layer = self._example.layer
        return [norm(s[part(layer, name)]) for name in self._network.parts]

    def _by_gate(self, rows: Array) -> list[float]:
        """The norms of the rows of each gate."""
        return [norm(block) for block in np.split(rows, self._network.cell.gates)]

    def _row_name(self, at: int) -> str:
        gate, unit = divmod(at, self._network.hidden)
        return f"{self._network.gates[gate : gate + 1]}[{unit}]"

    def _column_name(self, name: str, at: int) -> str:
        is_word = self._network.embedding is None and self._example.layer == 1
        return self._network.words[at] if name == "x" and is_word else f"{name}[{at}]"


def _style(name: str) -> str:
    return "bold" if name == "sum" else ""


def _largest(matrix: Array) -> list[tuple[int, int]]:
    """The places of the entries that are largest, in either sign."""
    sizes = np.abs(matrix).ravel()
    count = min(COLUMNS, sizes.size)
    found = np.argpartition(-sizes, count - 1)[:count].tolist()
    ordered = sorted(found, key=lambda at: (-sizes[at], at))
    return [divmod(at, matrix.shape[1]) for at in ordered]
