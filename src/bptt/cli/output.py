"""What the commands write: tables, sentences, JSON."""

import json
import math
import sys
from typing import Any

from bptt.escape import printable as printable
from bptt.training import Measurement
from bptt.verify import Certificate


def table(certificates: list[Certificate]) -> str:
    """The largest errors of each case, a line each."""
    layout = "{:<10}{:<15}{:<24}{:>12}{:>12}  {}\n"
    lines = [layout.format("cell", "case", "truncation", "difference", "float32", "")]
    for c in certificates:
        lines.append(
            layout.format(
                c.cell,
                c.case,
                c.truncation,
                f"{c.finite_difference_error:.1e}",
                f"{c.float32_error:.1e}",
                "right" if c.passed else f"WRONG: {c.message}",
            )
        )
    return "".join(lines)


def sentence(measured: Measurement) -> str:
    """A measurement in words."""
    return (
        f"loss {measured.loss:.4f} nats per token, perplexity "
        f"{measured.perplexity:.3f}, {measured.bits_per_token:.4f} bits per token, "
        f"over {measured.tokens:,} tokens."
    )


def write_json(record: dict[str, Any]) -> None:
    """A line of JSON on stdout."""
    sys.stdout.write(json.dumps(_finite(record)) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
