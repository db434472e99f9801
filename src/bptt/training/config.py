"""What a run is: the options, with defaults that depend on each other resolved."""

from typing import Annotated, Literal

import msgspec

from bptt.language_model import CellName, ModelConfig, Unit
from bptt.text import Level
from bptt.training import window_plan
from bptt.training.nonfinite import OnNonfinite
from bptt.truncation import Truncation

OptimizerName = Literal["adamw", "sgd"]

# In a config file; what the command line is given is checked by `check`.
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the user asked for; None stands for a default that `resolve` fills in."""

    cell: CellName = "lstm"
    hidden: int | None = None
    layers: int = 1
    embedding: int | None = None
    tied: bool | None = None
    bias: bool | None = None
    dropout: float = 0.0
    level: Level = "char"
    vocab: int | None = None
    unit: Unit = "stream"
    one_a_line: bool = False
    window: int = 64
    k1: int | None = None
    k2: int | Literal["full", "auto"] | None = None
    tolerance: float | None = None
    k2_max: int | None = None
    choose_every: int | None = None
    bptt_truncate: int | None = None
    batch: int | None = None
    optimizer: OptimizerName = "adamw"
    lr: float | None = None
    clip: float | None = None
    weight_decay: float = 0.01
    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "cpu"
    snapshot_every: int | None = None
    on_nonfinite: OnNonfinite = "raise"


class TrainingConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """A run's training, with every default filled in; kept in `config.json`.

    Attributes:
        level: what a token is.
        vocab: token ids at most, None for the level's default.
        window: steps between two updates; None where a sentence is the window.
        k1: outputs per pass of the truncation; None for full BPTT over the window.
        k2: steps per pass; "auto" where they are chosen during the run.
        tolerance: with "auto", the bias of the gradient that a choice keeps to.
        k2_max: the largest choice.
        choose_every: updates from one choice to the next.
        on_nonfinite: what a loss or gradient does that is not finite.
        batch: streams, or sentences a step.
        optimizer: "adamw" (Loshchilov & Hutter, 2019) with warm-up and a cosine, or
            "sgd", plain, halving its rate when the validation loss rises.
        lr: the largest learning rate.
        clip: largest norm of the gradient; 0 for none.
        weight_decay: of adamw, on matrices.
        epochs: passes over the text, or None.
        steps: updates, or None.
        minutes: of training, or None; exactly one of the three is given.
        seed: of weights, batches and dropout.
        device: where to train.
        snapshot_every: steps between snapshots, 0 for none on the way.
    """

    level: Level
    vocab: _Count | None
    window: _Count | None
    k1: _Count | None
    k2: _Count | Literal["auto"] | None
    batch: _Count
    optimizer: OptimizerName
    lr: _Positive
    clip: _NotNegative
    weight_decay: _NotNegative
    epochs: _Count | None
    steps: _Count | None
    minutes: _Positive | None
    seed: int
    device: str
    snapshot_every: Annotated[int, msgspec.Meta(ge=0)]
    tolerance: _Positive | None = None
    k2_max: _Count | None = None
    choose_every: _Count | None = None
    on_nonfinite: OnNonfinite = "raise"

    def __post_init__(self) -> None:
        if (self.k1 is None) != (self.k2 is None):
            raise ValueError(f"k1 is {self.k1} and k2 is {self.k2}: give both or none")
        for name in ("window", "tolerance", "k2_max", "choose_every"):
            if self.k2 == "auto" and getattr(self, name) is None:
                raise ValueError(f"k2 is auto, and {name} is missing")
        if [self.epochs, self.steps, self.minutes].count(None) != 2:
            raise ValueError("one of epochs, steps and minutes must be given")

    @property
    def first_k2(self) -> int | None:
        """What the run begins with: where it is chosen, passes without a context."""
        return self.k1 if self.k2 == "auto" else self.k2

    @property
    def search(self) -> window_plan.Search | None:
        """How k2 is chosen; None where it is given."""
        if self.k2 != "auto":
            return None
        assert self.k1 is not None
        assert self.k2_max is not None
        assert self.tolerance is not None
        assert self.choose_every is not None
        return window_plan.Search(
            self.k1, self.k2_max, self.tolerance, self.choose_every
        )

    def truncation(self, k2: int | None) -> Truncation:
        """The truncation of the segment that an update with this k2 runs over.

        Where the window is a single chunk, the segment begins where its pass ends, so
        nothing inside the segment is cut.
        """
        if self.k1 is None or k2 is None:
            return Truncation.full()
        if self.k1 == self.window and k2 >= self.k1:
            return Truncation.full()
        return Truncation(self.k1, k2)

    def context(self, k2: int | None) -> int:
        """Steps before the window that run again, so that passes can reach into them.

        The earliest pass of a window visits `k2` steps, of which `k1` lie inside.
        """
        if self.window is None or self.k1 is None or k2 is None:
            return 0
        reach = max(0, k2 - self.k1)
        if self.k1 == self.window:
            return reach
        # Whole chunks, so that one of them begins where the window does.
        return -(-reach // self.k1) * self.k1


# Each optimiser is a recipe: "sgd" is the tutorial's, with its network's size.
_RECIPES = {
    "adamw": {"hidden": 512, "bias": True, "lr": 6e-3, "clip": 1.0, "batch": 32},
    "sgd": {"hidden": 100, "bias": False, "lr": 0.005, "clip": 0.0, "batch": 1},
}


def resolve(options: Options, vocab: int) -> tuple[ModelConfig, TrainingConfig]:
    """Fill in the defaults, once the tokenizer's size `vocab` is known.

    Raises:
        ValueError: an option is out of range or contradicts another one.
    """
    check(options)

    def given_or_recipe(name: str) -> float:
        return _given_or_recipe(options, name)

    hidden = int(given_or_recipe("hidden"))
    tied, embedding = _embedding(options, hidden)
    model = ModelConfig(
        vocab=vocab,
        cell=options.cell,
        hidden=hidden,
        layers=options.layers,
        embedding=embedding,
        tied=tied,
        bias=bool(given_or_recipe("bias")),
        dropout=options.dropout,
        unit=options.unit,
        one_a_line=options.one_a_line,
    )
    k1, k2 = _passes(options)
    batch = int(given_or_recipe("batch"))
    search = _search(options, k1, batch) if k2 == "auto" else None
    lengths = (options.epochs, options.steps, options.minutes)
    training = TrainingConfig(
        level=options.level,
        vocab=options.vocab,
        window=options.window if options.unit == "stream" else None,
        k1=k1,
        k2=k2,
        batch=batch,
        optimizer=options.optimizer,
        lr=given_or_recipe("lr"),
        clip=given_or_recipe("clip"),
        weight_decay=options.weight_decay,
        epochs=options.epochs,
        steps=options.steps,
        minutes=2.0 if lengths == (None, None, None) else options.minutes,
        seed=options.seed,
        device=options.device,
        snapshot_every=options.snapshot_every or 0,
        tolerance=search.tolerance if search else None,
        k2_max=search.k2_max if search else None,
        choose_every=search.every if search else None,
        on_nonfinite=options.on_nonfinite,
    )
    return model, training


def check(options: Options) -> None:
    """Refuse what can be refused before any text is read.

    Raises:
        ValueError: an option is out of range or contradicts another one.
    """
    at_least_one = ("hidden", "layers", "vocab", "window", "k1", "k2", "k2_max")
    lengths_too = ("choose_every", "batch", "epochs", "steps", "snapshot_every")
    for name in (*at_least_one, *lengths_too):
        value = getattr(options, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{_flag(name)} must be at least 1; got {value}")
    for name in ("bptt_truncate", "embedding", "seed", "clip", "weight_decay"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < 2**63:
            raise ValueError(f"--{_flag(name)} must be at least 0; got {value}")
    for name in ("lr", "minutes", "tolerance"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be above 0; got {value}")
    if not 0 <= options.dropout < 1:
        raise ValueError(
            f"--dropout must be at least 0 and below 1; got {options.dropout}"
        )
    lengths = {"epochs": options.epochs, "steps": options.steps}
    lengths_given = [
        f"--{name}"
        for name, value in (*lengths.items(), ("minutes", options.minutes))
        if value is not None
    ]
    if len(lengths_given) > 1:
        raise ValueError(f"give one of {' and '.join(lengths_given)}, not both")
    if options.bptt_truncate is not None and (options.k1 or options.k2):
        raise ValueError(
            "--bptt-truncate N is --k1 1 --k2 N+1; give it or --k1 and --k2, not both"
        )
    stream = options.unit == "stream"
    if stream and options.k1 is not None and options.k1 > options.window:
        raise ValueError(
            f"--k1 must be at most --window = {options.window}, the steps between two "
            f"updates; got {options.k1}"
        )
    _check_search(options)
    k1, k2 = _passes(options)
    reaches = k2 == "auto" or (k1 is not None and k2 is not None and k2 > k1)
    if stream and k1 and reaches and options.window % k1:
        raise ValueError(
            f"--window must be a multiple of --k1 = {k1} where --k2 = {k2} reaches "
            f"across windows; got {options.window}, try "
            f"{max(1, options.window // k1) * k1}"
        )
    if options.one_a_line and stream:
        raise ValueError("--one-a-line is for --unit sentence; --unit is stream")
    hidden = int(_given_or_recipe(options, "hidden"))
    tied, embedding = _embedding(options, hidden)
    if tied and embedding != hidden:
        raise ValueError(
            f"--tied needs --embedding as wide as --hidden = {hidden}; got {embedding}"
        )


def _given_or_recipe(options: Options, name: str) -> float:
    value = getattr(options, name)
    return _RECIPES[options.optimizer][name] if value is None else value


def _check_search(options: Options) -> None:
    """What goes with `--k2 auto`, and with it alone."""
    if options.k2 != "auto":
        for name in ("tolerance", "k2_max", "choose_every"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{_flag(name)} is for --k2 auto; give that, too")
        return
    if options.unit == "sentence":
        raise ValueError(
            "--k2 auto is for --unit stream, where windows cut the text; a sentence is "
            "its own window, and without --k2 its gradient is whole"
        )
    k1, k2_max = options.k1 or options.window, options.k2_max
    if k2_max is not None and k2_max % k1:
        raise ValueError(
            f"--k2-max must be a multiple of --k1 = {k1}, the outputs of a pass; got "
            f"{k2_max}, try {-(-k2_max // k1) * k1}"
        )


def _search(options: Options, k1: int | None, batch: int) -> window_plan.Search:
    """How k2 is chosen, with every default."""
    assert k1 is not None
    k2_max = options.k2_max or window_plan.WINDOWS * options.window
    return window_plan.Search(
        k1,
        k2_max,
        options.tolerance or window_plan.TOLERANCE,
        options.choose_every
        or window_plan.updates_between(k1, k2_max, batch * options.window),
    )


def _passes(options: Options) -> tuple[int | None, int | Literal["auto"] | None]:
    """k1 and k2, or None twice for full BPTT over the window or sentence."""
    if options.bptt_truncate is not None:
        return 1, options.bptt_truncate + 1
    if options.k2 == "full" or (options.k1 is None and options.k2 is None):
        return None, None
    if options.k2 == "auto":
        return options.k1 or options.window, "auto"
    if options.unit == "sentence":
        # A sentence has no fixed length: an option that is not given cuts nothing.
        if options.k1 is None:
            raise ValueError("--k2 with --unit sentence needs --k1; try --k1 1")
        return options.k1, options.k2 or options.k1
    return options.k1 or options.window, options.k2 or options.window


def _embedding(options: Options, hidden: int) -> tuple[bool, int]:
    """Words and pieces get a tied embedding, characters and the tutorial one-hot."""
    by_default = options.level != "char" and options.optimizer == "adamw"
    if options.embedding is None:
        tied = by_default if options.tied is None else options.tied
        return tied, hidden if by_default or tied else 0
    if options.tied is None:
        return by_default and options.embedding == hidden, options.embedding
    return options.tied, options.embedding


def _flag(name: str) -> str:
    return name.replace("_", "-")
