"""The recurrent language model: embedding or one-hot -> recurrent stack -> softmax.

With one-hot input, one tanh layer and no biases it is the tutorial's network:
`s_t = tanh(U x_t + W s_{t-1})`, `o_t = softmax(V s_t)` (Mikolov et al., "Recurrent
neural network based language model", 2010).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast, final

import msgspec
import safetensors.torch
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from safetensors import SafetensorError
from torch import Tensor

from bptt import storage, strict_json, tensor_header
from bptt.errors import CheckpointError
from bptt.escape import one_line
from bptt.modules import GRU, LSTM, RNN
from bptt.random_truncation import Policy
from bptt.tensor_header import Kind
from bptt.text.tokens import Tokenizer

State = Tensor | tuple[Tensor, Tensor]
CellName = Literal["rnn", "gru", "lstm"]
Unit = Literal["stream", "sentence"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
ONE_HOT_STD = 1.0
# In a config file: refuse nonsense before memory or patience do.
_LARGEST_WIDTH = 2**24
_MOST_LAYERS = 1024
_LARGEST_CONFIG = 1 << 16
_Width = Annotated[int, Meta(ge=1, le=_LARGEST_WIDTH)]  # a file's error names its path


class ModelConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """What a `LanguageModel` is built from; `config.json` holds it under "model".

    Attributes:
        vocab: number of token ids.
        cell: "rnn" (tanh), "gru" or "lstm".
        hidden: width of the state.
        layers: recurrent layers.
        embedding: width of the embedding; 0 for one-hot input.
        tied: whether the softmax uses the embedding's weights (Press & Wolf, 2017).
        bias: whether the recurrent layers and the softmax have biases.
        dropout: probability of dropping a unit of the embedding, between the layers
            and before the softmax.
        unit: what the model has learnt from: a continuous "stream", or single
            sentences from their start token to their end token ("sentence").
        one_a_line: whether a sentence is a line, not what the segmenter says.
    """

    vocab: _Width
    cell: CellName = "lstm"
    hidden: _Width = 512
    layers: Annotated[int, Meta(ge=1, le=_MOST_LAYERS)] = 1
    embedding: Annotated[int, Meta(ge=0, le=_LARGEST_WIDTH)] = 0
    tied: bool = False
    bias: bool = True
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    unit: Unit = "stream"
    one_a_line: bool = False

    def __post_init__(self) -> None:
        for name, smallest, largest in (
            ("vocab", 1, _LARGEST_WIDTH),
            ("hidden", 1, _LARGEST_WIDTH),
            ("layers", 1, _MOST_LAYERS),
            ("embedding", 0, _LARGEST_WIDTH),
        ):
            value = getattr(self, name)
            if not smallest <= value <= largest:
                raise ValueError(
                    f"{name} must be from {smallest} to {largest}; got {value}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout must be at least 0 and below 1; got {self.dropout}"
            )
        if self.tied and self.embedding != self.hidden:
            raise ValueError(
                f"tied weights need embedding = hidden = {self.hidden}; got "
                f"embedding = {self.embedding}"
            )


@final
class LanguageModel(torch.nn.Module):
    """A recurrent language model over token ids.

    Args:
        config: sizes and kind.
        tokenizer: what turns text into ids; needed for `generate` and saved along.
        truncation: which errors go how far back in training; None is full BPTT over
            the given ids.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None = None,
        truncation: Policy | None = None,
    ) -> None:
        super().__init__()
        if tokenizer is not None and tokenizer.size != config.vocab:
            raise ValueError(
                f"vocab must be the tokenizer's size, {tokenizer.size}; got "
                f"{config.vocab}"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.embedding = (
            torch.nn.Embedding(config.vocab, config.embedding)
            if config.embedding
            else None
        )
        self.recurrent = {"rnn": RNN, "gru": GRU, "lstm": LSTM}[config.cell](
            config.embedding or config.vocab,
            config.hidden,
            config.layers,
            bias=config.bias,
            dropout=config.dropout if config.layers > 1 else 0.0,
            truncation=truncation,
        )
        self.dropout = torch.nn.Dropout(config.dropout)
        self.decoder = torch.nn.Linear(config.hidden, config.vocab, bias=config.bias)
        if config.tied and self.embedding is not None:
            self.decoder.weight = self.embedding.weight
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """PyTorch's initial values, but for what holds a language model back at first.

        One-hot input picks out single columns of U, so their width is that of a
        pre-activation, not divided by the number of columns; the tutorial's network
        keeps the tutorial's. The forget gates get no head start: over streams whose
        state is carried for ever, c then drifted to where only carried states go, and
        a text begun from the zero state was predicted worse than by chance.
        """
        config = self.config
        if self.decoder.weight.is_meta:
            return  # only shapes are wanted, and torch would load a compiler for this
        if self.embedding is not None:
            torch.nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        elif config.cell == "rnn" and not config.bias:
            bound = config.vocab**-0.5
            torch.nn.init.uniform_(self.recurrent.weight_ih_l0, -bound, bound)
        else:
            torch.nn.init.normal_(self.recurrent.weight_ih_l0, std=ONE_HOT_STD)

    @property
    def truncation(self) -> Policy | None:
        """Which errors go how far back; may be set."""
        return cast(Policy | None, self.recurrent.truncation)

    @truncation.setter
    def truncation(self, value: Policy | None) -> None:
        self.recurrent.truncation = value

    def forward(
        self,
        ids: Int[Tensor, "time batch"],
        state: Any = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Float[Tensor, "time batch vocab"], Any]:
        """Logits of the token after each, and the state after the last.

        Args:
            ids: (time, batch) int64.
            state: as returned by an earlier call; None is the zero state.
            lengths: (batch,) int64, at least 1: the steps of each row, if they differ.

        Returns:
            Logits (time, batch, vocab), and the state, shaped as the recurrent
            module's.
        """
        x = ids if self.embedding is None else self.dropout(self.embedding(ids))
        y, state = self.recurrent(x, state, lengths=lengths)
        return self.decoder(self.dropout(y)), state

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Text that follows the prompt, prompt included.

        A sentence model starts at its start token and ends at its end token, or after
        `length` tokens; a stream model gives `length` tokens. The unknown token is
        never emitted. Costs one step of the network a token.

        Args:
            prompt: text to continue.
            length: tokens to add, at most.
            temperature: divides the logits; 0 takes the likeliest token each time.
            seed: of the sampling; the same seed gives the same text.

        Raises:
            ValueError: an argument is out of range, or the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer; give one to LanguageModel")
        prompt_ids = [int(i) for i in self.tokenizer.encode(prompt)]
        new = list(self.sample(prompt_ids, length, temperature, seed))
        return self.tokenizer.decode(prompt_ids + new)

    @torch.no_grad()
    def sample(
        self, prompt: list[int], length: int, temperature: float, seed: int
    ) -> Iterator[int]:
        """The sampled ids of `generate`, one at a time."""
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer; give one to LanguageModel")
        if length < 0:
            raise ValueError(f"length must be at least 0; got {length}")
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be at least 0; got {temperature}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2**63; got {seed}")
        device = self.decoder.weight.device
        generator = torch.Generator().manual_seed(seed)
        sentence = self.config.unit == "sentence"
        forbidden = [self.tokenizer.unknown_id, self.tokenizer.start_id]
        if not sentence:
            forbidden.append(self.tokenizer.end_id)
        start = [self.tokenizer.start_id] if sentence else []
        ids = start + prompt or [self.first_id]
        state = None
        was_training = self.training
        self.eval()
        try:
            for _ in range(length):
                given = torch.tensor(ids, device=device).unsqueeze(1)
                logits, state = self(given, state)
                last = logits[-1, 0].float().cpu()
                last[forbidden] = -torch.inf
                if temperature == 0:
                    ids = [int(last.argmax())]
                else:
                    # From the largest, in float64: a temperature of 1e-300 is no 0.
                    below = (last - last.max()).double()
                    p = torch.softmax(below / temperature, dim=-1)
                    ids = [int(torch.multinomial(p, 1, generator=generator))]
                if sentence and ids[0] == self.tokenizer.end_id:
                    return
                yield ids[0]
        finally:
            self.train(was_training)

    @property
    def first_id(self) -> int:
        """What text without a prompt begins after: the start token of a sentence, or a
        new line in a stream, if it has those.
        """
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer; give one to LanguageModel")
        if self.config.unit == "sentence":
            return self.tokenizer.start_id
        ids = [int(i) for i in self.tokenizer.encode("\n")]
        known = [i for i in ids if i != self.tokenizer.unknown_id]
        return known[-1] if known else self.config.vocab - 1

    def save_pretrained(
        self, folder: str | Path, *, training: dict[str, Any] | None = None
    ) -> None:
        """Write `config.json`, `model.safetensors`, `tokenizer.json`, `manifest.json`.

        Args:
            folder: made if it is not there.
            training: what the model was trained with, kept in `config.json`.

        Raises:
            OSError: the files cannot be written; the old ones stay.
        """
        config = {"format": 1, "model": msgspec.to_builtins(self.config)}
        if training is not None:
            config["training"] = training
        weights = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
            if not (self.config.tied and name == "decoder.weight")
        }
        files = {
            CONFIG: json.dumps(config, indent=2).encode(),
            WEIGHTS: safetensors.torch.save(weights),
        }
        if self.tokenizer is not None:
            files[TOKENIZER] = self.tokenizer.to_json().encode()
        storage.write_files(Path(folder), files)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LanguageModel":
        """The model saved in `folder`, in its dtype and evaluation mode, on the CPU.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the others.
        """
        folder = Path(folder)
        files = storage.read_files(folder, (CONFIG, WEIGHTS, TOKENIZER))
        for name in (CONFIG, WEIGHTS):
            if name not in files:
                raise CheckpointError(f"{folder / storage.MANIFEST} lists no {name}")
        config = read_config(folder / CONFIG, files[CONFIG])
        tokenizer = (
            _read_tokenizer(folder / TOKENIZER, files[TOKENIZER], config.vocab)
            if TOKENIZER in files
            else None
        )
        try:
            dtype = _checked_dtype(tensor_header.kinds(files[WEIGHTS]), config)
            weights = safetensors.torch.load(files.pop(WEIGHTS))
            model = cls(config, tokenizer).to(dtype)
            model.load_state_dict(weights, strict=not config.tied)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder / WEIGHTS}: {error}") from error
        return model.eval()


