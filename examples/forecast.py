"""Forecast the CO2 in the air of Mauna Loa 13 weeks ahead, with a GRU.

    pip install --constraint constraints.txt ".[examples]"
    python examples/forecast.py [--updates N] [--seed N]

The series comes with statsmodels: a mean a week from 1958 to 2001, and 59 of the 2284
weeks are missing. What a recurrent network needs for such data:

- *Ragged histories.* It learns from histories of half a year to four years in one
  batch; `lengths` says how long each is, and nothing is computed on the padding.
- *Gaps.* Where weeks are missing, the state of before says little about what follows.
  `resets` zeroes it there, and no error is sent back across.
- *Truncation.* The errors of each quarter of a year go back over a year, no further.
- *Streaming.* Once trained, it takes one week at a time, as they arrive, and carries
  its state. The forecasts are those of one call over the whole record.

The years until 1983 are learned from, those from 1984 on are held out. The forecast is
compared with three that need no learning.
"""

import argparse
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bptt import GRU, Truncation

AHEAD = 13  # weeks
YEAR = 52
HELD_OUT_FROM = np.datetime64("1984-01-01")
BATCH = 32
SHORTEST, LONGEST = 26, 208  # weeks of a history
UNITS = 32
TOLERANCE = 1e-4  # ppm: float32 in another order of summation


class Record(NamedTuple):
    """The weeks that were observed; the missing ones are left away."""

    weeks: np.ndarray  # counted from the first of the series
    ppm: np.ndarray
    season: np.ndarray  # where in the year, as an angle
    resets: np.ndarray  # whether the week before is missing


def load() -> tuple[np.ndarray, np.ndarray]:
    """Each week's CO2 in parts per million, NaN where it is missing; and its date."""
    try:
        from statsmodels.datasets import co2
    except ImportError:
        print(
            "forecast.py: the series is in statsmodels, which is not installed: "
            'pip install --constraint constraints.txt ".[examples]"',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    series = co2.load_pandas().data["co2"]
    return series.to_numpy(), series.index.to_numpy().astype("datetime64[D]")


def observed(series: np.ndarray, dates: np.ndarray) -> Record:
    """The observed weeks, and before which of them there is a gap."""
    weeks = np.flatnonzero(~np.isnan(series))
    day = (dates[weeks] - dates[weeks].astype("datetime64[Y]")).astype(float)
    return Record(
        weeks=weeks,
        ppm=series[weeks],
        season=2 * np.pi * day / 365.25,
        resets=np.diff(weeks, prepend=-2) > 1,  # the first too: nothing is before it
    )


def change(series: np.ndarray, weeks: np.ndarray, ahead: int) -> np.ndarray:
    """How much the series rises in `ahead` weeks after `weeks`; NaN if unknown."""
    inside = (weeks >= 0) & (weeks + ahead < len(series))
    start = np.where(inside, weeks, 0)
    rise = series[np.minimum(start + ahead, len(series) - 1)] - series[start]
    return np.where(inside, rise, np.nan)


def features(record: Record, learned: np.ndarray) -> Tensor:
    """What the network reads of a week: the last change, and the time of the year."""
    # After a gap the change is not known, and 0 is its mean.
    last = np.where(record.resets, 0, np.diff(record.ppm, prepend=record.ppm[0]))
    last = last / last[learned].std()  # by what may be known when learning
    columns = (last, np.sin(record.season), np.cos(record.season))
    return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32)


class Forecaster(nn.Module):
    """A GRU, and a line that reads the forecast from its state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = GRU(3, UNITS, truncation=Truncation(k1=AHEAD, k2=YEAR))
        self.change = nn.Linear(UNITS, 1)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Forecasts (time, batch), in `scale`s; and the state after the last week."""
        y, state = self.gru(x, state, lengths=lengths, resets=resets)
        return self.change(y).squeeze(-1), state


def learn(
    model: Forecaster,
    x: Tensor,
    goal: Tensor,
    resets: Tensor,
    options: argparse.Namespace,
) -> None:
    """Fit the forecasts to `goal`, (weeks,), wherever that is not NaN."""
    draw = np.random.default_rng(options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.updates)
    for update in range(options.updates):
        # Histories of any length, from anywhere in the record, side by side.
        lengths = torch.tensor(draw.integers(SHORTEST, LONGEST + 1, BATCH))
        first = torch.tensor(draw.integers(0, len(x) - lengths.numpy() + 1))
        step = torch.arange(int(lengths.max())).unsqueeze(1)  # (time, 1)
        week = (first + step).clamp(max=len(x) - 1)  # (time, batch), padded at the end
        y, _ = model(x[week], lengths=lengths, resets=resets[week])
        counts = (step < lengths) & ~goal[week].isnan()
        loss = (y - goal[week])[counts].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 100 == 0 or update == options.updates - 1:
            print(f"update {update:4d}  squared error {loss.item():.4f}")


