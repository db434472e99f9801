"""What the figures show is what the library says, in a real browser."""

import re

import pytest
import torch

from bptt import Truncation
from page import pages

FIGURES = r"[\d.,]+(?:e[+-]\d+)?"


def first_numbers(text, pattern):
    """The groups of a pattern as numbers."""
    match = re.search(pattern.replace("N", f"({FIGURES})"), text.replace("\xa0", " "))
    assert match, text
    return [float(group.replace(",", "").rstrip(".")) for group in match.groups()]


def slide(view, selector, value):
    view.eval_on_selector(
        selector,
        "(node, value) => { node.value = value;"
        " node.dispatchEvent(new Event('input')); }",
        value,
    )


CUT = "k1 = N, k2 = N: the gradient is off by N %.* at a cosine of N with.* for N times"


@pytest.mark.parametrize("k2", [1, 3, 11, 24])
def test_the_slider_shows_bias_and_cosine(watched, written, found, k2):
    watched.open(written)
    slide(watched.view, '[data-draw="choose"] input', k2 - 1)
    text = watched.view.inner_text('[data-told="cut"]')
    shown = first_numbers(text, CUT)
    cut = Truncation(1, k2)
    assert shown[:2] == [1, k2]
    assert shown[2] == pytest.approx(100 * found.bias(cut).mean, rel=0.05, abs=1e-4)
    assert shown[3] == pytest.approx(found.cosine(cut).mean, abs=5e-4)
    mark = watched.view.text_content('[data-draw="lags"] text.mark')
    assert mark.startswith(f"k2 = {k2}")


@pytest.mark.parametrize(
    ("mode", "at", "cut"),
    [("chunks", 3, Truncation(8, 8)), ("halves", 1, Truncation(4, 8))],
)
def test_the_slider_goes_through_chunks(watched, written, found, mode, at, cut):
    watched.open(written)
    watched.view.select_option('[data-draw="choose"] select', mode)
    slide(watched.view, '[data-draw="choose"] input', at)
    shown = first_numbers(watched.view.inner_text('[data-told="cut"]'), CUT)
    assert shown[:2] == [cut.k1, cut.k2]
    assert shown[2] == pytest.approx(100 * found.bias(cut).mean, rel=0.05)
    assert shown[3] == pytest.approx(found.cosine(cut).mean, abs=5e-4)


def test_a_token_colours_those_before_it(watched, written, found):
    watched.open(written)
    tokens = watched.view.locator(".token")
    assert tokens.all_inner_texts() == pages.TOKENS
    tokens.nth(13).click()
    norms = found.flows[0].norms[12, :13]
    text = watched.view.inner_text('[data-told="text"]')
    assert f"“{pages.TOKENS[13]}” was predicted with a loss of 1.7 nats" in text
    strongest = norms.flip(0).topk(4)
    shown = re.findall(rf"“(\w+)”[^(“]*\(({FIGURES})\)", text)
    assert [name for name, _ in shown] == [
        pages.TOKENS[12 - lag] for lag in strongest.indices.tolist()
    ]
    values = torch.tensor([float(value) for _, value in shown], dtype=torch.float64)
    torch.testing.assert_close(values, strongest.values, rtol=6e-3, atol=1e-12)
    coloured = watched.view.evaluate(
        "[...document.querySelectorAll('.token')].map(n => n.style.background !== '')"
    )
    largest = float(norms.max())
    assert coloured == [
        i <= 12 and float(norms[i]) > 1e-3 * largest for i in range(len(coloured))
    ]
    # The keys go on from there.
    watched.view.keyboard.press("ArrowRight")
    assert tokens.nth(14).get_attribute("aria-checked") == "true"
    assert tokens.nth(13).get_attribute("aria-checked") == "false"
    assert f"“{pages.TOKENS[14]}” was" in watched.view.inner_text('[data-told="text"]')


def arrows(view):
    texts = view.locator(".unrolled .amount").all_text_contents()
    return torch.tensor([float(text) for text in texts], dtype=torch.float64)


def test_an_error_flows_back_through_the_unrolled_network(watched, written, found):
    watched.open(written)
    view = watched.view
    norms = found.flows[0].norms
    slide(view, '[data-choose="output"]', 21)
    row = norms[21].flip(0)[2:]  # of output 21, lag 0 first
    shown = arrows(view)
    torch.testing.assert_close(shown, row[: len(shown)], rtol=6e-3, atol=1e-12)
    count = len(shown)
    assert count == 10
    widths = view.eval_on_selector_all(
        ".unrolled line.error",
        "nodes => nodes.map(n => Number(n.getAttribute('stroke-width')))",
    )
    expected = (16 * row[:count] / row.max()).clamp(min=1)
    found_widths = torch.tensor(widths, dtype=torch.float64)
    torch.testing.assert_close(found_widths, expected, rtol=1e-4, atol=1e-4)
    names = view.locator(".unrolled .state-name").all_text_contents()
    assert names == [f"s{21 - lag}" for lag in range(count)]
    # Earlier steps, and step by step.
    view.get_by_text("← Earlier steps").click()
    earlier = arrows(view)
    torch.testing.assert_close(earlier, row[count : 2 * count], rtol=6e-3, atol=1e-12)
    view.get_by_text("Later steps →").click()
    step = view.get_by_role("button", name="One step")
    for reached in (1, 2, 3):
        step.click()
        assert len(arrows(view)) == reached
    text = view.inner_text('[data-told="unrolled"]')
    _, last = first_numbers(text, "norm N at its own state; 2 steps further back N is")
    assert last == pytest.approx(float(row[2]), rel=6e-3)
    # An output of the figure is chosen like one of the slider.
    view.locator(".unrolled .output").nth(4).click()
    torch.testing.assert_close(arrows(view)[0], norms[17, 17], rtol=6e-3, atol=1e-12)
    assert view.input_value('[data-choose="output"]') == "17"


