"""What each subcommand takes: names, defaults and help; read without PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

# The help says in words what a default that depends on other options will be.
_Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
_Real = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
_YesNo = Annotated[bool | None, arg(help_behavior_hint="")]
_Flag = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]
_Run = Annotated[Positional[Path], arg(metavar="RUN")]


@dataclass(frozen=True)
class Train:
    """Train a recurrent language model on a text, by default for two minutes.

    Example: bptt train book.txt --cell gru --layers 2 --dropout 0.2 --epochs 10
    """

    text: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="[TEXT ...]", help_behavior_hint="")
    ] = ()
    """UTF-8 text files; without any, the English reference that ships with Python."""
    out: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """Folder of the run; if not given, runs/<name of the text>-<cell>."""
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    """Recurrent cell; rnn is the tutorial's, with tanh."""
    hidden: _Number = None
    """Units a layer (default: 512, or 100 with --optimizer sgd)."""
    layers: int = 1
    """Recurrent layers."""
    embedding: _Number = None
    """Width of the embedding, 0 for one-hot (default: 0, or as --hidden for words and
    BPE with adamw)."""
    tied: _YesNo = None
    """Softmax uses the embedding's weights (default: for words and BPE with adamw)."""
    bias: _YesNo = None
    """Biases in recurrence and softmax (default: True, or False with --optimizer
    sgd)."""
    dropout: float = 0.0
    """Probability of dropping a unit of the embedding and of each layer's outputs."""
    level: Literal["char", "word", "bpe"] = "char"
    """What a token is."""
    vocab: _Number = None
    """Tokens at most (default: all characters, 8000 words, 2048 BPE pieces)."""
    unit: Literal["stream", "sentence"] = "stream"
    """Train on the text as parallel streams, the state carried on, or on sentences,
    the state reset."""
    one_a_line: _Flag = False
    """With --unit sentence: each line is a sentence."""
    valid: Annotated[Path | None, arg(metavar="TEXT", help_behavior_hint="")] = None
    """Text to validate on (default: the last tenth of TEXT)."""
    window: int = 64
    """Steps between two updates; with --unit sentence, a sentence is the window."""
    k1: _Number = None
    """Outputs whose errors go back together (default: --window)."""
    k2: Annotated[str | None, arg(metavar="N|full|auto", help_behavior_hint="")] = None
    """Steps that they go back, across windows too (default: --window); auto measures
    during the run how many are needed."""
    tolerance: _Real = None
    """With --k2 auto: the gradient's bias to keep to (default: 0.05)."""
    k2_max: _Number = None
    """With --k2 auto: the largest choice (default: four windows)."""
    choose_every: _Number = None
    """With --k2 auto: updates between choices (default: so many that they take some
    3 % of the time)."""
    bptt_truncate: _Number = None
    """The tutorial's truncation, the same as --k1 1 --k2 N+1."""
    batch: _Number = None
    """Streams or sentences an update (default: 32, or 1 with --optimizer sgd)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw with warm-up and cosine, or sgd, which halves its rate when the validation
    loss rises: the tutorial's recipe."""
    lr: _Real = None
    """Largest learning rate (default: 0.006, or 0.005 with --optimizer sgd)."""
    clip: _Real = None
    """Largest norm of the gradient, 0 for none (default: 1, or 0 with --optimizer
    sgd)."""
    weight_decay: float = 0.01
    """Of adamw, on matrices."""
    epochs: _Number = None
    """Length of the run in passes over the text."""
    steps: _Number = None
    """Length of the run in updates."""
    minutes: _Real = None
    """Length of the run in minutes (default: 2, if no length is given)."""
    seed: int = 0
    """Of weights, batches and dropout."""
    device: str = "cpu"
    """Where to train, such as cpu or cuda."""
    snapshot_every: _Number = None
    """Steps between snapshots (default: ten in a run)."""
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    """Where a loss or gradient is not finite: end the run, leave that update out, or go
    back to the newest snapshot and on with half the learning rate."""
    resume: _Flag = False
    """Go on with the run in --out, given the same options."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on a text: loss, perplexity, bits per token.

    Example: bptt evaluate runs/book-lstm other.txt --json
    """

    run: _Run
    """Folder of a run."""
    text: Annotated[Positional[tuple[Path, ...]], arg(metavar="TEXT [TEXT ...]")]
    """UTF-8 text files."""
    json: _Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Generate:
    """Sample text from a trained model.

    Example: bptt generate runs/book-lstm --prompt "It was" --temperature 0.7
    """

    run: _Run
    """Folder of a run."""
    prompt: str = ""
    """Text to continue."""
    length: int = 500
    """Tokens to add, at most; a sentence ends when the model ends it."""
    temperature: float = 0.8
    """Divides the logits: 0 takes the likeliest token, above 1 surprises."""
    seed: int = 0
    """Of the sampling: the same seed gives the same text."""


@dataclass(frozen=True)
class Explain:
    """Show backpropagation through time on one sentence, number by number.

    The tutorial's worked example, dE_3/dW: how the error of the last word goes back
    through every step, what each step adds to the gradient, and what a truncation
    leaves away.

    Example: bptt explain --sentence "the dog sat down"
    """

    run: Annotated[
        Positional[Path | None], arg(metavar="[RUN]", help_behavior_hint="")
    ] = None
    """Folder of a run; without it, a network of 2 units and 6 words."""
    sentence: Annotated[str | None, arg(metavar="S", help_behavior_hint="")] = None
    """What is read, from 2 to 20 words or tokens (default: "the cat sat down", or what
    the run makes up)."""
    layer: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Layer to explain, from 1, the lowest (default: the last)."""
    json: _Flag = False
    """Print one JSON object, with every vector, and matrices of up to 4096 numbers."""


@dataclass(frozen=True)
class Flow:
    """Tell how far back a trained model's gradient goes, and what truncation costs.

    Example: bptt flow runs/book-lstm book.txt --tolerance 0.1
    """

    run: _Run
    """Folder of a run."""
    text: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="[TEXT ...]", help_behavior_hint="")
    ] = ()
    """UTF-8 text files; without any, the English reference that ships with Python."""
    tolerance: float = 0.05
    """Of the gradient's bias, for which the window is sought."""
    steps: _Number = None
    """Length of the sequences looked at (default: four windows of the training)."""
    rows: int = 8
    """Sequences in a batch."""
    batches: int = 4
    """Batches; more make the intervals smaller."""
    json: _Flag = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Report:
    """Make a page of a run, or of several side by side: one file, read offline.

    Example: bptt report runs/book-lstm runs/book-gru --out both.html
    """

    run: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="RUN [RUN ...]", help_behavior_hint=""),
    ] = ()
    """Folders of runs."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The page (default: report.html in RUN; of several, compare.html here)."""
    text: Annotated[tuple[Path, ...], arg(metavar="TEXT", help_behavior_hint="")] = ()
    """UTF-8 texts to look into the models with (default: what bptt train found on the
    held-out text; else the English reference that ships with Python)."""


@dataclass(frozen=True)
class Check:
    """Check the gradients of every cell and truncation on this machine.

    Example: bptt check --json
    """

    json: _Flag = False
    """Print one JSON object."""


Command = Train | Evaluate | Generate | Flow | Report | Explain | Check
