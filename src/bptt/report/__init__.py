"""A run as a page: read from its folder, and looked into where it was not yet."""

from bptt.report.findings import FLOW, Findings, findings_of, load, save
from bptt.report.run import run_data

__all__ = ["FLOW", "Findings", "findings_of", "load", "run_data", "save"]
