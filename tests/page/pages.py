"""Pages to look at, and a browser that tells what they do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import bptt
from bptt import page
from bptt.flow import FlowEstimates
from bptt.flow.shown import flow_data

TOKENS = [f"w{i}" for i in range(25)]


def flows(time=24, batches=2):
    """Flows of a small GRU, in float64."""
    torch.manual_seed(3)
    gru = bptt.GRU(3, 5, truncation=bptt.Truncation.chunks(4)).double()
    found = []
    for _ in range(batches):
        x = torch.randn(time, 2, 3, dtype=torch.float64)
        found.append(bptt.gradient_flow(gru, lambda x=x: gru(x)[0].square().sum()))
    return FlowEstimates(tuple(found))


def reading(flow, tokens=None, *, spaced=True):
    """A reading of as many tokens as the flow has steps, and one."""
    return page.Reading(
        tokens=tokens or TOKENS[: flow.time + 1],
        spaced=spaced,
        losses=[0.5 + 0.1 * t for t in range(flow.time)],
        norms=page.triangle(flow.norms.numpy()),
    )


def curves():
    """Of a run that has ended."""
    return page.Curves(
        every=1,
        step=[1, 2, 3],
        loss=[3.0, 2.5, 2.25],
        gradient_norm=[0.5, 2.0, 1.25],
        learning_rate=[0.01, 0.005, 0.001],
        valid_step=[0, 3],
        valid_loss=[3.5, 2.125],
        timing_step=[2, 3],
        elapsed_s=[1.0, 2.0],
        tokens_per_s=[1234.0, 5678.0],
        clip=1.0,
        final_loss=2.0,
        final_tokens=99,
    )


def run_of(found: FlowEstimates, **changes: Any) -> page.RunData:
    """A run with everything in it."""
    values = {
        "name": "runs/tiny",
        "lines": ["GRU with one layer of 5 units."],
        "facts": [("Perplexity", "7.39")],
        "settings": [("cell", "gru"), ("hidden", "5")],
        "versions": [("bptt", "0.1.0")],
        "command": "bptt train TEXT --cell gru",
        "curves": curves(),
        "flow": flow_data(found),
        "reading": reading(found.flows[0]),
        "activity": [
            page.Histogram("update gate z", 1, 0, 1, [1, 5, 2], 0.5, 0.1, 0.2, 0.0)
        ],
        "samples": [page.Sample(0.8, "some text\nof two lines")],
    }
    return page.RunData(**{**values, **changes})


def write(path: Path, *runs: page.RunData) -> Path:
    """A page of these runs."""
    path.write_text(page.html(page.Page("A page", list(runs))), encoding="utf-8")
    return path


@dataclass
class Watched:
    """What a page did that it should not.

    Attributes:
        view: playwright's page.
        said: errors and warnings of the console, dialogs, and requests.
    """

    view: Any
    said: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        """Go there, and wait until it is drawn."""
        self.view.goto(path.as_uri())
        self.view.wait_for_timeout(150)


def chromium() -> str:
    """The browser's path; the test is skipped without one."""
    named = os.environ.get("BPTT_TEST_CHROMIUM")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = named or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: install one, or name it in BPTT_TEST_CHROMIUM")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser that makes no requests of its own."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install bptt[test]"
    )
    path = chromium()
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@contextmanager
def watched(opened: Any, width: int = 1200, scheme: str = "light") -> Iterator[Watched]:
    """A view that notes every request but the page's own, and every complaint."""
    context = opened.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    view = context.new_page()
    found = Watched(view)

    def dialog(shown: Any) -> None:
        found.said.append(f"dialog: {shown.message}")
        shown.dismiss()

    def request(made: Any) -> None:
        if not (made.is_navigation_request() and made.url.startswith("file:")):
            found.said.append(f"request: {made.url[:100]}")

    view.on("dialog", dialog)
    view.on("request", request)
    view.on("pageerror", lambda error: found.said.append(f"error: {error}"))
    view.on("console", lambda line: found.said.append(f"{line.type}: {line.text}"))
    yield found
    context.close()
