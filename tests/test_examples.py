"""The examples do what they say: the claims are held to numbers computed again here."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "forecast.py"
needs_series = pytest.mark.skipif(
    importlib.util.find_spec("statsmodels") is None,
    reason="the example's series is in statsmodels, which is not installed",
)
NaN = np.nan


@pytest.fixture(scope="module")
def forecast():
    spec = importlib.util.spec_from_file_location("forecast", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words):
    command = [sys.executable, str(EXAMPLE), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def number(pattern, text):
    return float(re.search(rf"{pattern} *([\d.e+-]+)", text).group(1))


@needs_series
def test_the_forecast_is_better_than_what_needs_no_learning(forecast):
    out = run()
    errors = {
        name: number(rf"\n  {name}", out)
        for name in (
            "no change",
            "last year's change",
            "the season's mean change",
            "the GRU",
        )
    }
    assert errors["the GRU"] < 0.85 * errors["last year's change"]
    assert errors["the GRU"] < 0.97 * errors["the season's mean change"]

    # The baselines over again, week by week.
    series, dates = forecast.load()
    squares = []
    for week in range(len(series) - 13):
        rise = series[week + 13] - series[week]
        before = series[week - 39] - series[week - 52] if week >= 52 else NaN
        if dates[week] >= np.datetime64("1984-01-01") and not np.isnan(rise + before):
            squares.append((rise**2, (rise - before) ** 2))
    no_change, last_years = np.sqrt(np.mean(squares, axis=0))
    assert number("error of", out) == len(squares)
    assert errors["no change"] == pytest.approx(no_change, abs=6e-4)
    assert errors["last year's change"] == pytest.approx(last_years, abs=6e-4)
    better = 100 * (1 - errors["the GRU"] / errors["last year's change"])
    assert number("better than last year's change by", out) == pytest.approx(
        better, abs=0.2
    )

    assert out.startswith(f"2284 weeks, {2284 - np.isnan(series).sum()} observed")
    assert number("differs by at most", out) < 1e-4
    assert "error sent back before the last gap: 0;" in out


@needs_series
def test_a_seed_means_the_same_numbers(forecast, capsys):
    outputs = []
    for seed in ("0", "0", "1"):
        forecast.main(["--updates", "3", "--seed", seed])
        outputs.append(capsys.readouterr().out)
    first, again, other = outputs
    assert first == again != other


def test_without_the_series_it_says_what_to_install(forecast, capsys, monkeypatch):
    for name in ("statsmodels", "statsmodels.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stopped:
        forecast.main([])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "[examples]" in err


def test_missing_weeks_are_left_away_and_leave_a_reset(forecast):
    series = np.array([NaN, 3.0, 4.0, NaN, 7.0, NaN, NaN, 9.0, 8.0])
    dates = np.datetime64("1999-12-25") + 7 * np.arange(9)
    record = forecast.observed(series, dates)
    np.testing.assert_array_equal(record.weeks, [1, 2, 4, 7, 8])
    np.testing.assert_array_equal(record.ppm, [3, 4, 7, 9, 8])
    np.testing.assert_array_equal(record.resets, [True, False, True, True, False])
    days = np.array([0, 7, 21, 42, 49])  # since the year began
    np.testing.assert_allclose(record.season, 2 * np.pi * days / 365.25)
    later = forecast.observed(series[1:], dates[1:])  # nothing is before its first
    np.testing.assert_array_equal(later.resets, record.resets)

    x = forecast.features(record, np.array([True, True, True, False, False]))
    last = np.array([0, 1, 0, 0, -1]) / np.std([0, 1, 0])  # none is known after a gap
    expected = np.stack((last, np.sin(record.season), np.cos(record.season)), axis=1)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6)


def test_changes_are_unknown_where_either_end_is(forecast):
    series = np.array([1.0, 2.0, NaN, 8.0, 16.0])
    rise = forecast.change(series, np.array([-3, -1, 0, 1, 2, 3, 4]), 2)
    np.testing.assert_array_equal(rise, [NaN, NaN, NaN, 6.0, NaN, NaN, NaN])
    rise = forecast.change(series, np.array([0, 2, 3, 4]), 1)
    np.testing.assert_array_equal(rise, [1.0, NaN, 8.0, NaN])


def test_the_seasons_mean_is_fitted_to_what_was_learned(forecast):
    season = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    record = forecast.Record(np.arange(40), np.zeros(40), season, np.zeros(40, bool))
    truth = 2 + np.sin(season) - 3 * np.cos(2 * season) + 0.5 * np.sin(3 * season)
    learned = np.arange(40) % 3 > 0
    mean = forecast.seasons_mean(record, np.where(learned, truth, NaN), learned)
    np.testing.assert_allclose(mean, truth)


def test_streaming_forgets_at_a_gap(forecast):
    torch.manual_seed(0)
    model = forecast.Forecaster()
    x, resets = torch.randn(9, 3), torch.zeros(9, dtype=torch.bool)
    resets[4] = True
    state = torch.randn(1, 1, forecast.UNITS)
    with torch.no_grad():
        before, _ = model(x[:4].unsqueeze(1), state)
        behind, _ = model(x[4:].unsqueeze(1))
    expected = torch.cat((before, behind)).squeeze(1)
    streamed = forecast.stream(model, x, resets, state)
    torch.testing.assert_close(streamed, expected)
    assert forecast.error_around_gap(model, x, resets)[0] == 0
