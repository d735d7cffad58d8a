"""What is sent: real mails, in their own mix of lengths, and the models that read them."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
MAX_LENGTH = 512


@dataclass(frozen=True)
class Workload:
    """Texts of at most `MAX_LENGTH` tokens, their tokens as the model reads them, special tokens included.

    labels: what they are, where it is known.
    """

    texts: list[str]
    ids: list[list[int]]
    labels: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Tokens of each text."""
        return [len(each) for each in self.ids]


def data(name: str) -> Path:
    """One of the demo's files, fetched when it is missing."""
    command = [sys.executable, str(ROOT / "hack" / "demo"), "data"]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    return Path(folder) / name


def mails(artifact: Path, count: int = 500) -> Workload:
    """Mails of the demo's test part, all over their file."""
    lines = data("spam-test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: max(1, len(lines) // count)]][:count]
    texts = [str(row["text"]) for row in rows]
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [_cut(tokenizer, text) for text in texts]
    return Workload(texts, [encoding.ids for encoding in tokenizer.encode_batch(texts)], [row["label"] for row in rows])


def _cut(tokenizer: Tokenizer, text: str) -> str:
    """The text up to the last word that the model takes whole, so that nobody has to truncate: not all peers can."""
    encoding = tokenizer.encode(text)
    if len(encoding.ids) <= MAX_LENGTH:
        return text
    first_left_out = encoding.word_ids[MAX_LENGTH - 1]
    return text[
        : next(
            start
            for word, (start, _) in zip(encoding.word_ids, encoding.offsets, strict=True)
            if word == first_left_out
        )
    ]
