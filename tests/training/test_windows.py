"""Truncations across windows, held to what they mean.

An update counts the newest `window` outputs of each stream. Of every `k1` of them the
error goes back `k2` steps, which run again under the current weights from the detached
state kept before them. `literal` does that with torch.nn's layers, one chunk after
another, and lets autograd differentiate.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from bptt.training import Choice, Options, window_choice
from training.problems import corpus, trainer

HIDDEN = 5
STEPS = 16
# window, k1, k2
SETTINGS = {
    "k1 = k2 = window": (4, 4, 4),
    "full": (4, None, None),
    "k2 = 3 windows": (4, 4, 12),
    "k2 a little over a window": (4, 4, 5),
    "k1 below the window": (4, 2, 8),
    "k2 no multiple of k1": (6, 2, 5),
    "k2 within the window": (6, 2, 3),
    "per output": (4, 1, 4),
    "far across": (3, 1, 11),
    "k2 below k1": (6, 6, 2),
    "chunks": (6, 3, 3),
}


class Literal:
    """The run again: windows of the streams, states kept, gradients by autograd."""

    def __init__(self, run, window, k1, k2):
        self.batches, self.window = run.batches, window
        self.k1, self.k2 = k1 or window, k2 or window
        self.context = self.next_context = self.context_of(self.k2)
        cell = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
        self.parts = 2 if run.model.config.cell == "lstm" else 1
        self.layers = run.model.config.layers
        self.recurrent = cell[run.model.config.cell](
            run.model.config.vocab, HIDDEN, self.layers, dtype=torch.float64
        )
        self.kept = None  # the state before the segment of the next window
        self.begin = 0

    def context_of(self, k2):
        reach = max(0, k2 - self.k1)
        chunks = -(-reach // self.k1)
        return reach if self.k1 == self.window else chunks * self.k1

    def run(self, weights, ids, state):
        own = {
            name.removeprefix("recurrent."): weight
            for name, weight in weights.items()
            if name.startswith("recurrent.")
        }
        if not len(ids):
            return torch.zeros(0, ids.shape[1], HIDDEN, dtype=torch.float64), state
        x = F.one_hot(ids, self.recurrent.input_size).double()
        if state is None:
            zero = torch.zeros(self.layers, ids.shape[1], HIDDEN, dtype=torch.float64)
            state = (zero, zero) if self.parts == 2 else zero
        return functional_call(self.recurrent, own, (x, state))

    def gradients(self, weights, step):
        """Of the loss of window `step`, and the states of this update's forward run."""
        i = step % self.batches.steps_per_epoch
        begin, first = max(0, i * self.window - self.context), i * self.window
        if i == 0:
            self.kept = None
        rows = replace(self.batches, context=self.context).batch_at(step)
        ids = torch.from_numpy(rows.inputs)
        targets = torch.from_numpy(rows.targets)[first - begin :]
        leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        total = torch.zeros((), dtype=torch.float64)
        for a in range(first, first + self.window, self.k1):
            end = min(a + self.k1, first + self.window)
            b = max(0, a + self.k1 - self.k2)  # where the pass of this chunk begins
            fixed = {name: leaf.detach() for name, leaf in leaves.items()}
            before, state = self.run(fixed, ids[: b - begin], self.kept)
            after, _ = self.run(leaves, ids[max(b - begin, 0) : end - begin], state)
            h = torch.cat((before, after))[a - begin : end - begin]
            logits = F.linear(h, leaves["decoder.weight"], leaves["decoder.bias"])
            total = total + F.cross_entropy(
                logits.flatten(0, 1),
                targets[a - first : end - first].flatten(),
                reduction="sum",
            )
        (total / ids.shape[1]).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    def carry(self, before, after, step):
        """Keep the state before the next segment, under the weights of that time."""
        i = step % self.batches.steps_per_epoch
        begin = max(0, i * self.window - self.context)
        next_begin = max(0, (i + 1) * self.window - self.next_context)
        rows = replace(self.batches, context=self.context).batch_at(step)
        ids = torch.from_numpy(rows.inputs)[: next_begin - begin]
        # Where nothing overlaps, the window's own run gives it; else it runs again.
        weights = before if self.next_context == 0 else after
        with torch.no_grad():
            _, self.kept = self.run(weights, ids, self.kept)


