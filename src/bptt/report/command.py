"""The command line that trains a run again."""

from bptt.language_model import ModelConfig
from bptt.training import TrainingConfig


def command(model: ModelConfig, config: TrainingConfig) -> str:
    """`bptt train` with every option that shaped the run; TEXT stands for its texts."""
    words = ["bptt train TEXT"]

    def option(name: str, value: object) -> None:
        words.append(f"--{name} {value}")

    def switch(name: str, *, on: bool) -> None:
        words.append(f"--{name} {on}")

    option("cell", model.cell)
    option("hidden", model.hidden)
    option("layers", model.layers)
    option("embedding", model.embedding)
    switch("tied", on=model.tied)
    switch("bias", on=model.bias)
    option("dropout", f"{model.dropout:.10g}")
    option("level", config.level)
    if config.vocab is not None:
        option("vocab", config.vocab)
    option("unit", model.unit)
    if model.one_a_line:
        words.append("--one-a-line")
    if config.window is not None:
        option("window", config.window)
    if config.k1 is not None:
        option("k1", config.k1)
        option("k2", config.k2)
    option("batch", config.batch)
    option("optimizer", config.optimizer)
    option("lr", f"{config.lr:.10g}")
    option("clip", f"{config.clip:.10g}")
    option("weight-decay", f"{config.weight_decay:.10g}")
    for name in ("epochs", "steps", "minutes"):
        value = getattr(config, name)
        if value is not None:
            option(name, f"{value:.10g}")
    option("seed", config.seed)
    return " ".join(words)
