"""A word is the same to a model in the training, in a request's text and in a request's words, with every tokenizer."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from asking import ask
from families import FAMILIES
from small_runs import finetune_of
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from cloze_api.manifest import tokenizer_fingerprint, verify
from cloze_api.pretrain import TokenizerAlgorithm
from cloze_api.task import Task
from cloze_server.tokenization import TokenizerPool
from cloze_trainer import artifact, importing, preparation
from cloze_trainer.data import labelled, tokenizer, word_blanks
from cloze_trainer.data.labelled import Example
from cloze_trainer.data.tokenizer import SPECIAL, SPECIAL_IDS
from cloze_trainer.finetune import FineTuning
from cloze_trainer.import_options import Asked
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality.judgement import Judgement
from cloze_trainer.worker import initial_model

WORDS = ("london", "a", "b7", "c")
#: How GPT-4 and its like split texts.
SPLIT = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")


def of_bytes(*parts: Any, **settings: Any) -> Tokenizer:
    """Byte-level; what comes before the bytes, and how these are split."""
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa"]
    merges = [("Ġ", "a")]
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, merges, unk_token="[UNK]"))  # noqa: S106 - a token of text
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, own]) if parts else own
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    return made


def of_pieces(*parts: Any) -> Tokenizer:
    """Unigram over letters and blanks."""
    pieces = [*((token, 0.0) for token in SPECIAL), *((letter, -3.0) for letter in "▁londabc7,!"), ("▁a", -2.0)]
    made = Tokenizer(models.Unigram(pieces, SPECIAL_IDS.unk))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(parts)) if len(parts) > 1 else parts[0]
    return made


def trained(algorithm: TokenizerAlgorithm) -> Tokenizer:
    """Here."""
    text = "london a b7 c, and a b; london!"
    return tokenizer.train([text] * 3, vocab_size=600, lowercase=False, algorithm=algorithm)


CHANGED = {
    "bytes": of_bytes,
    "bytes in a sequence": lambda: of_bytes(pre_tokenizers.Split("[", "merged_with_previous")),
    "digits first": lambda: of_bytes(pre_tokenizers.Digits(individual_digits=True)),
    "as GPT-4": lambda: of_bytes(SPLIT, use_regex=False),
    "a sequence in a sequence": lambda: of_bytes(pre_tokenizers.Sequence([SPLIT]), use_regex=False),
    "Metaspace, never": lambda: of_pieces(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "Metaspace, never, whole": lambda: of_pieces(pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    "Metaspace, never, after others": lambda: of_pieces(
        pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace(prepend_scheme="never")
    ),
}
AS_THEY_ARE = {
    **{str(algorithm): lambda algorithm=algorithm: trained(algorithm) for algorithm in TokenizerAlgorithm},
    "Metaspace, always": lambda: of_pieces(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "Metaspace, first": lambda: of_pieces(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "bytes between blanks": lambda: of_bytes(pre_tokenizers.WhitespaceSplit()),
}


def served(made: str, texts: Sequence[Any]) -> list[list[int]]:
    """The ids that a server makes of texts, or of lists of words."""
    pool = TokenizerPool(made, in_text=(), threads=1)
    try:
        return asyncio.run(pool.encode(texts, offsets=False, then=lambda found: [each.ids for each in found]))
    finally:
        pool.close()


@pytest.mark.parametrize("name", [*CHANGED, *AS_THEY_ARE])
def test_text_words_and_examples_have_the_same_ids(name: str) -> None:
    """And later words of a text have those that they had, so that what the base has learnt of them counts."""
    given = {**CHANGED, **AS_THEY_ARE}[name]()
    document = json.loads(given.to_str())
    changed = word_blanks.with_blanks(document)
    assert (changed != document) == (name in CHANGED)
    made = json.dumps(changed)
    (text,), (words,) = served(made, [" ".join(WORDS)]), served(made, [list(WORDS)])
    assert text == words
    example = Example("x:1", WORDS, ("O",) * len(WORDS))
    found = labelled.tokenize(
        [example], ("O",), Tokenizer.from_str(made), task=Task.TOKEN_CLASSIFICATION, max_length=99
    )
    assert found.ids[0].tolist()[1:-1] == text
    # A comma has no blank, and a word after it has its own.
    own, theirs = (served(each, ["london a, b! a"])[0] for each in (made, given.to_str()))
    later = len(served(given.to_str(), [" a, b! a"])[0])
    assert own[-later:] == theirs[-later:]


def tuned(folder: Path) -> FineTuning:
    """A job for words on the model in the folder, published."""
    rows = [{"tokens": list(WORDS), "labels": ["NOUN", "VERB", "NOUN", "VERB"]} for _ in range(4)]
    run, spec = finetune_of(folder, {"train": rows, "test": rows}, task=Task.TOKEN_CLASSIFICATION)
    workload = FineTuning(spec, preparation.prepare(run, spec, ProgressFile(None)), torch.device("cpu"))
    artifact.write(run, workload, initial_model(workload, 1), Judgement({}), {})
    shutil.copytree(run.artifact, folder / "artifact")
    return workload


@pytest.mark.parametrize(
    ("family", "named"), [*((family, None) for family in FAMILIES), ("roberta", "RobertaTokenizer")]
)
def test_a_model_is_served_on_the_ids_that_it_was_trained_on(
    tmp_path: Path, tiny: Any, family: str, named: str | None
) -> None:
    """From base to server: for a text and for words, and in transformers, whichever class of it reads the tokenizer;
    places in a text are its own.
    """
    tiny.save(tmp_path / "model", family, Task.FILL_MASK)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    if family == "modernbert":
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"local_attention": 128}))
    path = tmp_path / "model" / "tokenizer_config.json"
    if named:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": named}))
    workload = tuned(tmp_path)
    given = tmp_path / "artifact"
    document = json.loads((given / "tokenizer.json").read_text())
    text = " ".join(WORDS)
    (from_text,), (from_words,) = served(json.dumps(document), [text]), served(json.dumps(document), [list(WORDS)])
    (row,) = workload.train.some(workload._order.step(0)[0][:1])
    assert row.ids.tolist()[1:-1] == from_text == from_words
    manifest = verify(given)
    assert manifest.tokenizer_fingerprint == tokenizer_fingerprint(document)
    byte_level = family in ("roberta", "modernbert")
    assert json.loads((given / "tokenizer_config.json").read_text()).get("add_prefix_space", False) or not byte_level
    assert transformers.AutoTokenizer.from_pretrained(given)(text)["input_ids"] == row.ids.tolist()
    tags, others = (
        ask(given, Task.TOKEN_CLASSIFICATION, **body)["results"][0]["tags"]
        for body in ({"inputs": text, "aggregation": "none"}, {"words": [list(WORDS)]})
    )
    assert [tag["word"] for tag in others] == list(WORDS)
    first = [tag for tag in tags if tag["start"] in (0, 7, 9, 12) and tag["word"]]
    # Pieces of so small a vocabulary may be a blank alone.
    assert all(text[tag["start"] : tag["end"]] == tag["word"] in (" ", tag["word"].strip()) for tag in tags)
    assert {tag["start"] for tag in first} == {0, 7, 9, 12}


def test_other_tasks_have_the_tokenizer_of_the_base(tmp_path: Path, tiny: Any) -> None:
    """To the last byte: their examples and their requests are texts alike."""
    tiny.save(tmp_path / "model", "roberta", Task.FILL_MASK)
    rows = [{"text": f"a {number}", "label": "ab"[number % 2]} for number in range(4)]
    run, spec = finetune_of(tmp_path, {"train": rows, "test": rows})
    prepared = preparation.prepare(run, spec, ProgressFile(None))
    workload = FineTuning(spec, prepared, torch.device("cpu"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (workload.tokenizer_folder / name).read_bytes() == (prepared.base.folder / name).read_bytes()


def test_an_imported_model_keeps_its_tokenizer(tmp_path: Path, tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Its head was trained with what it came with, whatever that was; the log says that words are read otherwise."""
    for family, told in (("roberta", True), ("bert", False)):
        tiny.save(tmp_path / family, family, Task.TOKEN_CLASSIFICATION)
        output = tmp_path / f"{family}-artifact"
        importing.run(
            Asked(
                *(str(tmp_path / family), Task.TOKEN_CLASSIFICATION, "tiny", output),
                register=False,
                pooling=None,
                normalize=False,
                matryoshka=[],
            )
        )
        given = Tokenizer.from_file(str(tmp_path / family / "tokenizer.json"))
        assert verify(output).tokenizer_fingerprint == tokenizer_fingerprint(json.loads(given.to_str()))
        assert ("words are read otherwise" in capfd.readouterr().err) == told
