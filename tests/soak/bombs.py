"""Every field of a configuration as a bomb: refused in milliseconds, with its path."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from bptt.cli.runs import load_run
from bptt.errors import CheckpointError
from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import Tokenizer
from bptt.training import Options, flow, resolve
from damage import vouched
from hostile_json import NUMBERS, RAW, places, with_value

SLOWEST_S = 0.05
LARGE = (  # as much as a file may hold, and more
    *(json.dumps("x" * 2**n) for n in (15, 24)),
    *("[" + "1," * 2**n + "1]" for n in (14, 23)),
    *("{" + ",".join(f'"{i}":1' for i in range(2**n)) + "}" for n in (12, 19)),
    *("9" * 2**n for n in (15, 24)),
)
_MARK = "what is to be replaced"


def run(share: float, seed: int) -> dict[str, Any]:
    """All values, in the place of every field."""
    failures: list[str] = []
    refused = accepted = 0
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = Tokenizer.train("the cat sat", "char")
        options = Options(steps=3, k2="auto", hidden=4)
        training = msgspec.to_builtins(resolve(options, tokenizer.size)[1])
        model = LanguageModel(ModelConfig(vocab=tokenizer.size, hidden=4), tokenizer)
        model.save_pretrained(folder, training=training)
        config = json.loads((folder / "config.json").read_bytes())
        load_run(folder)
        bombs = (
            *map(json.dumps, (*NUMBERS, "x" * 99, None, True, [], {})),
            *RAW,
            *LARGE,
        )
        for path in places(config)[1:]:
            text = json.dumps(with_value(config, path, _MARK))
            for bomb in bombs[:: max(1, round(0.2 / share))]:
                data = text.replace(f'"{_MARK}"', bomb).encode("utf-8", "surrogatepass")
                vouched(folder, "config.json", data)
                started_s = time.process_time()
                what = f"{bomb[:20]} at {path}"
                try:
                    _, found = load_run(folder)
                    if found is not None:
                        flow.trained_truncation(found)
                    accepted += 1
                except CheckpointError as error:
                    refused += 1
                    if reason := _wrong(str(error), path):
                        failures.append(f"{what}: {reason}: {error}")
                except Exception as error:  # noqa: BLE001 - that is what is sought
                    failures.append(f"{what}: {error!r}"[:300])
                slowest = max(slowest, (time.process_time() - started_s, what))
    if slowest[0] > SLOWEST_S:
        failures.append(f"{slowest[1]} took {slowest[0]:.3f} s")
    return {
        "refused": refused,
        "accepted": accepted,
        "slowest_s": round(slowest[0], 4),
        "slowest": slowest[1],
        "failures": failures,
    }


def _wrong(said: str, path: tuple[Any, ...]) -> str | None:
    """A line tells the path of the field, or the field by its name."""
    known = ("at `$", "not JSON", "not UTF-8", "nested too deeply", "too many for a")
    if "\n" in said or len(said) > 500:
        return "not a line"
    told = any(word in said for word in (*known, str(path[-1])))
    # Sizes that could be are refused for the files that they do not fit.
    fits = any(word in said for word in ("do not fit config.json", "config.json says"))
    return None if told or fits else "not told where"
