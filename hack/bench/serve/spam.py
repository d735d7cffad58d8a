"""A classifier of mails that has learnt something: MiniLM, fine-tuned once on the demo's training part.

python hack/bench/serve/spam.py ENCODER MAILS FOLDER writes a model in Hugging Face's format; a quarter of an hour.
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from cloze_trainer.data.order import Order

LABELS = ("ham", "spam")
# Subject and first lines say what a mail is; whole ones would take an hour.
_LENGTH = 64
_BATCH = 16
_LEARNING_RATE = 1e-4


def train(encoder: Path, mails: Path, target: Path) -> None:
    """One pass over the mails, `{"text": …, "label": …}` a line."""
    rows = [json.loads(line) for line in mails.read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    named = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, id2label=named, label2id={label: number for number, label in named.items()}
    )
    # Two thirds of the weights, which so few mails teach nothing.
    model.base_model.embeddings.requires_grad_(False)
    order = Order(len(rows), _BATCH, 0)
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=_LEARNING_RATE)
    steps = order.steps_per_epoch
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for step in range(steps):
        batch = [rows[number] for number in order.step(step)[0]]
        encoded = tokenizer(
            [row["text"] for row in batch], truncation=True, max_length=_LENGTH, padding=True, return_tensors="pt"
        )
        truth = torch.tensor([LABELS.index(row["label"]) for row in batch])
        loss = functional.cross_entropy(model(**encoded).logits, truth)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type here
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.eval()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
