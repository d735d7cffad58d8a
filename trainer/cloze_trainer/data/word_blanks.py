"""Words alone, tokenized as they are within a text.

Some tokenizers count the blank before a word as part of it: to them the first word of a text, which has none, is
another word than the same one later on. Examples of words, and requests that bring words, have no blanks at all, and a
text has them before all of its words but the first. A tokenizer that puts a blank before what it is given makes all of
these the same.
"""

import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from cloze_api.manifest import TOKENIZER_FILE
from cloze_trainer.data.tokenizer import SETTINGS_FILE

# Puts a blank in front where there is none, and leaves the rest as it is: what stands for blanks is one.
_BLANK_FIRST: Final = {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False}
# What says nothing of where words begin; a vocabulary may be large.
_LEFT_OUT: Final[Mapping[str, Any]] = {
    "added_tokens": [],
    "post_processor": None,
    "decoder": None,
    "truncation": None,
    "padding": None,
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}


def copy(given: Path, folder: Path, *, words: bool) -> bool:
    """Put a tokenizer's two files from one folder into another; whether they were changed on the way.

    words: whether words alone are to be as they are within a text.
    """
    document = json.loads((given / TOKENIZER_FILE).read_text(encoding="utf-8")) if words else {}
    changed = with_blanks(document) if words else document
    if changed == document:
        for name in (TOKENIZER_FILE, SETTINGS_FILE):
            shutil.copyfile(given / name, folder / name)
        return False
    # Some of transformers' classes make the pre-tokenizer anew, by this.
    settings = json.loads((given / SETTINGS_FILE).read_text(encoding="utf-8")) | {"add_prefix_space": True}
    (folder / TOKENIZER_FILE).write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return True


def with_blanks(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `tokenizer.json` has to hold so that words alone are as within a text: often what it holds.

    Later words of a text stay what they are. A tokenizer for which a blank in front makes no difference is left.
    """
    if are_alike(document):
        return document
    changed: dict[str, Any] = deepcopy(dict(document))
    changed["pre_tokenizer"] = _prefixing(changed["pre_tokenizer"])
    # Where a word is in a text is told without the blank, which the text may not have.
    for processor in _flat(changed.get("post_processor"), "processors"):
        if "add_prefix_space" in processor:
            processor["add_prefix_space"] = True
    return changed if are_alike(changed) else document


def are_alike(document: Mapping[str, Any]) -> bool:
    """Whether words alone are spelt as within a text, by what `tokenizer.json` holds."""
    splitting = Tokenizer.from_str(json.dumps({**document, **_LEFT_OUT}))

    def spelt(text: str) -> str:
        normal = splitting.normalizer.normalize_str(text) if splitting.normalizer else text
        return "".join(piece for piece, _ in splitting.pre_tokenizer.pre_tokenize_str(normal))

    return splitting.pre_tokenizer is None or spelt("a a") == 2 * spelt("a")


def _prefixing(splitter: dict[str, Any]) -> dict[str, Any]:
    """A pre-tokenizer with a blank before the first word."""
    first, *others = _flat(splitter, "pretokenizers")
    if first["type"] == "ByteLevel":
        parts = [{**first, "add_prefix_space": True}, *others]
    elif first["type"] == "Metaspace":
        parts = [{**first, "prepend_scheme": "first"}, *others]
    else:
        # Those that come later see parts of a text, and would put a blank before each: also before a comma.
        parts = [_BLANK_FIRST, first, *others]
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """A part of a tokenizer, or what it is a sequence of. inner: the field of those."""
    if part is None:
        return []
    return [each for one in part[inner] for each in _flat(one, inner)] if part["type"] == "Sequence" else [part]
