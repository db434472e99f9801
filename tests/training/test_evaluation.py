import math

import numpy as np
import pytest
import torch

from bptt.language_model import LanguageModel, ModelConfig
from bptt.text import (
    IGNORE,
    Batch,
    Stream,
    Tokenizer,
    encode_sentences,
    encode_stream,
)
from bptt.training import Measurement, encode_for, evaluate, evaluation_batches
from bptt.training.evaluation import summed_loss
from training.problems import lines, text


def model_for(tokenizer, **options):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab=tokenizer.size, **{"hidden": 7, "layers": 2, "dropout": 0.5, **options}
    )
    model = LanguageModel(config, tokenizer).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def losses(model, ids):
    """`-log p` of every id but the first, one step at a time."""
    found, state = [], None
    with torch.no_grad():
        for given, wanted in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
            logits, state = model(torch.tensor([[given]]), state)
            found.append(-logits[0, 0].log_softmax(-1)[wanted].item())
    return found


@pytest.mark.parametrize(("cell", "lines"), [("rnn", 1), ("gru", 3), ("lstm", 30)])
def test_a_stream_counts_every_token_but_the_first(cell, lines):
    tokenizer = Tokenizer.train(text(), "char")
    corpus = encode_stream(text(lines, seed=1), tokenizer)
    assert lines < 30 or len(corpus.ids) > 512  # more than two windows
    model = model_for(tokenizer, cell=cell)
    measured = evaluate(model, evaluation_batches(corpus))
    expected = losses(model, corpus.ids)
    assert measured.tokens == len(expected) == len(corpus.ids) - 1
    assert measured.loss == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_sentences_count_every_token_but_their_start():
    tokenizer = Tokenizer.train(text(), "word")
    corpus = encode_sentences([*lines(40, seed=1), "the cat"], tokenizer)
    model = model_for(tokenizer, cell="lstm", unit="sentence", embedding=3)
    measured = evaluate(model, evaluation_batches(corpus))
    each = [losses(model, corpus[i]) for i in range(len(corpus))]
    expected = [loss for sentence in each for loss in sentence]
    assert measured.tokens == len(expected) == corpus.tokens
    assert measured.loss == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_encode_for_reads_as_the_model_was_trained():
    tokenizer = Tokenizer.train(text(), "word")
    stream = encode_for("the cat. A\ndog", tokenizer, "stream", one_a_line=False)
    assert tokenizer.decode(stream.ids) == "the cat. a dog"
    whole = encode_for(
        "The cat sat. A\ndog ran.", tokenizer, "sentence", one_a_line=False
    )
    by_line = encode_for(
        "The cat sat. A\ndog ran.", tokenizer, "sentence", one_a_line=True
    )
    assert [tokenizer.decode(s) for s in whole] == ["the cat sat.", "a dog ran."]
    assert [tokenizer.decode(s) for s in by_line] == ["the cat sat. a", "dog ran."]


def test_ignored_targets_count_for_nothing():
    logits = torch.randn(3, 2, 5, dtype=torch.float64)
    targets = torch.tensor([[1, IGNORE], [IGNORE, IGNORE], [4, 0]])
    log_p = logits.log_softmax(-1)
    expected = -(log_p[0, 0, 1] + log_p[2, 0, 4] + log_p[2, 1, 0])
    torch.testing.assert_close(summed_loss(logits, targets), expected)


def test_the_state_is_carried_where_a_batch_does_not_start():
    tokenizer = Tokenizer.train(text(), "char")
    model = model_for(tokenizer)
    ids = encode_stream(text(), tokenizer).ids[:21].astype(np.int64)[:, None]

    def batch(begin, end, starts):
        return Batch(ids[begin:end], ids[begin + 1 : end + 1], starts, end - begin)

    whole = evaluate(model, [batch(0, 20, True)])
    carried = evaluate(model, [batch(0, 7, True), batch(7, 20, False)])
    again = evaluate(model, [batch(0, 7, True), batch(7, 20, True)])
    assert carried.loss == pytest.approx(whole.loss, rel=1e-12)
    assert abs(again.loss - whole.loss) > 1e-4


def test_the_mode_is_restored_and_nothing_is_dropped():
    tokenizer = Tokenizer.train(text(), "char")
    model = model_for(tokenizer)
    batches = evaluation_batches(encode_stream(text(4), tokenizer))
    expected = evaluate(model, batches)
    assert not model.training
    model.train()
    assert evaluate(model, batches) == expected
    assert model.training
    assert model.recurrent.training
    with pytest.raises(RuntimeError):
        evaluate(model, _breaking(batches))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def _breaking(batches):
    yield from batches
    raise RuntimeError("no more")


def test_nothing_to_predict():
    tokenizer = Tokenizer.train(text(), "char")
    with pytest.raises(ValueError, match="there is no token to predict"):
        evaluate(model_for(tokenizer), [])


def test_perplexity_and_bits():
    measured = Measurement(loss=math.log(8), tokens=3)
    assert measured.perplexity == pytest.approx(8, rel=1e-12)
    assert measured.bits_per_token == pytest.approx(3, rel=1e-12)
    assert Measurement(loss=0.0, tokens=1).perplexity == 1
    assert Measurement(loss=699.0, tokens=1).perplexity == math.exp(699)
    assert Measurement(loss=1e4, tokens=1).perplexity == math.inf


def test_an_untrained_model_knows_nothing():
    ids = np.arange(3, 13, dtype=np.int32)
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab=20, hidden=4))
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.zero_()
    measured = evaluate(model, evaluation_batches(Stream(ids)))
    assert measured.tokens == 9
    assert measured.perplexity == pytest.approx(20, rel=1e-6)
