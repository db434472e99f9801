"""What the subcommands do."""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.markup import escape

from bptt import kernels, verify
from bptt.cli import explain
from bptt.cli import flow as flow_command
from bptt.cli import report as report_command
from bptt.cli.arguments import (
    Check,
    Command,
    Evaluate,
    Explain,
    Flow,
    Generate,
    Report,
    Train,
)
from bptt.cli.output import printable, sentence, table, write_json
from bptt.cli.progress import TrainingProgress, choices, console, tracked
from bptt.cli.runs import as_input_error, load_model, training_of
from bptt.errors import CheckpointError, InputError
from bptt.language_model import (
    CONFIG,
    LanguageModel,
    ModelConfig,
    read_config,
    read_training,
)
from bptt.text import Tokenizer, read_text
from bptt.training import (
    Options,
    RunFolder,
    Stopped,
    Trainer,
    TrainingConfig,
    check,
    encode_for,
    evaluate,
    evaluation_batches,
    load_corpus,
    resolve,
)

_SAMPLE_TOKENS = 300


def run(command: Command) -> int:
    """Run a parsed command; the exit code."""
    _choose_kernel()
    match command:
        case Train():
            return train(command)
        case Evaluate():
            return evaluate_run(command)
        case Generate():
            return generate(command)
        case Flow():
            return flow_command.run(command)
        case Report():
            return report_command.run(command)
        case Explain():
            model = None if command.run is None else load_model(command.run)
            return explain.run(
                model, command.sentence, command.layer, json=command.json
            )
        case Check():
            return check_gradients(command)


def _choose_kernel() -> None:
    """Choose it now, so that what there is to say about it is one plain line."""
    with warnings.catch_warnings(record=True) as said, as_input_error():
        warnings.simplefilter("always")
        kernels.active()
    for warning in said:
        sys.stderr.write(f"bptt: {warning.message}\n")


def train(command: Train) -> int:
    """`bptt train`: messages on stderr, the run's folder on stdout."""
    to = console()
    options = _options(command)
    _check_device(options.device)
    path = command.out or _free_name(command)
    if command.resume and command.out is None:
        raise InputError("--resume needs --out RUN, the run to go on with")
    folder = RunFolder(path)
    if not command.resume:
        folder.check_free()
    with as_input_error():
        corpus = load_corpus(
            options, command.text, () if command.valid is None else (command.valid,)
        )
        model_config, config = resolve(options, corpus.tokenizer.size)
    model = _new_model(model_config, config, corpus.tokenizer)
    with TrainingProgress(to) as progress, _signals() as received:
        trainer = Trainer(
            model, config, corpus, folder, progress, lambda: bool(received)
        )
        if command.resume:
            if folder.finished:
                to.print(f"The run in {escape(str(path))} is finished.")
                return 0
            _check_same_run(folder.path, model, config)
            with _disk_errors(path):
                resumed = trainer.resume()
            if resumed:
                _say_resumed(to, trainer)
            else:
                to.print("No snapshot yet: starting from the beginning.")
        folder.create()
        _describe(to, model, config, corpus.train.tokens, corpus.held_out.tokens)
        try:
            with _disk_errors(path):
                measured = trainer.run()
        except Stopped:
            to.print(
                f"Stopped at step {trainer.progress.step}; the state is saved: go on "
                f"with --out {escape(str(path))} --resume"
            )
            return 128 + received[0]
    to.print(f"\nOn the held-out text: {sentence(measured)}")
    if skipped := trainer.progress.skipped:
        to.print(f"{skipped} update(s) were skipped: loss or gradient was not finite.")
    if config.search is not None:
        to.print(choices(trainer.progress, config.search, trainer.clock.elapsed_s))
    sample = model.generate(length=_SAMPLE_TOKENS, temperature=0.8, seed=config.seed)
    to.print(f"\nA sample:\n{escape(printable(sample.strip()))}\n")
    found = flow_command.say(to, model, config, corpus.held_out, folder.chosen_k2)
    with _disk_errors(path):
        report_command.after_training(path, model, config, corpus.held_out, found)
    to.print("Open its report.html in a browser to see all this, and more.")
    to.print("The run, for bptt evaluate, generate, flow and report, is in")
    sys.stdout.write(f"{path}\n")
    return 0


def evaluate_run(command: Evaluate) -> int:
    """`bptt evaluate`."""
    if not command.text:
        raise InputError("name at least one TEXT to evaluate on")
    model = load_model(command.run)
    assert model.tokenizer is not None
    corpus = encode_for(
        read_text(command.text),
        model.tokenizer,
        model.config.unit,
        one_a_line=model.config.one_a_line,
    )
    batches = evaluation_batches(corpus)
    progress, advance = tracked(console(), "evaluating", len(batches))

    def watched() -> Iterator[Any]:
        for batch in batches:
            yield batch
            advance()

    with progress:
        measured = evaluate(model, watched())
    if command.json:
        write_json(
            {
                "loss": measured.loss,
                "perplexity": measured.perplexity,
                "bits_per_token": measured.bits_per_token,
                "tokens": measured.tokens,
            }
        )
    else:
        sys.stdout.write(sentence(measured) + "\n")
    return 0