def read_config(path: Path, data: bytes) -> ModelConfig:
    """The "model" part of a `config.json`.

    Raises:
        CheckpointError: it is not ours, or a field is missing, unknown or out of range.
    """
    return _read_config_file(path, data).model


def read_training(path: Path, data: bytes) -> dict[str, Any] | None:
    """The "training" part of a `config.json`, if it has one.

    Raises:
        CheckpointError: as for `read_config`.
    """
    return _read_config_file(path, data).training


def _read_config_file(path: Path, data: bytes) -> "_ConfigFile":
    try:
        if len(data) > _LARGEST_CONFIG:
            raise ValueError(f"it has {len(data):,} bytes, too many for a {CONFIG}")
        return strict_json.convert(strict_json.loads(data), _ConfigFile)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


class _ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    model: ModelConfig
    training: dict[str, Any] | None = None


def _read_tokenizer(path: Path, data: bytes, vocab: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_json(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if tokenizer.size != vocab:
        raise CheckpointError(
            f"{path} has {tokenizer.size} tokens and {CONFIG} says {vocab}"
        )
    return tokenizer


def _checked_dtype(found: dict[str, Kind], config: ModelConfig) -> torch.dtype:
    """The dtype of weights that fit the configuration."""
    expected = _shapes(config)
    if wrong := sorted(
        name
        for name in found.keys() | expected.keys()
        if name not in found or found[name].shape != expected.get(name)
    ):
        names = ", ".join(one_line(name[:60]) for name in wrong[:4])
        raise ValueError(f"the tensors {names} do not fit {CONFIG}")
    dtypes = {kind.dtype for kind in found.values()}
    dtype = dtypes.pop()
    if dtypes or dtype is None:
        raise ValueError("the weights must be floats of one dtype; they are not")
    return dtype


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What the weights of such a model look like, without making one."""
    with torch.device("meta"):
        model = LanguageModel(config)
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not (config.tied and name == "decoder.weight")
    }
