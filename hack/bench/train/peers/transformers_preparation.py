"""Preparation as transformers' example run_mlm.py does it: `transformers_preparation.py PLAN RESULT`."""

import json
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import PreTrainedTokenizerFast


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Seconds of its two passes, by which documents become rows on disk; reading them into Arrow comes before."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plan["tokenizer"])
    length = plan["max_length"]
    data = load_dataset("json", data_files=plan["documents"], split="train", cache_dir=plan["scratch"])

    def tokenized(examples: Any) -> Any:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def grouped(examples: Any) -> Any:
        whole = {key: list(chain(*examples[key])) for key in examples}
        total = len(whole["input_ids"]) // length * length
        return {key: [value[at : at + length] for at in range(0, total, length)] for key, value in whole.items()}

    began = time.perf_counter()
    data = data.map(tokenized, batched=True, num_proc=plan["processes"], remove_columns=["text"])
    data = data.map(grouped, batched=True, num_proc=plan["processes"])
    return {"seconds": time.perf_counter() - began, "rows": len(data), "tokens": len(data) * length}


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(main(plan)), encoding="utf-8")
