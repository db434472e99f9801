"""A finished or unfinished run as the commands read it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bptt import strict_json
from bptt.errors import CheckpointError, InputError
from bptt.language_model import CONFIG, WEIGHTS, LanguageModel, read_training
from bptt.storage import MANIFEST
from bptt.training import TrainingConfig


def load_model(path: Path) -> LanguageModel:
    """The best model of a run.

    Raises:
        InputError: it is no run.
        CheckpointError: it is damaged.
    """
    # Of a run whose manifest is lost, the rest is there, and that is damage.
    if not any((path / name).is_file() for name in (MANIFEST, CONFIG, WEIGHTS)):
        raise InputError(
            f"{path} is no run: it has no {MANIFEST}; give the folder that bptt train "
            "printed"
        )
    model = LanguageModel.from_pretrained(path)
    if model.tokenizer is None:
        raise CheckpointError(f"{path / MANIFEST} lists no tokenizer.json")
    return model


def load_run(path: Path) -> tuple[LanguageModel, TrainingConfig | None]:
    """The model, and how it was trained, where the run says.

    Raises:
        InputError: it is no run.
        CheckpointError: it is damaged.
    """
    model = load_model(path)  # which has checked the file's hash
    training = read_training(path / CONFIG, (path / CONFIG).read_bytes())
    return model, None if training is None else training_of(path / CONFIG, training)


def training_of(path: Path, training: dict[str, Any]) -> TrainingConfig:
    """The "training" part of this `config.json`, with defaults for newer options.

    Raises:
        CheckpointError: a field is missing, unknown or of another kind.
    """
    try:
        return strict_json.convert(training, TrainingConfig)
    except ValueError as error:
        raise CheckpointError(f"{path}: training: {error}") from error


@contextmanager
def as_input_error() -> Iterator[None]:
    """A ValueError about an option is wrong usage."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error