def generate(command: Generate) -> int:
    """`bptt generate`."""
    model = load_model(command.run)
    with as_input_error():
        text = model.generate(
            command.prompt,
            length=command.length,
            temperature=command.temperature,
            seed=command.seed,
        )
    sys.stdout.write((printable(text) if sys.stdout.isatty() else text) + "\n")
    return 0


def check_gradients(command: Check) -> int:
    """`bptt check`."""
    to = console()
    progress, advance = tracked(to, "checking", verify.CASES)
    with progress:
        certificates = verify.certify(lambda _: advance())
    failed = [c for c in certificates if not c.passed]
    if command.json:
        write_json(
            {
                "passed": not failed,
                "cases": [asdict(certificate) for certificate in certificates],
            }
        )
    else:
        sys.stdout.write(table(certificates))
    if failed:
        to.print(f"{len(failed)} of {len(certificates)} gradients are wrong.")
        return 4
    by = ", ".join(kernels.available())
    to.print(f"All {len(certificates)} gradients are right, by every kernel: {by}.")
    return 0


def _options(command: Train) -> Options:
    """The options of the command line, checked."""
    known = {field.name for field in fields(command)} & set(Options.__struct_fields__)
    values = {name: getattr(command, name) for name in known}
    if command.k2 not in (None, "full", "auto"):
        try:
            values["k2"] = int(command.k2 or "")
        except ValueError:
            raise InputError(
                f"--k2 must be a number of steps, full or auto; got {command.k2!r}"
            ) from None
    options = Options(**values)
    with as_input_error():
        check(options)
    return options


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used: {reason}") from error


def _new_model(
    model: ModelConfig, config: TrainingConfig, tokenizer: Tokenizer
) -> LanguageModel:
    torch.manual_seed(config.seed)
    try:
        return LanguageModel(model, tokenizer)
    except RuntimeError as error:  # torch's word for memory that is not there
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--hidden {model.hidden} and --layers {model.layers} are too large a "
            f"model for this machine: {reason}"
        ) from error


def _check_same_run(path: Path, model: LanguageModel, config: TrainingConfig) -> None:
    """Refuse to go on with other options than the run began with."""
    try:
        data = (path / CONFIG).read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(
            f"{path / CONFIG} cannot be read: {error.strerror}"
        ) from error
    now = {
        **msgspec.to_builtins(model.config),
        **msgspec.to_builtins(config),
    }
    before = msgspec.to_builtins(read_config(path / CONFIG, data))
    if (training := read_training(path / CONFIG, data)) is not None:
        before |= msgspec.to_builtins(training_of(path / CONFIG, training))
    other = [name for name in now if now[name] != before.get(name)]
    if other:
        name = other[0]
        raise InputError(
            f"--resume needs the options that the run began with: {name} was "
            f"{before.get(name)!r} and is {now[name]!r}"
        )


def _say_resumed(to: Console, trainer: Trainer) -> None:
    for error in trainer.folder.passed_over:
        to.print(f"A newer snapshot is not usable: {escape(printable(error))}")
    to.print(f"Going on from step {trainer.progress.step}.")
    before, now = trainer.progress.threads, torch.get_num_threads()
    if before not in (None, now):
        to.print(
            f"Warning: the run had {before} threads and now has {now}; sums in another "
            "order make other last digits, so it will not be bit for bit the same."
        )


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Say what failed and what is left, in one line."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(
            f"the run in {path} cannot be written: {error.strerror or error}; what was "
            f"saved before is whole: make room, then go on with --out {path} --resume"
        ) from error


def _free_name(command: Train) -> Path:
    """`runs/<text>-<cell>`, numbered if there is one already."""
    text = command.text[0].stem if command.text else "python"
    text = "".join(c if c.isalnum() or c in "-_" else "_" for c in text)[:60]
    name = f"{text or 'text'}-{command.cell}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _describe(
    to: Console, model: LanguageModel, config: TrainingConfig, train: int, valid: int
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    shape = model.config
    length = next(
        f"{value:.10g} {unit if value != 1 else unit[:-1]}"
        for unit in ("epochs", "steps", "minutes")
        if (value := getattr(config, unit)) is not None
    )
    to.print(
        f"{shape.cell.upper()}, {shape.layers} x {shape.hidden} units, "
        f"{parameters:,} parameters, {shape.vocab} kinds of {config.level} tokens; "
        f"{train:,} tokens to train on, {valid:,} held out; {config.optimizer}, "
        f"{length}."
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals received: the first is noted, a second one acts as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