@torch.no_grad()
def stream(model: Forecaster, x: Tensor, resets: Tensor, state: Tensor) -> Tensor:
    """Forecasts of the weeks of `x`, (weeks, features), read one at a time."""
    forecasts = []
    current: Tensor | None = state
    for week, is_after_gap in zip(x, resets, strict=True):
        if is_after_gap:
            current = None  # zeros
        y, current = model(week.view(1, 1, -1), current)
        forecasts.append(y.view(()))
    return torch.stack(forecasts)


def error_around_gap(
    model: Forecaster, x: Tensor, resets: Tensor
) -> tuple[float, float]:
    """The largest error that reaches a week before the last gap, and one after it."""
    gap = int(resets.nonzero()[-1])
    x = x.clone().requires_grad_()
    y, _ = model(x.unsqueeze(1), resets=resets.unsqueeze(1))
    (dx,) = torch.autograd.grad(y[gap : gap + AHEAD].sum(), x)
    return float(dx[:gap].abs().max()), float(dx[gap:].abs().max())


def seasons_mean(record: Record, target: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """The mean change in that season: its first three harmonics, fitted."""
    angles = np.outer(record.season, (1, 2, 3))
    waves = np.hstack((np.ones((len(angles), 1)), np.sin(angles), np.cos(angles)))
    return waves @ np.linalg.lstsq(waves[learned], target[learned], rcond=None)[0]


def compare(
    forecasts: dict[str, np.ndarray], target: np.ndarray, where: np.ndarray
) -> None:
    """Print each forecast's error, and how much the last is better than the second."""
    print(f"root mean square error of {where.sum()} forecasts held out, in ppm:")
    errors = [
        float(np.sqrt(np.mean((values - target)[where] ** 2)))
        for values in forecasts.values()
    ]
    for name, error in zip(forecasts, errors, strict=True):
        print(f"  {name:<26}{error:.3f}")
    print(f"better than {list(forecasts)[1]} by {1 - errors[-1] / errors[1]:.1%}")


def main(words: list[str] | None = None) -> None:
    """Learn, forecast, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(words)
    torch.manual_seed(options.seed)

    series, dates = load()
    record = observed(series, dates)
    gaps = int(record.resets[1:].sum())
    print(f"{len(series)} weeks, {len(record.weeks)} observed, {gaps} gaps")
    target = change(series, record.weeks, AHEAD)
    split = int(np.searchsorted(dates[record.weeks], HELD_OUT_FROM))
    # What is learned from must have come true before the first week that is held out.
    learned = ~np.isnan(target) & (record.weeks + AHEAD < record.weeks[split])
    scale = float(target[learned].std())
    goal = torch.tensor(np.where(learned, target / scale, np.nan), dtype=torch.float32)
    x, resets = features(record, learned), torch.tensor(record.resets)

    model = Forecaster()
    learn(model, x[:split], goal[:split], resets[:split], options)

    # The whole record in one call; then the held-out weeks as they would have come.
    with torch.no_grad():
        y, _ = model(x.unsqueeze(1), resets=resets.unsqueeze(1))
        _, state = model(x[:split].unsqueeze(1), resets=resets[:split].unsqueeze(1))
    forecast = y.squeeze(1).numpy() * scale
    one_by_one = stream(model, x[split:], resets[split:], state).numpy() * scale

    last_years = change(series, record.weeks - YEAR, AHEAD)
    held_out = ~np.isnan(target + last_years)
    held_out[:split] = False
    forecasts = {
        "no change": np.zeros_like(target),
        "last year's change": last_years,
        "the season's mean change": seasons_mean(record, target, learned),
        "the GRU": forecast,
    }
    compare(forecasts, target, held_out)

    difference = float(np.abs(one_by_one - forecast[split:]).max())
    print(f"streaming {len(one_by_one)} weeks differs by at most {difference:.1e} ppm")
    assert difference <= TOLERANCE, "streaming is not what one call gives"
    before, after = error_around_gap(model, x, resets)
    print(f"error sent back before the last gap: {before:g}; behind it: {after:.2g}")
    assert before == 0 < after, "an error has crossed a gap"


if __name__ == "__main__":
    main()
