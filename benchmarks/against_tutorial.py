"""How much faster than the tutorial's loop is the same gradient for a batch?

    python benchmarks/against_tutorial.py [--quick] [--json RESULT] [--rounds N]
        [--sentences 32] [--words 32]

The tutorial's network, 256 words one-hot and 256 units, its weights, and its
`bptt_truncate=4`. On one side `bptt.tutorial.RNN.bptt` for each sentence, float64 in
NumPy, forward and backward. On the other `bptt.RNN` under `Truncation.per_output(4)`
over all the sentences as one batch of ids, softmax layer and summed cross-entropy,
forward and backward, float32. The gradients dU, dV and dW are found to agree before
anything is timed; the ratio is that of alternating runs in one process. Each side's
turn lasts two seconds: the threads of NumPy's products stay awake for a tenth of one
after the last product, and share the cores with whatever runs then.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import bptt
import timing
from timing import Figure, Target, alternate, ratios

WORD_DIM = HIDDEN_DIM = 256
BPTT_TRUNCATE = 4
TOLERANCE = 1e-4  # of the largest entry, float32 against float64
LEAST_RATIO = 50.0
LEAST_S = 2.0  # of a turn

Ids = NDArray[np.int64]


def main() -> None:
    """Compare the gradients, then the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="RESULT")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--sentences", type=int, default=32, metavar="N")
    parser.add_argument("--words", type=int, default=32, metavar="N")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    size = (2, arguments.sentences, arguments.words)
    X, Y = np.random.default_rng(0).integers(WORD_DIM, size=size)
    loop = bptt.tutorial.RNN(WORD_DIM, HIDDEN_DIM, BPTT_TRUNCATE)
    batch = Batched(loop)
    differences = compare(tutorial_gradients(loop, X, Y), batch.gradients(X, Y))
    result = {
        "question": "time of the tutorial's gradient relative to that of a batch",
        "sentences": arguments.sentences,
        "words": arguments.words,
        "word_dim": WORD_DIM,
        "hidden_dim": HIDDEN_DIM,
        "bptt_truncate": BPTT_TRUNCATE,
        "rounds": rounds,
        **timing.about(),
        "relative_differences": differences,
    }
    times = alternate(
        {
            "tutorial": lambda: tutorial_gradients(loop, X, Y),
            "bptt": lambda: batch.gradients(X, Y),
        },
        rounds,
        timing.LEAST_S if arguments.quick else LEAST_S,
    )
    ratio = ratios(times["tutorial"], times["bptt"])
    seconds = {name: Figure.of(s) for name, s in times.items()}
    target = Target("tutorial / bptt", LEAST_RATIO, ratio.median)
    for name, figure in seconds.items():
        print(f"{name:<9}{figure.median * 1e3:10.3f} ms a gradient")
    print(f"ratio {ratio}")
    print(target)
    result |= {"seconds": seconds, "ratio": ratio, "targets": [target]}
    timing.write_json(arguments.json, result)


def tutorial_gradients(
    loop: bptt.tutorial.RNN, X: Ids, Y: Ids
) -> list[NDArray[np.float64]]:
    """dU, dV and dW of the summed loss, sentence by sentence."""
    dU, dV, dW = loop.bptt(X[0], Y[0])
    for x, y in zip(X[1:], Y[1:], strict=True):
        for total, part in zip((dU, dV, dW), loop.bptt(x, y), strict=True):
            total += part
    return [dU, dV, dW]


class Batched:
    """The tutorial's network, its weights in float32, over all sentences at once."""

    def __init__(self, loop: bptt.tutorial.RNN) -> None:
        truncation = bptt.Truncation.per_output(BPTT_TRUNCATE)
        self.recurrent = bptt.RNN(
            WORD_DIM, HIDDEN_DIM, bias=False, truncation=truncation
        )
        self.decoder = torch.nn.Linear(HIDDEN_DIM, WORD_DIM, bias=False)
        self.parameters = [  # U, V, W
            self.recurrent.weight_ih_l0,
            self.decoder.weight,
            self.recurrent.weight_hh_l0,
        ]
        with torch.no_grad():
            for parameter, P in zip(
                self.parameters, (loop.U, loop.V, loop.W), strict=True
            ):
                parameter.copy_(torch.from_numpy(P))

    def gradients(self, X: Ids, Y: Ids) -> list[torch.Tensor]:
        """dU, dV and dW of the summed loss; X and Y are (sentences, words)."""
        for parameter in self.parameters:
            parameter.grad = None
        ids, targets = (torch.from_numpy(a).t().contiguous() for a in (X, Y))
        s, _ = self.recurrent(ids)
        logits = self.decoder(s).flatten(0, 1)
        F.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
        return [parameter.grad for parameter in self.parameters]


def compare(
    tutorial: list[NDArray[np.float64]], batch: list[torch.Tensor]
) -> dict[str, float]:
    """The largest difference of each gradient, relative to its largest entry."""
    differences = {
        name: timing.relative_difference(mine, torch.from_numpy(theirs))
        for name, mine, theirs in zip(("dU", "dV", "dW"), batch, tutorial, strict=True)
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise SystemExit(f"{name} differs from the tutorial's by {difference:.1e}")
    return differences


if __name__ == "__main__":
    main()
