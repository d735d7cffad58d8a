"""Architectures of which tests have tiny models: all that can be imported."""

from typing import Final

from cloze_trainer.huggingface import ARCHITECTURES

FAMILIES: Final = tuple(ARCHITECTURES)
#: Those that tell the texts of a pair apart.
PAIRED: Final = ("bert", "electra")
