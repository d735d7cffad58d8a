"""A model for token classification in Hugging Face's format, that finds the names of people in a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloze_api.people import Names
from cloze_api.task import Task
from cloze_trainer import huggingface
from cloze_trainer.adoption import Given, find_model, named_model, need_model
from cloze_trainer.console import log
from cloze_trainer.data.names import NameFilter, Probabilities, people
from cloze_trainer.data.source import SourceFiles
from cloze_trainer.errors import InputError
from cloze_trainer.origin import Named
from cloze_trainer.run import Run

# Longer windows cost more for each token, and a name needs no more around it.
_LONGEST_WINDOW = 256


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a job names, whose files may be gone. digest: of them."""

    run: Run
    asked: Names
    named: Named
    given: Given

    @property
    def source(self) -> tuple[Named, SourceFiles]:
        """Where it comes from, and what is there."""
        return self.named, self.given.found

    @property
    def digest(self) -> str:
        """Of its files."""
        return self.given.digest

    def load(self) -> NameFilter:
        """Raises InputError where it can't be loaded, knows no people, or isn't there any more."""
        given = need_model(self.run, self.named, self.given)
        with given.folder(self.run.workspace) as folder:
            found = _load(folder, self.asked, self.asked.uri)
        given.found.check_unchanged()
        return found


def find(run: Run, asked: Names) -> FoundModel:
    """The model, by its files. Raises InputError, TrainerError when nobody answers."""
    named = named_model(asked.uri, asked.revision, asked.credentials)
    return FoundModel(run, asked, named, find_model(run, named))


def _load(folder: Path, asked: Names, where: str) -> NameFilter:
    # torch and transformers take seconds to import, and a corpus is cleaned once.
    import torch  # noqa: PLC0415

    from cloze_trainer import conversion  # noqa: PLC0415

    checkpoint = huggingface.read(folder, Task.TOKEN_CLASSIFICATION)
    classes = people(checkpoint.labels, asked.labels, where)
    model, told = conversion.load_model(folder, Task.TOKEN_CLASSIFICATION)
    if missing := sorted(told["missing_keys"]):
        raise InputError("WeightsMissing", f"{where} has no weights for {missing[0]}: name another model")
    loaded, tokenizer = conversion.load_tokenizer(folder)
    special = conversion.find_special_tokens(folder, loaded, tokenizer, mask=False, vocab_size=checkpoint.vocab_size)
    longest = int(min(_LONGEST_WINDOW, checkpoint.positions, loaded.model_max_length))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    log("names model loaded", uri=where, classes=len(classes), device=device.type)

    def tag(windows: Sequence[Sequence[int]]) -> list[Probabilities]:
        width = 2 + max(map(len, windows))
        ids_BT = np.full((len(windows), width), special.pad, dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, window in enumerate(windows):
            ids_BT[row, : len(window) + 2] = [special.cls, *window, special.sep]
            mask_BT[row, : len(window) + 2] = 1
        with torch.inference_mode():
            given: dict[str, Any] = {
                "input_ids": torch.from_numpy(ids_BT).to(device),
                "attention_mask": torch.from_numpy(mask_BT).to(device),
            }
            logits_BTC = model(**given).logits
            found_BT = logits_BTC.float().softmax(-1)[..., classes].sum(-1).cpu().numpy()
        return [found_BT[row, 1 : len(window) + 1] for row, window in enumerate(windows)]

    return NameFilter(asked, tokenizer, tag, longest - 2)