def flat(state):
    return torch.cat([part.flatten() for part in state]) if state is not None else None


CELLS = (("rnn", 1), ("gru", 1), ("lstm", 2))
EVERYWHERE = ("k1 = k2 = window", "k2 = 3 windows", "k1 below the window")


@pytest.mark.parametrize(
    ("setting", "cell", "layers"),
    [
        (setting, *cell)
        for i, setting in enumerate(SETTINGS)
        for cell in (CELLS if setting in EVERYWHERE else [CELLS[i % 3]])
    ],
)
def test_every_update_is_the_literal_one(tmp_path, setting, cell, layers):
    window, k1, k2 = SETTINGS[setting]
    run, watcher = new_run(tmp_path, window, cell, layers, k1=k1, k2=k2)
    held_to(run, watcher, Literal(run, window, k1, k2))


# of each update, counted from 0: what is chosen in it, from 8 on
CHOICES = {1: 16, 2: 16, 4: 4, 5: 64, 6: 64, 10: 12, 11: 4, 13: 32}


@pytest.mark.parametrize(
    ("cell", "layers", "window", "k1"),
    [("rnn", 1, 4, 4), ("gru", 1, 4, 2), ("lstm", 2, 4, 4), ("lstm", 1, 6, 1)],
)
def test_every_update_is_the_literal_one_while_k2_is_chosen(
    tmp_path, monkeypatch, cell, layers, window, k1
):
    run, watcher = new_run(
        tmp_path, window, cell, layers, k1=k1, k2="auto", choose_every=1, k2_max=8 * k1
    )

    def scripted(model, text, search, seed, step):
        k2 = CHOICES.get(step)
        return Choice(k2, {} if k2 is None else {k2: 0.0})

    monkeypatch.setattr(window_choice, "choose", scripted)
    literal = Literal(run, window, k1, k1)
    in_effect = [k1]

    def follow(step):
        """A choice made in update `step` is for the next, a window more at most."""
        wanted = [k2 for at, k2 in CHOICES.items() if at <= step]
        literal.k2 = in_effect[-1]
        following = min([*wanted, k1][len(wanted) - 1], literal.k2 + window)
        literal.context = literal.context_of(literal.k2)
        literal.next_context = literal.context_of(following)
        in_effect.append(following)

    held_to(run, watcher, literal, follow)
    assert run.progress.k2 == in_effect[-1]
    assert len(set(in_effect)) > 4
    assert max(in_effect) > 3 * window


def new_run(folder, window, cell, layers, **options):
    data = corpus(Options(), n=25)
    run, watcher = trainer(
        folder,
        dtype=torch.float64,
        optimizer="sgd",
        bias=True,
        batch=data.train.tokens // (8 * window),
        data=data,
        lr=0.1,
        steps=STEPS,
        **{"cell": cell, "layers": layers, "hidden": HIDDEN, "window": window},
        **options,
    )
    assert 5 < run.batches.steps_per_epoch < 12  # so that an epoch ends on the way
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.uniform_(-0.7, 0.7, generator=generator)
    return run, watcher


def held_to(run, watcher, literal, follow=lambda step: None):
    """Run, and compare every update and the state that it hands on."""
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}

    def compare(run):
        step = run.progress.step - 1
        follow(step)
        expected = literal.gradients(before, step)
        found = {n: p.grad for n, p in run.model.named_parameters()}
        for name in expected:
            torch.testing.assert_close(
                found[name],
                expected[name],
                rtol=1e-9,
                atol=1e-12,
                msg=lambda text, name=name: f"d{name} at step {step}: {text}",
            )
        after = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        literal.carry(before, after, step)
        torch.testing.assert_close(
            None if run.state is None else flat(run.state),
            None if literal.kept is None else flat(literal.kept),
            rtol=1e-9,
            atol=1e-12,
        )
        parts = run.state if isinstance(run.state, tuple) else (run.state,)
        assert not any(part is not None and part.requires_grad for part in parts)
        before.update(after)

    watcher.after_step = compare
    run.run()
    assert run.progress.step == STEPS
