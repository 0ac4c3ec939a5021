"""Pre-train a tiny Llama, grow it in memory, train on: under a minute on two cores, no downloads.

    python train.py OUT

The text is the source code of Python's own standard library, one token for each byte.
"""

import argparse
import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

import growkit

RECIPE = Path(__file__).with_name("recipe.yaml")  # twice as wide, twice as deep, some noise
LENGTH = 128  # bytes of one sample
Samples = list[dict[str, torch.Tensor]]


def text() -> tuple[Samples, Samples]:
    """Samples to train on, and others, of every tenth module, to measure the loss on."""
    train, held_out = bytearray(), bytearray()
    for number, path in enumerate(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))):
        (train if number % 10 else held_out).extend(path.read_bytes())
    return samples(train), samples(held_out)[:256]


def samples(data: bytearray) -> Samples:
    """Rows of LENGTH bytes; a causal model shifts the labels itself."""
    tokens = torch.frombuffer(data, dtype=torch.uint8).long()
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(model: LlamaForCausalLM, data: Samples, held_out: Samples, **settings: int) -> Trainer:
    """A Trainer with an optimiser of its own (AdamW) and a learning rate that warms up."""
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is saved there
        learning_rate=2e-3,
        lr_scheduler_type="constant_with_warmup",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=64,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **settings,
    )
    made = Trainer(model, arguments, train_dataset=data, eval_dataset=held_out)
    made.remove_callback(PrinterCallback)
    return made


def tell(when: str, trainer: Trainer) -> None:
    """Measure the loss on the held-out text, and print it."""
    loss, size = trainer.evaluate()["eval_loss"], trainer.model.num_parameters()
    print(f"{when:<24} {size:>9,} parameters  loss {loss:.6f}", flush=True)


def main() -> None:
    """All of it, in order."""
    parser = argparse.ArgumentParser(description="Train a tiny Llama, grow it, train on.")
    parser.add_argument("out", help="folder for the final model")
    parser.add_argument("--steps", type=int, default=150, help="before growth, and again after it")
    chosen = parser.parse_args()
    set_seed(0)
    data, held_out = text()

    small = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
        )
    )
    before = trainer(small, data, held_out, max_steps=chosen.steps, warmup_steps=20)
    before.train()
    tell("small, trained", before)

    weights, config = growkit.grow_state_dict(small.state_dict(), small.config, RECIPE)
    big = LlamaForCausalLM(LlamaConfig.from_dict(config))
    big.load_state_dict(weights)

    # A new Trainer is a new optimiser. AdamW's moments are of the shapes of the small model, and
    # growkit does not grow them: they start at zero, and until they are worth something a full
    # learning rate would undo what the model knows. So it warms up again, and for longer. The seed
    # gives the samples another order than before.
    after = trainer(big, data, held_out, max_steps=chosen.steps, warmup_steps=50, seed=1)
    tell("grown, not trained yet", after)  # as before growth: the recipe keeps the function
    after.train()
    tell("grown, trained", after)
    big.save_pretrained(chosen.out)


if __name__ == "__main__":
    main()
