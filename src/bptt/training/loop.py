"""The training loop: one update a batch, measured on held-out text on the way."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, final

import msgspec
import numpy as np
import torch

from bptt.errors import InputError
from bptt.language_model import LanguageModel
from bptt.tensor_header import Kind
from bptt.text import Batch, Stream, StreamBatches
from bptt.training import nonfinite, snapshot_tensors
from bptt.training.carried import carried, first_finite
from bptt.training.clock import Clock
from bptt.training.config import TrainingConfig
from bptt.training.data import Corpus, training_batches
from bptt.training.evaluation import Measurement, evaluate, summed_loss
from bptt.training.nonfinite import Diverged
from bptt.training.optimizer import (
    gradient_norm,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from bptt.training.reporter import Reporter
from bptt.training.run_folder import METRICS, TIMINGS, Progress, RunFolder
from bptt.training.window_choice import ChosenWindow

EVALUATIONS = 10  # on the way, evenly over the run
LARGEST_RESERVE = 0.1  # of a run of so many minutes, for the measurement at its end
_TIMING_EVERY_S = 1.0


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """The run was asked to stop and has saved its state."""


@final
class Trainer:
    """Trains a model on batches that are a function of seed and step.

    Args:
        model: trained in place.
        config: how.
        corpus: training and held-out text.
        folder: where the best model, the metrics and the snapshots go.
        reporter: told after each update and each measurement.
        stop_requested: asked after each update; once it is true, a snapshot is saved
            and `Stopped` raised.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: TrainingConfig,
        corpus: Corpus,
        folder: RunFolder,
        reporter: Reporter,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self.config = config
        self.corpus = corpus
        self.batches = training_batches(corpus, config)
        self.folder = folder
        self.reporter = reporter
        self.stop_requested = stop_requested
        self.model.truncation = config.truncation(config.first_k2)
        self.device = torch.device(config.device)
        self.model.to(self.device)
        self.optimizer = make_optimizer(model, config)
        self.progress = Progress(data=corpus.digest)
        self.chosen_window: ChosenWindow | None = None
        if config.k2 == "auto":
            assert isinstance(corpus.train, Stream)
            assert isinstance(self.batches, StreamBatches)
            self.chosen_window = ChosenWindow(config, corpus.train, self.batches)
        self.state: Any = None
        self.clock = Clock()
        self._reserve_s = 0.0
        self._losses: list[float] = []
        self._evaluated = 0

    @property
    def share_done(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return self._share_at(self.progress.step)

    def run(self) -> Measurement:
        """Train to the end.

        Returns:
            The loss of the best model on all held-out text; that model is in the
            folder and in `model`.

        Raises:
            Stopped: it was asked to.
            FloatingPointError: a loss or gradient is not finite, and the policy of the
                run is at its end; the weights are those before that step.
            OSError: the disk is full, and so on; the snapshots from before stay.
        """
        self.clock.started_s = time.monotonic()
        while True:
            try:
                self._train()
                return self._finish()
            except Diverged as error:
                self._go_back(error)

    def _train(self) -> None:
        if self.progress.last_valid is None:
            self._evaluate()
            self.folder.flush()
            if self.config.on_nonfinite == "rollback":
                self._snapshot()  # so that there is always one to go back to
        self.model.train()
        last_timing_s, tokens = self.clock.elapsed_s, 0
        while self.progress.step == 0 or self.share_done < 1:
            batch = self._next_batch()
            loss = self._update(batch)
            if math.isfinite(loss):
                self._losses.append(loss)
            tokens += batch.tokens
            now_s = self.clock.elapsed_s
            rate = tokens / max(1e-9, now_s - last_timing_s)
            if now_s - last_timing_s >= _TIMING_EVERY_S:
                self.folder.append(
                    TIMINGS,
                    {
                        "step": self.progress.step,
                        "elapsed_s": round(now_s, 3),
                        "tokens_per_s": round(rate, 1),
                    },
                )
                last_timing_s, tokens = now_s, 0
            share = self.share_done
            self.reporter.on_step(share, loss, rate)
            if share < 1 and int(share * EVALUATIONS) > self._evaluated:
                self._evaluate()
                self._snapshot()
            elif self._snapshot_due():
                self._snapshot()
            if self.stop_requested():
                self._write_snapshot()
                raise Stopped

    def resume(self) -> bool:
        """Go on from the newest snapshot; whether there was one.

        Raises:
            InputError: the run began with other texts.
            CheckpointError: no snapshot is usable.
        """
        if not self._load():
            return False
        self.clock.before_s = self.progress.elapsed_s
        self._evaluated = int(self.share_done * EVALUATIONS)
        return True

    def _load(self, at_most: int | None = None) -> bool:
        loaded = self.folder.load_snapshot(self._check, at_most)
        if loaded is None:
            return False
        progress, tensors = loaded
        self.state = snapshot_tensors.restore(self.model, self.optimizer, tensors)
        self.progress = progress
        return True

    def _check(self, progress: Progress, kinds: Mapping[str, Kind]) -> None:
        """Refuse the snapshot of another run."""
        if progress.data != self.corpus.digest:
            raise InputError(
                "--resume needs the texts that the run began with; these are others"
            )
        streams = (
            self.batches.batch if isinstance(self.batches, StreamBatches) else None
        )
        snapshot_tensors.check(self.model, self.optimizer, streams, kinds)
        largest = self.config.k2_max or 0
        if max(progress.k2 or 0, progress.chosen_k2 or 0) > largest:
            raise ValueError(f"its k2 is above the run's largest, {largest}")

    def _go_back(self, error: Diverged) -> None:
        """To the newest snapshot, with a smaller learning rate; or raise `error`."""
        if self.config.on_nonfinite != "rollback":
            raise error
        self.folder.drop_waiting()
        if not self._load(self.progress.anchor):
            raise error
        progress = self.progress
        if progress.rollbacks == nonfinite.MOST_ROLLBACKS:
            raise Diverged(
                f"{error}; it did so after {progress.rollbacks} rollbacks, each with "
                "half the learning rate"
            ) from error
        progress.rollbacks += 1
        progress.backoff *= nonfinite.BACKOFF
        progress.rolled_back = str(error)
        self._losses.clear()
        self._evaluated = int(self.share_done * EVALUATIONS)
        self.folder.drop_after(progress.step)  # else a resume would begin there
        self._write_snapshot()

    def _share_at(self, step: int) -> float:
        config = self.config
        if config.minutes is not None:
            budget_s = config.minutes * 60
            budget_s -= min(self._reserve_s, LARGEST_RESERVE * budget_s)
            return min(1.0, self.clock.elapsed_s / budget_s)
        total = config.steps
        if config.epochs is not None:
            total = config.epochs * self.batches.steps_per_epoch
        assert total is not None
        return min(1.0, step / total)

    def _next_batch(self) -> Batch:
        """That of this step; with `--k2 auto` after the choice that is due."""
        window, progress = self.chosen_window, self.progress
        if window is None:
            return self.batches.batch_at(progress.step)
        if window.search.is_due(progress.step):
            self._choose(window)
        self.model.truncation = self.config.truncation(window.k2(progress))
        return window.batch(progress)

    def _choose(self, window: ChosenWindow) -> None:
        progress, started_s = self.progress, time.monotonic()
        before = progress.chosen_k2 or window.search.k1
        choice = window.choose(self.model, progress)
        took_s = time.monotonic() - started_s
        progress.choosing_s += took_s
        # Told as part of the update that follows, so that a resume drops both or none.
        step = progress.step + 1
        self.folder.append(
            METRICS,
            {
                "step": step,
                "k2": progress.chosen_k2 or before,
                "bias": choice.bias,
                "biases": {str(k2): bias for k2, bias in choice.biases.items()},
            },
        )
        self.folder.append(TIMINGS, {"step": step, "choosing_k2_s": round(took_s, 3)})
        self.reporter.on_choice(step, before, choice)

    def _update(self, batch: Batch) -> float:
        """One step of the optimiser; the loss in nats per token."""
        step = self.progress.step
        if self.model.config.dropout:  # a function of seed and step, too
            seed = np.random.SeedSequence([self.config.seed, step])
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        inputs = torch.from_numpy(batch.inputs).to(self.device)
        targets = torch.from_numpy(batch.targets).to(self.device)
        before = None if batch.starts else self.state
        logits, after = self.model(inputs, before)
        total = summed_loss(logits, targets)
        # AdamW takes the mean over tokens. SGD takes what the tutorial differentiates,
        # the sum over a sentence, averaged over the sentences.
        parts = batch.tokens if self.config.optimizer == "adamw" else inputs.shape[1]
        self.optimizer.zero_grad()
        (total / parts).backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(self.model.parameters(), self.config.clip)
        loss = total.item() / batch.tokens
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._left_out(
                f"loss {loss}, gradient norm {norm}",
                carried(self.model, inputs, before, after, batch.next_start),
            )
        rate = learning_rate(self.config, self._share_at(step + 1), self.progress.scale)
        rate *= self.progress.backoff
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.state = carried(self.model, inputs, before, after, batch.next_start)
        self.progress.skipped_in_a_row = 0
        self._updated({"loss": loss, "gradient_norm": norm, "learning_rate": rate})
        return loss

    def _left_out(self, what: str, after: Any) -> float:
        """An update whose numbers are not finite, by the policy of the run; NaN."""
        progress = self.progress
        if self.config.on_nonfinite != "skip":
            raise self._diverged(what)
        if progress.skipped_in_a_row == nonfinite.MOST_SKIPS:
            raise self._diverged(
                f"{what}, after {nonfinite.MOST_SKIPS} updates in a row that were "
                "skipped for that"
            )
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self.state = first_finite(after, self.state)
        self._updated({"skipped": what})
        return math.nan

    def _updated(self, record: dict[str, Any]) -> None:
        """Count an update, and tell it."""
        progress = self.progress
        if self.chosen_window is not None:
            progress.k2 = self.chosen_window.next_k2(progress)
        progress.step += 1
        if progress.rolled_back is not None:
            record["rolled_back"] = progress.rolled_back
            progress.rolled_back = None
        self.folder.append(METRICS, {"step": progress.step, **record})

    def _diverged(self, what: str) -> Diverged:
        return nonfinite.diverged(what, self.progress.step, self.config)

    def _evaluate(self) -> None:
        """Measure on part of the held-out text; keep the best model."""
        started_s = self.clock.elapsed_s
        evaluation = evaluate(self.model, self.corpus.quick_validation)
        if not math.isfinite(evaluation.loss):
            raise self._diverged(f"validation loss {evaluation.loss}")
        took_s = self.clock.elapsed_s - started_s
        # A run of so many minutes keeps time for the measurement at its end; not much,
        # since on a busy machine a single measurement can take very long.
        self._reserve_s = took_s * self.corpus.held_out.tokens / evaluation.tokens
        self._evaluated = int(self.share_done * EVALUATIONS)
        progress = self.progress
        self.folder.append(
            METRICS,
            {
                "step": progress.step,
                "valid_loss": evaluation.loss,
                "valid_tokens": evaluation.tokens,
            },
        )
        if progress.last_valid is not None and evaluation.loss > progress.last_valid:
            progress.scale /= 2
        progress.last_valid = evaluation.loss
        if progress.best_valid is None or evaluation.loss < progress.best_valid:
            progress.best_valid = evaluation.loss
            self._save_model()
        mean = sum(self._losses) / len(self._losses) if self._losses else math.nan
        self._losses.clear()
        self.reporter.on_evaluation(progress.step, mean, evaluation)

    def _finish(self) -> Measurement:
        self._evaluate()
        best = LanguageModel.from_pretrained(self.folder.path)
        self.model.load_state_dict(best.state_dict())
        evaluation = evaluate(self.model, self.corpus.validation)
        if not math.isfinite(evaluation.loss):
            raise self._diverged(f"validation loss {evaluation.loss}")
        self.folder.append(
            METRICS,
            {
                "step": self.progress.step,
                "valid_loss": evaluation.loss,
                "valid_tokens": evaluation.tokens,
                "final": True,
            },
        )
        self.folder.flush()
        return evaluation

    def _save_model(self) -> None:
        self.model.save_pretrained(
            self.folder.path, training=msgspec.to_builtins(self.config)
        )

    def _snapshot_due(self) -> bool:
        every = self.config.snapshot_every
        return every > 0 and self.progress.step % every == 0

    def _snapshot(self) -> None:
        """Save one that is due, as it would be in a run that is never stopped."""
        self.progress.rollbacks = 0
        self.progress.anchor = self.progress.step
        self._write_snapshot()

    def _write_snapshot(self) -> None:
        self.progress.elapsed_s = self.clock.elapsed_s
        self.progress.threads = torch.get_num_threads()
        tensors = snapshot_tensors.packed(self.model, self.optimizer, self.state)
        if not nonfinite.all_finite(tensors.values()):
            raise self._diverged("weights, or what the optimiser keeps, not finite")
        self.folder.save_snapshot(self.progress, tensors)
