"""Fine-tuning as transformers' examples run_glue.py and run_ner.py do it: `transformers_tasks.py PLAN RESULT`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

_IGNORED = -100


class Clock(TrainerCallback):
    """When the first step began, and the last one ended."""

    began = ended = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.ended = time.perf_counter()


def examples(path: str, plan: dict[str, Any], tokenizer: Any, labels: list[str]) -> Dataset:
    """Tokenized examples; of words the first piece alone has a label."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]

    def text(row: Any) -> Any:
        return {
            **tokenizer(row["text"], truncation=True, max_length=plan["length"]),
            "labels": labels.index(row["label"]),
        }

    def words(row: Any) -> Any:
        encoded = tokenizer(row["tokens"], truncation=True, max_length=plan["length"], is_split_into_words=True)
        numbers, last = [], None
        for word in encoded.word_ids():
            numbers.append(_IGNORED if word is None or word == last else labels.index(row["labels"][word]))
            last = word
        return {**encoded, "labels": numbers}

    return Dataset.from_list([(words if plan["words"] else text)(row) for row in rows])


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Train; the label of each test example, or of each of its words that the model saw, and the seconds."""
    torch.set_num_threads(plan["threads"])
    set_seed(plan["seed"])
    labels: list[str] = plan["labels"]
    tokenizer = AutoTokenizer.from_pretrained(plan["encoder"])
    named = dict(enumerate(labels))
    kind = AutoModelForTokenClassification if plan["words"] else AutoModelForSequenceClassification
    model = kind.from_pretrained(
        plan["encoder"], id2label=named, label2id={label: number for number, label in named.items()}
    )
    train, test = (examples(plan[part], plan, tokenizer, labels) for part in ("train", "test"))
    arguments = TrainingArguments(
        output_dir=plan["scratch"],
        num_train_epochs=plan["epochs"],
        per_device_train_batch_size=plan["batch"],
        per_device_eval_batch_size=32,
        learning_rate=plan["learning_rate"],
        warmup_steps=plan["warmup"],
        weight_decay=0.01,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_steps=1_000_000,
        disable_tqdm=True,
        seed=plan["seed"],
    )
    clock = Clock()
    collator = (DataCollatorForTokenClassification if plan["words"] else DataCollatorWithPadding)(tokenizer)
    trainer = Trainer(model=model, args=arguments, train_dataset=train, data_collator=collator, callbacks=[clock])
    trainer.train()
    found = trainer.predict(test)
    said = found.predictions.argmax(-1)
    if plan["words"]:
        answers = [
            [labels[each] for each, true in zip(*pair, strict=True) if true != _IGNORED]
            for pair in zip(said, found.label_ids, strict=True)
        ]
    else:
        answers = [[labels[each]] for each in said]
    return {"answers": answers, "seconds": clock.ended - clock.began}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
