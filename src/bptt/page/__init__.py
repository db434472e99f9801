"""Pages of one file: data and its figures, opened offline, asking nothing of anyone."""

from bptt.page.data import (
    Curves,
    Cut,
    FlowData,
    GrowthData,
    Histogram,
    Page,
    Reading,
    RunData,
    Sample,
    Spectrum,
    Table,
)
from bptt.page.numbers import band, triangle
from bptt.page.render import html

__all__ = [
    "Curves",
    "Cut",
    "FlowData",
    "GrowthData",
    "Histogram",
    "Page",
    "Reading",
    "RunData",
    "Sample",
    "Spectrum",
    "Table",
    "band",
    "html",
    "triangle",
]
