"""Text for recurrent language models: tokens, corpora, and batches without state."""

from bptt.text.batches import (
    IGNORE,
    Batch,
    SentenceBatches,
    StreamBatches,
    fit_batch,
)
from bptt.text.corpus import (
    Sentences,
    Stream,
    encode_sentences,
    encode_stream,
    hold_out_sentences,
    hold_out_text,
    python_reference,
    read_text,
    split_sentences,
)
from bptt.text.evaluation import (
    Evaluation,
    evaluation_sentences,
    evaluation_streams,
)
from bptt.text.tokens import Tokenizer
from bptt.text.vocabulary import Level, Vocabulary

__all__ = [
    "IGNORE",
    "Batch",
    "Evaluation",
    "Level",
    "SentenceBatches",
    "Sentences",
    "Stream",
    "StreamBatches",
    "Tokenizer",
    "Vocabulary",
    "encode_sentences",
    "encode_stream",
    "evaluation_sentences",
    "evaluation_streams",
    "fit_batch",
    "hold_out_sentences",
    "hold_out_text",
    "python_reference",
    "read_text",
    "split_sentences",
]
