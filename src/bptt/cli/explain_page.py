"""The worked example of the tutorial's network, one tanh layer, with its matrices."""

from typing import final

import numpy as np

from bptt.cli import explain_parts as parts
from bptt.cli.explain_parts import COLUMNS, UNITS, norm
from bptt.cli.grid import WIDTH, Array, number, numbers, word, words
from bptt.cli.sheet import Sheet
from bptt.explain import Term, WorkedExample

_NAMES = parts.Names(h="s", o="o")


@final
class Page:
    """Prints a worked example for a terminal of 80 columns, part by part."""

    def __init__(self, sheet: Sheet, example: WorkedExample) -> None:
        self._sheet = sheet
        self._example = example
        self._network = example.network
        self._t = example.t
        self._units = min(self._network.hidden, UNITS)
        self._inputs = _shown_inputs(example)

    def print(self) -> None:
        """All of it."""
        self._print_network()
        parts.forward(self._sheet, self._example, _NAMES)
        parts.softmax_part(self._sheet, self._example, _NAMES)
        self._print_deltas()
        self._print_recurrent_part()
        self._print_input_part()
        parts.truncations(self._sheet, self._example)
        self._print_unshared()

    def _row(self, values: Array) -> str:
        """The first units of a vector."""
        return numbers(values[: self._units])

    def _print_network(self) -> None:
        network, example, line = self._network, self._example, self._sheet.line
        (layer,) = network.layers
        shown = parts.shown_outputs(example)
        with_bias = network.has_biases
        parts.title(self._sheet, example)
        line(f"  s_t = tanh(U x_t + W s_{{t-1}}{' + b' if with_bias else ''})")
        line(f"  o_t = softmax(V s_t{' + c' if with_bias else ''})")
        line("  E_t = -log o_t[y_t]")
        line()
        parts.sizes(self._sheet, example, "s_{-1} = 0")
        if self._is_cut(shown):
            self._sheet.note(
                f"  Shown are the first {self._units} units and some of the words or "
                "inputs; norms are of all."
            )
        line()
        self._matrix("U", layer.U.numpy()[:, self._inputs], self._input_names)
        self._matrix("W", layer.W.numpy(), [""] * self._units)
        for at, (y, row) in enumerate(
            zip(shown, network.V.numpy()[shown], strict=True)
        ):
            name = "V" if at == 0 else ""
            line(f"  {name:3}{word(network.words[y], left=True)}{self._row(row)}")

    def _is_cut(self, shown: list[int]) -> bool:
        network = self._network
        return (
            self._units < network.hidden
            or len(self._inputs) < network.layers[0].U.shape[1]
            or len(shown) < network.vocab
        )

    @property
    def _input_names(self) -> list[str]:
        if self._network.embedding is not None:
            return [f"x[{at}]" for at in self._inputs]
        return [self._network.words[at] for at in self._inputs]

    def _matrix(self, name: str, matrix: Array, columns: list[str]) -> None:
        """Its first rows, under names of its columns."""
        if any(columns):
            self._sheet.line(f"  {'':3}{words(columns)}")
        for at, row in enumerate(matrix[: self._units]):
            shown = numbers(row[: len(columns)])
            self._sheet.line(f"  {name if at == 0 else '':3}{shown}")
        self._sheet.line()

    def _print_deltas(self) -> None:
        example, t = self._example, self._t
        self._sheet.head(
            "3. Back: the delta vectors and the Jacobians between the states"
        )
        bias = " + b" if self._network.has_biases else ""
        self._sheet.note(
            f"  delta_k^({t}) = dE_{t}/dz_k, with z_k = U x_k + W s_{{k-1}}{bias}"
        )
        for term in example.terms:
            k = term.k
            above = f"W^T delta_{k + 1}^({t})" if k < t else f"V^T (o_{t} - y_{t})"
            self._sheet.line(f"  delta_{k}^({t}) = {above} * (1 - s_{k}^2)")
            self._sheet.line(
                f"  {'':8}= {self._row(term.delta)}   norm {parts.plain(term.delta)}"
            )
        self._sheet.line()
        self._sheet.note(
            "  ds_j/ds_{j-1} = diag(1 - s_j^2) W; the error at s_k has come through "
            f"their\n  product, ds_{t}/ds_k. The 2-norm is the most that it lengthens "
            "a vector."
        )
        for term in example.terms:
            if term.jacobian is not None:
                self._print_jacobians(term, term.jacobian)
        self._sheet.line(
            f"  Largest difference of a dE_{t}/ds_k to that by the product: "
            f"{parts.gap(example.differences.products)}"
        )

    def _print_jacobians(self, term: Term, jacobian: Array) -> None:
        """One Jacobian, and beside it the product so far."""
        k, width = term.k, max(WIDTH * self._units, 2 * WIDTH)
        self._sheet.note(
            f"  {f'ds_{k + 1}/ds_{k}':>{width}}      {f'ds_{self._t}/ds_{k}':>{width}}"
        )
        for at in range(self._units):
            one, all_of_them = self._row(jacobian[at]), self._row(term.product[at])
            self._sheet.line(f"  {one:>{width}}      {all_of_them:>{width}}")
        name = f"{'2-norm':>{width - WIDTH}}"
        one, all_of_them = number(term.stretch_of_step or 0.0), number(term.stretch)
        self._sheet.line(f"  {name}{one}      {name}{all_of_them}")

    def _print_recurrent_part(self) -> None:
        example, t = self._example, self._t
        self._sheet.head(f"4. dE_{t}/dW = sum over k of delta_k^({t}) outer s_{{k-1}}")
        self._sheet.note(
            f"  Term k is dE_{t}/do_{t} do_{t}/ds_{t} ds_{t}/ds_k ds_k/dW, its last "
            "factor step k's\n  own use of W."
        )
        units = WIDTH * self._units
        self._sheet.note(
            f"  {'k':>2}{word('delta_k')}{'s_{k-1}':>{units}}"
            f"{'term':>{units}}{word('norm')}"
        )
        for term in example.terms:
            for at in range(self._units):
                first = at == 0
                before = self._row(term.h_before) if first else " " * units
                size = number(norm(term.dW)) if first else ""
                self._sheet.line(
                    f"  {term.k if first else '':2}{number(term.delta[at])}{before}"
                    f"{self._row(term.dW[at])}{size}"
                )
        indent = f"{'':{2 + WIDTH + units}}"
        self._sum("sum", indent, example.dW)
        self._sum("engine", indent, example.engine.W)
        parts.difference(self._sheet, example.differences.dW)
        self._sheet.note("  Step 0 adds nothing to W: the state before it is 0.")

    def _print_input_part(self) -> None:
        example, t = self._example, self._t
        self._sheet.head(f"5. dE_{t}/dU = sum over k of delta_k^({t}) outer x_k")
        names = words(self._input_names)
        self._sheet.note(f"  {'k':>2}{word('delta_k')}{names}{word('norm')}")
        for term in example.terms:
            self._input_term(term)
        indent = f"{'':{2 + WIDTH}}"
        self._sum("sum", indent, example.dU, self._inputs)
        self._sum("engine", indent, example.engine.U, self._inputs)
        parts.difference(self._sheet, example.differences.dU)

    def _input_term(self, term: Term) -> None:
        size = number(norm(term.delta) * norm(term.x))
        for at in range(self._units):
            first = at == 0
            entries = numbers(term.delta[at] * term.x[self._inputs])
            self._sheet.line(
                f"  {term.k if first else '':2}{number(term.delta[at])}"
                f"{entries}{size if first else ''}"
            )

    def _sum(
        self, name: str, indent: str, matrix: Array, columns: list[int] | None = None
    ) -> None:
        shown = matrix if columns is None else matrix[:, columns]
        for at, row in enumerate(shown[: self._units]):
            first = at == 0
            start = f"{name if first else '':{len(indent)}}"
            values = self._row(row) if columns is None else numbers(row)
            size = number(norm(matrix)) if first else ""
            self._sheet.line(
                f"  {start}{values}{size}", "bold" if name == "sum" else ""
            )

    def _print_unshared(self) -> None:
        example, t = self._example, self._t
        parts.unshared_head(self._sheet, example)
        units = WIDTH * self._units
        self._sheet.note(
            f"  {'k':>2}{f'dE_{t}/dW_k':>{units}}{word('norm')}  |term k - it|"
        )
        for term, dW in zip(example.terms, example.unshared, strict=True):
            for at in range(self._units):
                first = at == 0
                difference = float(np.abs(term.dW - dW).max())
                more = f"{number(norm(dW))}{parts.gap(difference):>15}" if first else ""
                self._sheet.line(
                    f"  {term.k if first else '':2}{self._row(dW[at])}{more}"
                )
        total = example.sum_of_unshared
        for at in range(self._units):
            first = at == 0
            size = number(norm(total)) if first else ""
            self._sheet.line(
                f"  {'=' if first else '':>2}{self._row(total[at])}{size}", "bold"
            )
        parts.difference(self._sheet, example.differences.unshared_sum)


def _shown_inputs(example: WorkedExample) -> list[int]:
    """Columns of U: all, or those of the words that are read, or the first."""
    network = example.network
    if network.layers[0].U.shape[1] <= COLUMNS:
        return list(range(network.layers[0].U.shape[1]))
    if network.embedding is not None:
        return list(range(COLUMNS))
    return list(dict.fromkeys(example.reading.x))[-COLUMNS:]
