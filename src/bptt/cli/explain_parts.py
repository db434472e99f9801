"""What the pages of a worked example share: forward, dE/dV, truncations."""

import textwrap
from dataclasses import dataclass

import numpy as np

from bptt.cli.grid import WIDTH, Array, label, number, numbers, percent, word, words
from bptt.cli.sheet import Sheet
from bptt.explain import WorkedExample

UNITS = 3  # of a state that are shown
COLUMNS = 6  # words, inputs or entries that are shown


@dataclass(frozen=True)
class Names:
    """What a page calls things: a gated cell has a gate `o`, and `c` in its state.

    Attributes:
        h: what the softmax reads.
        o: the probabilities.
    """

    h: str
    o: str


def title(sheet: Sheet, example: WorkedExample) -> None:
    """The sentence."""
    network = example.network
    sentence = " ".join(label(network.words[y]) for y in example.reading.y)
    text = f"Backpropagation through time: {sentence}"
    sheet.line(textwrap.fill(text, 80, subsequent_indent="  "), "bold")
    sheet.line()


def sizes(sheet: Sheet, example: WorkedExample, start: str) -> None:
    """Units, words and inputs.

    Args:
        sheet: is written on.
        example: the example.
        start: says what the state is before the first step.
    """
    network = example.network
    units = f"{network.hidden} unit" + "s" * (network.hidden > 1)
    if len(network.layers) > 1:
        units = f"{len(network.layers)} layers of {units}"
    if network.embedding is None:
        inputs = "x_t is one-hot"
    else:
        inputs = f"x_t is an embedding of width {network.embedding.shape[1]}"
    sheet.line(filled(f"{units}, {network.vocab} words; {inputs}, {start}."))
    if network.tied:
        sheet.note("  V and the embedding are one matrix; dE/dV is its part as V.")


def forward(sheet: Sheet, example: WorkedExample, names: Names) -> None:
    """States, guesses, errors."""
    network, shown = example.network, shown_outputs(example)
    h, o = names.h, names.o
    sheet.head("1. Forward: states, guesses, errors")
    width = WIDTH * min(network.hidden, UNITS)
    sheet.note(
        f"  {'t':>2}{word('x_t')}{f'{h}_t':>{width}}{word(f'|{h}_t|')}"
        f"{word('y_t')}{word(f'{o}_t[y_t]')}{word('E_t')}"
    )
    for step in example.steps:
        sheet.line(
            f"  {step.t:2}{word(network.words[step.x])}{numbers(step.h[:UNITS])}"
            f"{number(norm(step.h))}{word(network.words[step.y])}"
            f"{number(step.o[step.y])}{number(step.E)}"
        )
    sheet.line()
    sheet.note(f"  {'t':>2}{words(network.words[y] for y in shown)}   = {o}_t")
    for step in example.steps:
        sheet.line(f"  {step.t:2}{numbers(step.o[shown])}")


def softmax_part(sheet: Sheet, example: WorkedExample, names: Names) -> None:
    """`dE_t/dV`, an outer product."""
    network, t, last = example.network, example.t, example.steps[-1]
    h, o = f"{names.h}_{t}", f"{names.o}_{t}"
    sheet.head(f"2. dE_{t}/dV = ({o} - y_{t}) outer {h}: step {t} alone")
    width = WIDTH * min(network.hidden, UNITS)
    sheet.note(
        f"  {'':{WIDTH}}{word(o)}{word(f'y_{t}')}{word(f'{o}-y_{t}')}"
        f"{f'dE_{t}/dV':>{width}}"
    )
    sheet.line(f"  {h:{WIDTH}}{'':{3 * WIDTH}}{numbers(last.h[:UNITS])}")
    for y in shown_outputs(example):
        is_y = 1.0 if y == last.y else 0.0
        sheet.line(
            f"  {word(network.words[y], left=True)}{number(last.o[y])}{number(is_y)}"
            f"{number(example.dlogits[y])}{numbers(example.dV[y][:UNITS])}"
        )
    sheet.line(
        f"  Norm {plain(example.dV)}, the engine's {plain(example.engine.V)}; "
        f"largest difference {gap(example.differences.dV)}"
    )


def truncations(sheet: Sheet, example: WorkedExample) -> None:
    """What `bptt_truncate = n` leaves away."""
    t = example.t
    sheet.head(f"6. What bptt_truncate = n leaves away of the gradient of E_{t}")
    sheet.note(f"  {'':24}{'W':>18}{'U':>18}")
    sheet.note(f"  {'n':>2}   {'steps kept':19}" + f"{word('norm')}{word('share')}" * 2)
    for cut in example.truncated:
        kept = f"{t}" if len(cut.kept) == 1 else f"{t} to {cut.kept[-1]}"
        sheet.line(
            f"  {cut.n:2}   {kept:19}{number(cut.left_W)}{percent(cut.bias_W)}"
            f"{number(cut.left_U)}{percent(cut.bias_U)}"
        )


def unshared_head(sheet: Sheet, example: WorkedExample) -> None:
    """What separate W_k are."""
    t = example.t
    sheet.head("7. Ordinary backpropagation: a W_k of its own for each step")
    sheet.note(
        "  The network unrolled into layers that share nothing, differentiated by\n"
        f"  autograd: dE_{t}/dW_k is term k, and only sharing W makes them a sum."
    )


def difference(sheet: Sheet, value: float) -> None:
    """To the engine's gradient."""
    sheet.line(f"  Largest difference to the engine's: {gap(value)}")


def shown_outputs(example: WorkedExample) -> list[int]:
    """Rows of V: all, or the word that comes and the likeliest guesses."""
    if example.network.vocab <= COLUMNS:
        return list(range(example.network.vocab))
    last = example.steps[-1]
    likeliest = np.argsort(-last.o, kind="stable")[:COLUMNS].tolist()
    return list(dict.fromkeys([last.y, *likeliest]))[:COLUMNS]


def filled(text: str) -> str:
    """Within 80 columns."""
    return textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="  ")


def norm(array: Array) -> float:
    """The root of the sum of all squares."""
    return float(np.linalg.norm(array))


def plain(array: Array) -> str:
    """A norm within a line of text."""
    return number(norm(array)).strip()


def gap(value: float) -> str:
    """A difference that is rounding."""
    return f"{value:.1e}" if value else "0"
