"""What a page shows: one tree of numbers and text, embedded as one JSON object.

Whatever the page says or draws is in here, and nothing else is. A number that is not
finite is None.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Float32 numbers, little-endian and row by row, in base64.

    Attributes:
        kind: "triangle", the entries [t, k] with `k <= t`; or "band", the entries
            [t, lag] for `lag < columns`, 0 where the lag reaches before the first step.
        steps: of the sequences that it is about.
        rows: of the table; fewer than `steps` where each holds the largest of several.
        columns: of a band; of a triangle `rows`.
        values: the numbers.
    """

    kind: str
    steps: int
    rows: int
    columns: int
    values: str


@dataclass(frozen=True)
class Cut:
    """What a truncation costs: means over batches.

    Attributes:
        k1: outputs a pass.
        k2: steps a pass.
        bias: `|g_truncated - g_full| / |g_full|`.
        bias_margin: half of its 95 % confidence interval; None for a single batch.
        cosine: of the angle between the two gradients.
        work: multiplications of a training step, full BPTT being 1.
    """

    k1: int
    k2: int
    bias: float
    bias_margin: float | None
    cosine: float
    work: float


@dataclass(frozen=True)
class GrowthData:
    """What becomes of an error on its way back.

    Attributes:
        kind: "vanishing", "stable" or "exploding".
        rate: largest Lyapunov exponent, nats a step.
        margin: half of its 95 % confidence interval, or None.
        half_life: steps in which it halves or doubles; None for neither.
    """

    kind: str
    rate: float
    margin: float | None
    half_life: float | None


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a step's Jacobian, the largest first, mean over rows."""

    step: int
    values: list[float]


@dataclass(frozen=True)
class FlowData:
    """How far back a gradient goes.

    Attributes:
        verdict: in words, a sentence or two an item.
        steps: of a sequence.
        batches: how many were looked at.
        rows: sequences in a batch.
        cut: the truncation that it trains with; None for full BPTT.
        by_lag: norm of what each lag contributes to the gradient.
        by_lag_margin: half of their 95 % confidence intervals; None for one batch.
        biases: at `k2 - 1` the bias of `Truncation(1, k2)`.
        cosines: likewise.
        works: likewise, multiplications of a training step, full BPTT being 1.
        chunks: truncations with `k1 = k2`, by `k2`.
        halves: truncations with `k1 = k2 / 2`, by `k2`.
        window: the smallest `k2` that keeps the bias within 5 %.
        half: the lag up to which half of the gradient comes.
        horizon: that of 95 %.
        growth: None for a single step.
        norms: the norms of dE_t/ds_k, of at most 256 rows.
        band: the same of every step for the first lags; None where `norms` has all.
        spectra: of a few steps; empty where the state is too wide.
    """

    verdict: list[str]
    steps: int
    batches: int
    rows: int
    cut: Cut | None
    by_lag: list[float]
    by_lag_margin: list[float] | None
    biases: list[float]
    cosines: list[float]
    works: list[float]
    chunks: list[Cut]
    halves: list[Cut]
    window: int
    half: int
    horizon: int
    growth: GrowthData | None
    norms: Table
    band: Table | None
    spectra: list[Spectrum] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """One stretch of text, token by token.

    Attributes:
        tokens: what was read and, last, what the last output was to predict.
        spaced: whether tokens stand apart, as words do.
        losses: `E_t` in nats, of the prediction of `tokens[t + 1]`.
        norms: the norms of dE_t/ds_k; `s_k` is the state after reading `tokens[k]`.
    """

    tokens: list[str]
    spaced: bool
    losses: list[float]
    norms: Table


@dataclass(frozen=True)
class Histogram:
    """How the values of a gate or state are spread, over units and steps.

    Attributes:
        name: such as "forget gate".
        layer: from 1 on.
        low: where the first bin begins.
        high: where the last one ends.
        counts: of each bin.
        mean: of all values.
        low_share: share of values near the lower end, where the slope is near 0.
        high_share: likewise near the upper end.
        still: share of units that hardly move over the text.
    """

    name: str
    layer: int
    low: float
    high: float
    counts: list[int]
    mean: float
    low_share: float
    high_share: float
    still: float


@dataclass(frozen=True)
class Sample:
    """Text that the model has written."""

    temperature: float
    text: str


@dataclass(frozen=True)
class Curves:
    """How a run went, from its `metrics.jsonl` and `timings.jsonl`.

    Attributes:
        every: updates that a point of the training stands for.
        step: of the training's points, the last of theirs.
        loss: mean training loss, nats a token.
        gradient_norm: the largest norm before clipping.
        learning_rate: the last one.
        valid_step: of the measurements on held-out text.
        valid_loss: nats a token.
        timing_step: of the clock's points.
        elapsed_s: seconds since the start.
        tokens_per_s: mean rate since the point before.
        clip: largest norm that is let through; 0 or None for none.
        final_loss: on all held-out text, once the run is finished.
        final_tokens: of that text.
    """

    every: int
    step: list[int]
    loss: list[float]
    gradient_norm: list[float]
    learning_rate: list[float]
    valid_step: list[int]
    valid_loss: list[float]
    timing_step: list[int]
    elapsed_s: list[float]
    tokens_per_s: list[float]
    clip: float | None
    final_loss: float | None
    final_tokens: int | None


@dataclass(frozen=True)
class RunData:
    """One run, or one model looked into.

    Attributes:
        name: short.
        lines: what it is, in sentences.
        notes: what is missing, and why.
        facts: name and value, for the table that compares runs.
        settings: name and value, all of them.
        command: what trains it again.
        text: what `flow` and `reading` are about, in words.
    """

    name: str
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    versions: list[tuple[str, str]] = field(default_factory=list)
    command: str = ""
    curves: Curves | None = None
    flow: FlowData | None = None
    reading: Reading | None = None
    text: str = ""
    activity: list[Histogram] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    runs: list[RunData]