def test_the_error_is_sent_back_by_itself(watched, written):
    watched.open(written)
    watched.view.get_by_text("Send it back").click()
    assert len(arrows(watched.view)) == 1
    watched.view.wait_for_timeout(1100)
    assert len(arrows(watched.view)) in (2, 3, 4)


def test_the_map_is_read_by_pointer_and_keys(watched, written, found):
    watched.open(written)
    view = watched.view
    norms = found.norms
    canvas = view.locator('[data-told="map-canvas"]')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    cell = box["width"] / 24
    view.mouse.move(box["x"] + 7.5 * cell, box["y"] + (23 - 10 + 0.5) * cell)
    told = view.inner_text('[data-told="map"]')
    t, k, value = first_numbers(told, "t = N, step k = N: N")
    assert (t, k) == (10, 7)
    assert value == pytest.approx(float(norms[10, 7]), rel=6e-3)
    canvas.focus()
    view.keyboard.press("ArrowUp")
    view.keyboard.press("ArrowLeft")
    told = view.inner_text('[data-told="map"]')
    t, k, value = first_numbers(told, "t = N, step k = N: N")
    assert (t, k) == (11, 6)
    assert value == pytest.approx(float(norms[11, 6]), rel=6e-3)


def test_charts_are_read_by_keys(watched, written, found):
    watched.open(written)
    view = watched.view
    chart = view.locator('[data-draw="lags"] svg')
    chart.focus()
    view.keyboard.press("Home")
    for _ in range(3):
        view.keyboard.press("ArrowRight")
    lag, value, share = first_numbers(
        chart.get_attribute("aria-valuetext"), "Lag N contributes N, N %"
    )
    by_lag = found.by_lag
    assert lag == 3
    assert value == pytest.approx(float(by_lag[3]), rel=6e-3)
    assert share == pytest.approx(100 * float(by_lag[3] / by_lag.sum()), rel=0.05)
    loss = view.locator('[data-draw="loss"] svg').get_attribute("aria-valuetext")
    assert "After 3 updates, training loss 2.25 nats, held-out loss 2.13" in loss


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1400])
def test_nothing_is_wider_than_the_screen(chromium, written, width, scheme):
    with pages.watched(chromium, width, scheme) as seen:
        seen.open(written)
        assert seen.view.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.said == []


def test_every_control_has_a_name_and_a_place_in_the_order(watched, written):
    watched.open(written)
    nameless = watched.view.evaluate(
        """[...document.querySelectorAll(
             'button, select, input, svg[role], canvas[role], [role=radiogroup]')]
           .filter(n => !(n.getAttribute('aria-label') || n.textContent.trim()
             || n.closest('label')?.textContent.trim()))
           .map(n => n.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    places = []
    for _ in range(16):
        watched.view.keyboard.press("Tab")
        places.append(
            watched.view.evaluate("document.activeElement.getAttribute('class') || "
                                  "document.activeElement.tagName.toLowerCase()")
        )  # fmt: skip
    assert {"skip", "svg", "select", "input", "token"} <= set(places), places


def test_several_runs_lie_side_by_side(watched, found, tmp_path):
    runs = [pages.run_of(found, name=name) for name in ("one", "two")]
    watched.open(pages.write(tmp_path / "two.html", *runs))
    view = watched.view
    assert view.locator("table.compare th[scope=col]").all_inner_texts() == [
        "one",
        "two",
    ]
    assert view.locator('[data-draw="together"] polyline').count() == 2
    assert view.locator("article").count() == 2
    # Each has figures of its own.
    slide(view, 'article:nth-of-type(2) [data-draw="choose"] input', 0)
    told = view.locator('[data-told="cut"]').all_inner_texts()
    assert "k2 = 1:" in told[1]
    assert "k2 = 1:" not in told[0]


def test_a_run_with_little_in_it(watched, tmp_path, found):
    empty = pages.run_of(
        found, flow=None, reading=None, curves=None, activity=[], samples=[],
        settings=[], versions=[], command="", lines=[], notes=["It is not finished."],
    )  # fmt: skip
    watched.open(pages.write(tmp_path / "empty.html", empty))
    assert "It is not finished." in watched.view.inner_text("main")
