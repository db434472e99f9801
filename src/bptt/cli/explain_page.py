"""The worked example for a terminal of 80 columns, plain where there is none."""

import os
import sys
import textwrap
from typing import final

import numpy as np
from rich.console import Console
from rich.text import Text

from bptt.cli.grid import WIDTH, Array, label, number, numbers, percent, word, words
from bptt.explain import Term, WorkedExample

_UNITS = 3  # of a state that are shown
_COLUMNS = 6  # words or inputs that are shown
_GAP = " " * WIDTH


@final
class Page:
    """Prints a worked example on stdout, part by part."""

    def __init__(self, example: WorkedExample) -> None:
        self._example = example
        self._network = example.network
        self._t = example.t
        self._units = min(self._network.hidden, _UNITS)
        self._inputs = _shown_inputs(example)
        self._outputs = _shown_outputs(example)
        color = None if "NO_COLOR" in os.environ else "auto"
        self._console = Console(
            file=sys.stdout,
            color_system=color,  # type: ignore[arg-type]
            highlight=False,
            soft_wrap=True,
        )

    def print(self) -> None:
        """All of it."""
        self._print_network()
        self._print_forward()
        self._print_softmax_part()
        self._print_deltas()
        self._print_recurrent_part()
        self._print_input_part()
        self._print_truncations()
        self._print_unshared()

    def _line(self, text: str = "", style: str = "") -> None:
        # Never as markup: a word may hold brackets.
        self._console.print(Text(text.rstrip(), style=style))

    def _head(self, text: str) -> None:
        self._line()
        self._line(text, "bold")

    def _note(self, text: str) -> None:
        self._line(text, "dim")

    def _row(self, values: Array) -> str:
        """The first units of a vector."""
        return numbers(values[: self._units])

    def _print_network(self) -> None:
        network = self._network
        sentence = " ".join(label(network.words[y]) for y in self._example.reading.y)
        with_bias = network.has_biases
        title = f"Backpropagation through time: {sentence}"
        self._line(textwrap.fill(title, 80, subsequent_indent="  "), "bold")
        self._line()
        self._line(f"  s_t = tanh(U x_t + W s_{{t-1}}{' + b' if with_bias else ''})")
        self._line(f"  o_t = softmax(V s_t{' + c' if with_bias else ''})")
        self._line("  E_t = -log o_t[y_t]")
        self._line()
        units = f"{network.hidden} unit" + "s" * (network.hidden > 1)
        if network.embedding is None:
            inputs = "x_t is one-hot"
        else:
            inputs = f"x_t is an embedding of width {network.U.shape[1]}"
        self._line(f"  {units}, {network.vocab} words; {inputs}, s_{{-1}} = 0.")
        if network.tied:
            self._note("  V and the embedding are one matrix; dE/dV is its part as V.")
        if self._is_cut:
            self._note(
                f"  Shown are the first {self._units} units and some of the words or "
                "inputs; norms are of all."
            )
        self._line()
        self._matrix("U", network.U[:, self._inputs], self._input_names)
        self._matrix("W", network.W, [""] * self._units)
        V = network.V[self._outputs]
        for at, y in enumerate(self._outputs):
            name = "V" if at == 0 else ""
            self._line(
                f"  {name:3}{word(network.words[y], left=True)}{self._row(V[at])}"
            )

    @property
    def _is_cut(self) -> bool:
        network = self._network
        return (
            self._units < network.hidden
            or len(self._inputs) < network.U.shape[1]
            or len(self._outputs) < network.vocab
        )

    @property
    def _input_names(self) -> list[str]:
        if self._network.embedding is not None:
            return [f"x[{at}]" for at in self._inputs]
        return [self._network.words[at] for at in self._inputs]

    def _matrix(self, name: str, matrix: Array, columns: list[str]) -> None:
        """Its first rows, under names of its columns."""
        if any(columns):
            self._line(f"  {'':3}{words(columns)}")
        for at, row in enumerate(matrix[: self._units]):
            shown = numbers(row[: len(columns)])
            self._line(f"  {name if at == 0 else '':3}{shown}")
        self._line()

    def _print_forward(self) -> None:
        network = self._network
        self._head("1. Forward: states, guesses, errors")
        units = WIDTH * self._units
        self._note(
            f"  {'t':>2}{word('x_t')}{_over('s_t', units)}{word('|s_t|')}"
            f"{word('y_t')}{word('o_t[y_t]')}{word('E_t')}"
        )
        for step in self._example.steps:
            self._line(
                f"  {step.t:2}{word(network.words[step.x])}{self._row(step.s)}"
                f"{number(_norm(step.s))}{word(network.words[step.y])}"
                f"{number(step.o[step.y])}{number(step.E)}"
            )
        self._line()
        names = [network.words[y] for y in self._outputs]
        self._note(f"  {'t':>2}{words(names)}   = o_t")
        for step in self._example.steps:
            self._line(f"  {step.t:2}{numbers(step.o[self._outputs])}")

    def _print_softmax_part(self) -> None:
        example, t, network = self._example, self._t, self._network
        self._head(f"2. dE_{t}/dV = (o_{t} - y_{t}) outer s_{t}: step {t} alone")
        last = example.steps[-1]
        units = WIDTH * self._units
        self._note(
            f"  {'':{WIDTH}}{word(f'o_{t}')}{word(f'y_{t}')}{word(f'o_{t}-y_{t}')}"
            f"{_over(f'dE_{t}/dV', units)}"
        )
        self._line(f"  {f's_{t}':{WIDTH}}{_GAP * 3}{self._row(last.s)}")
        for y in self._outputs:
            is_y = 1.0 if y == last.y else 0.0
            self._line(
                f"  {word(network.words[y], left=True)}{number(last.o[y])}"
                f"{number(is_y)}{number(example.dlogits[y])}{self._row(example.dV[y])}"
            )
        self._against_engine(example.dV, example.engine.V, example.differences.dV)

    def _print_deltas(self) -> None:
        example, t = self._example, self._t
        self._head("3. Back: the delta vectors and the Jacobians between the states")
        bias = " + b" if self._network.has_biases else ""
        self._note(
            f"  delta_k^({t}) = dE_{t}/dz_k, with z_k = U x_k + W s_{{k-1}}{bias}"
        )
        for term in example.terms:
            k = term.k
            above = f"W^T delta_{k + 1}^({t})" if k < t else f"V^T (o_{t} - y_{t})"
            self._line(f"  delta_{k}^({t}) = {above} * (1 - s_{k}^2)")
            self._line(f"  {'':8}= {self._row(term.delta)}   norm {_plain(term.delta)}")
        self._line()
        self._note(
            "  ds_j/ds_{j-1} = diag(1 - s_j^2) W; the error at s_k has come through "
            f"their\n  product, ds_{t}/ds_k. The 2-norm is the most that it lengthens "
            "a vector."
        )
        for term in example.terms:
            if term.jacobian is not None:
                self._print_jacobians(term, term.jacobian)
        self._line(
            "  Largest difference of a delta to that by the product: "
            f"{_gap(example.differences.products)}"
        )

    def _print_jacobians(self, term: Term, jacobian: Array) -> None:
        """One Jacobian, and beside it the product so far."""
        k, width = term.k, max(WIDTH * self._units, 2 * WIDTH)
        self._note(
            f"  {f'ds_{k + 1}/ds_{k}':>{width}}      {f'ds_{self._t}/ds_{k}':>{width}}"
        )
        for at in range(self._units):
            one, all_of_them = self._row(jacobian[at]), self._row(term.product[at])
            self._line(f"  {one:>{width}}      {all_of_them:>{width}}")
        name = f"{'2-norm':>{width - WIDTH}}"
        one, all_of_them = number(term.stretch_of_step or 0.0), number(term.stretch)
        self._line(f"  {name}{one}      {name}{all_of_them}")

    def _print_recurrent_part(self) -> None:
        example, t = self._example, self._t
        self._head(f"4. dE_{t}/dW = sum over k of delta_k^({t}) outer s_{{k-1}}")
        self._note(
            f"  Term k is dE_{t}/do_{t} do_{t}/ds_{t} ds_{t}/ds_k ds_k/dW, its last "
            "factor step k's\n  own use of W."
        )
        units = WIDTH * self._units
        self._note(
            f"  {'k':>2}{word('delta_k')}{_over('s_{k-1}', units)}"
            f"{_over('term', units)}{word('norm')}"
        )
        for term in example.terms:
            for at in range(self._units):
                first = at == 0
                before = self._row(term.s_before) if first else " " * units
                norm = number(_norm(term.dW)) if first else ""
                self._line(
                    f"  {term.k if first else '':2}{number(term.delta[at])}{before}"
                    f"{self._row(term.dW[at])}{norm}"
                )
        indent = f"{'':{2 + WIDTH + units}}"
        self._sum("sum", indent, example.dW)
        self._sum("engine", indent, example.engine.W)
        self._difference(example.differences.dW)
        self._note("  Step 0 adds nothing to W: the state before it is 0.")

    def _print_input_part(self) -> None:
        example, t = self._example, self._t
        self._head(f"5. dE_{t}/dU = sum over k of delta_k^({t}) outer x_k")
        names = words(self._input_names)
        self._note(f"  {'k':>2}{word('delta_k')}{names}{word('norm')}")
        for term in example.terms:
            self._input_term(term)
        indent = f"{'':{2 + WIDTH}}"
        self._sum("sum", indent, example.dU, self._inputs)
        self._sum("engine", indent, example.engine.U, self._inputs)
        self._difference(example.differences.dU)

    def _input_term(self, term: Term) -> None:
        norm = number(_norm(term.delta) * _norm(term.x))
        for at in range(self._units):
            first = at == 0
            entries = numbers(term.delta[at] * term.x[self._inputs])
            self._line(
                f"  {term.k if first else '':2}{number(term.delta[at])}"
                f"{entries}{norm if first else ''}"
            )

    def _sum(
        self, name: str, indent: str, matrix: Array, columns: list[int] | None = None
    ) -> None:
        shown = matrix if columns is None else matrix[:, columns]
        for at, row in enumerate(shown[: self._units]):
            first = at == 0
            start = f"{name if first else '':{len(indent)}}"
            values = self._row(row) if columns is None else numbers(row)
            norm = number(_norm(matrix)) if first else ""
            self._line(f"  {start}{values}{norm}", "bold" if name == "sum" else "")

    def _print_truncations(self) -> None:
        example, t = self._example, self._t
        self._head(f"6. What bptt_truncate = n leaves away of the gradient of E_{t}")
        self._note(f"  {'':24}{'W':>18}{'U':>18}")
        self._note(
            f"  {'n':>2}   {'steps kept':19}" + f"{word('norm')}{word('share')}" * 2
        )
        for cut in example.truncated:
            kept = f"{t}" if len(cut.kept) == 1 else f"{t} to {cut.kept[-1]}"
            self._line(
                f"  {cut.n:2}   {kept:19}{number(cut.left_W)}{percent(cut.bias_W)}"
                f"{number(cut.left_U)}{percent(cut.bias_U)}"
            )

    def _print_unshared(self) -> None:
        example, t = self._example, self._t
        self._head("7. Ordinary backpropagation: a W_k of its own for each step")
        self._note(
            "  The network unrolled into layers that share nothing, differentiated by\n"
            f"  autograd: dE_{t}/dW_k is term k, and only sharing W makes them a sum."
        )
        units = WIDTH * self._units
        self._note(
            f"  {'k':>2}{_over(f'dE_{t}/dW_k', units)}{word('norm')}  |term k - it|"
        )
        for term, dW in zip(example.terms, example.unshared, strict=True):
            for at in range(self._units):
                first = at == 0
                difference = float(np.abs(term.dW - dW).max())
                more = f"{number(_norm(dW))}{_gap(difference):>15}" if first else ""
                self._line(f"  {term.k if first else '':2}{self._row(dW[at])}{more}")
        total = example.sum_of_unshared
        for at in range(self._units):
            first = at == 0
            norm = number(_norm(total)) if first else ""
            self._line(
                f"  {'=' if first else '':>2}{self._row(total[at])}{norm}", "bold"
            )
        self._difference(example.differences.unshared_sum)

    def _against_engine(self, mine: Array, engine: Array, difference: float) -> None:
        self._line(
            f"  Norm {_plain(mine)}, the engine's {_plain(engine)}; "
            f"largest difference {_gap(difference)}"
        )

    def _difference(self, difference: float) -> None:
        self._line(f"  Largest difference to the engine's: {_gap(difference)}")


def _shown_inputs(example: WorkedExample) -> list[int]:
    """Columns of U: all, or those of the words that are read, or the first."""
    network = example.network
    if network.U.shape[1] <= _COLUMNS:
        return list(range(network.U.shape[1]))
    if network.embedding is not None:
        return list(range(_COLUMNS))
    return list(dict.fromkeys(example.reading.x))[-_COLUMNS:]


def _shown_outputs(example: WorkedExample) -> list[int]:
    """Rows of V: all, or the word that comes and the likeliest guesses."""
    if example.network.vocab <= _COLUMNS:
        return list(range(example.network.vocab))
    last = example.steps[-1]
    likeliest = np.argsort(-last.o, kind="stable")[:_COLUMNS].tolist()
    return list(dict.fromkeys([last.y, *likeliest]))[:_COLUMNS]


def _over(text: str, width: int) -> str:
    """A heading above some columns, at their end."""
    return f"{text:>{width}}"


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array))


def _plain(array: Array) -> str:
    return number(_norm(array)).strip()


def _gap(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"
