"""`bptt report`: a run, or several side by side, as one page."""

import sys
from pathlib import Path

from rich.console import Console

from bptt import page, storage
from bptt.cli.arguments import Report
from bptt.cli.flow import AFTER_TRAINING, measured
from bptt.cli.progress import console
from bptt.cli.runs import load_run
from bptt.errors import InputError
from bptt.flow import FlowEstimates
from bptt.language_model import CONFIG, WEIGHTS, LanguageModel
from bptt.report import Findings, findings_of, load, run_data, save
from bptt.storage import MANIFEST
from bptt.text import Sentences, Stream, read_text
from bptt.text.files import shown
from bptt.training import RunFolder, TrainingConfig, encode_for
from bptt.training.run_folder import METRICS

PAGE = "report.html"
_SEVERAL = "compare.html"


def run(command: Report) -> int:
    """Make the page; its path on stdout."""
    if not command.run:
        raise InputError("name at least one RUN to report on")
    to = console()
    runs = [_read(to, path, command.text) for path in command.run]
    out = command.out
    if out is None:
        out = command.run[0] / PAGE if len(runs) == 1 else Path(_SEVERAL)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    _write(out, page.Page(title, runs))
    sys.stdout.write(f"{out}\n")
    return 0


def after_training(
    folder: Path,
    model: LanguageModel,
    config: TrainingConfig,
    text: Stream | Sentences,
    found: FlowEstimates,
) -> None:
    """Keep what was found in the run, and its page beside it.

    Raises:
        OSError: they cannot be written; what was there stays.
    """
    findings = findings_of(model, found, text, "the held-out text", config.seed)
    save(folder, findings)
    data = run_data(folder, model, config, findings)
    html = page.html(page.Page(data.name, [data]))
    storage.write_atomically(folder / PAGE, html.encode())


def _read(to: Console, path: Path, text: tuple[Path, ...]) -> page.RunData:
    if not any((path / name).is_file() for name in (MANIFEST, CONFIG, WEIGHTS)):
        if not (path / METRICS).is_file():
            raise InputError(
                f"{path} is no run: it has neither {MANIFEST} nor {METRICS}; give the "
                "folder that bptt train printed"
            )
        return run_data(path, None, None, None)
    model, config = load_run(path)
    findings = None if text else load(path)
    if findings is None:
        findings = _looked_into(to, path, model, config, text)
    return run_data(path, model, config, findings)


def _looked_into(
    to: Console,
    path: Path,
    model: LanguageModel,
    config: TrainingConfig | None,
    texts: tuple[Path, ...],
) -> Findings:
    assert model.tokenizer is not None
    text = encode_for(
        read_text(texts),
        model.tokenizer,
        model.config.unit,
        one_a_line=model.config.one_a_line,
    )
    chosen_k2 = RunFolder(path).chosen_k2
    found = measured(to, model, config, text, AFTER_TRAINING, chosen_k2)
    name = ", ".join(map(shown, texts)) or "the English reference of Python"
    return findings_of(model, found, text, name, 0 if config is None else config.seed)


def _write(out: Path, whole: page.Page) -> None:
    try:
        storage.write_atomically(out, page.html(whole).encode())
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
