"""Masked language modelling with transformers' Trainer: `transformers_mlm.py PLAN RESULT`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)


class Recorder(TrainerCallback):
    """Keeps when each step ended, and the real tokens until then."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.steps.append((time.perf_counter(), 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.steps.append((time.perf_counter(), self.tokens))


class Counting(DataCollatorForLanguageModeling):
    """Counts what it hands out."""

    recorder: Recorder

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        batch = super().__call__(features, return_tensors)
        self.recorder.tokens += int((batch["input_ids"] != self.tokenizer.pad_token_id).sum())
        return batch


def rows(plan: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Any:
    """The data set, tokenized in the way that the plan asks for."""
    length, way = plan["max_length"], plan["way"]
    data = load_dataset("json", data_files=plan["documents"], split="train", cache_dir=plan["cache"])

    def cut(examples: Any) -> Any:
        texts = examples["text"]
        if way.startswith("text-"):
            texts = [line for text in texts for line in text.splitlines() if line.strip()]
        return tokenizer(
            texts, truncation=True, max_length=length, padding="max_length" if way.endswith("padded") else False
        )

    def joined(examples: Any) -> Any:
        encoded = tokenizer(examples["text"], return_special_tokens_mask=True)
        whole = {key: [item for part in encoded[key] for item in part] for key in encoded}
        total = len(whole["input_ids"]) // length * length
        return {key: [value[at : at + length] for at in range(0, total, length)] for key, value in whole.items()}

    return data.map(joined if way == "chunks" else cut, batched=True, remove_columns=data.column_names)


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Train, and leave the weights where the plan says."""
    torch.set_num_threads(plan["threads"])
    set_seed(plan["seed"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plan["tokenizer"])
    began = time.perf_counter()
    data = rows(plan, tokenizer)
    prepared = time.perf_counter() - began
    model = BertForMaskedLM(BertConfig(**plan["model"]))
    recorder = Recorder()
    collator = Counting(tokenizer=tokenizer, mlm_probability=0.15)
    collator.recorder = recorder
    arguments = TrainingArguments(
        output_dir=plan["scratch"],
        max_steps=plan["steps"],
        per_device_train_batch_size=plan["batch"],
        learning_rate=plan["learning_rate"],
        warmup_steps=plan["warmup"],
        weight_decay=0.01,
        use_cpu=True,
        bf16=plan["bf16"],
        fp16=plan["fp16"],
        save_strategy="no",
        report_to="none",
        logging_steps=1_000_000,
        disable_tqdm=True,
        seed=plan["seed"],
    )
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=[recorder]).train()
    if plan.get("weights"):
        model.save_pretrained(plan["weights"])
    return {"steps": recorder.steps, "prepared_seconds": prepared}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))), encoding="utf-8")
