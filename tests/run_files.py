"""What a run leaves behind, to compare with that of the run that never stopped."""

import hashlib
import json
from pathlib import Path

from bptt.language_model import LanguageModel
from bptt.training import run_folder

_CLOCKS = ("elapsed_s", "choosing_s", "threads")


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of all but clocks: metrics, model, and the last snapshot, which is
    weights, what the optimiser keeps, the carried state, and what seeds the rest.
    """
    last = max((folder / "checkpoints").glob("step-*"))
    names = ("metrics.jsonl", "model.safetensors", "config.json", "manifest.json")
    files = {name: (folder / name).read_bytes() for name in names}
    files["tensors.safetensors"] = (last / "tensors.safetensors").read_bytes()
    state = json.loads((last / "state.json").read_bytes())
    for name in _CLOCKS:
        state.pop(name)
    files["state.json"] = json.dumps(state).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def check_whole(folder: Path) -> None:
    """The model and the snapshots of a run are whole, if they are there.

    Raises:
        CheckpointError: one is not.
    """
    if (folder / "manifest.json").exists():
        LanguageModel.from_pretrained(folder)
    for path in (folder / "checkpoints").glob("step-*"):
        run_folder._read_snapshot(path)
