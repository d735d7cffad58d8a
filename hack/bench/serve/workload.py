"""What is sent: real mails, in their own mix of lengths, and the models that read them."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
MAX_LENGTH = 256


@dataclass(frozen=True)
class Workload:
    """Texts, and their tokens as the model reads them (truncated to `MAX_LENGTH`, special tokens included)."""

    texts: list[str]
    ids: list[list[int]]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each text."""
        return [len(each) for each in self.ids]


def mails(artifact: Path, count: int = 500) -> Workload:
    """Mails of the demo's test part, all over their file."""
    command = [sys.executable, str(ROOT / "hack" / "demo"), "data"]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    lines = (Path(folder) / "spam-test.jsonl").read_text(encoding="utf-8").splitlines()
    # A body that a client may send without options: whatever is longer is cut at the same place for everybody.
    texts = [str(json.loads(line)["text"]) for line in lines[:: max(1, len(lines) // count)]][:count]
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.no_padding()
    return Workload(texts, [encoding.ids for encoding in tokenizer.encode_batch(texts)])
