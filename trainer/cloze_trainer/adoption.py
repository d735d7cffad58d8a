"""A model in Hugging Face's format as a base: its files are brought into the form of an artifact's, once."""

import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloze_api.manifest import TOKENIZER_FILE, WEIGHTS_FILE, SpecialTokens
from cloze_api.pretrained import PretrainedFolder
from cloze_api.source import Credentials
from cloze_api.task import Task
from cloze_trainer import card, huggingface
from cloze_trainer.base import BaseModel, read_config
from cloze_trainer.console import log
from cloze_trainer.data.lines import compression
from cloze_trainer.data.source import SourceFiles, digest_of, locate
from cloze_trainer.data.tokenizer import PretrainedTokenizer
from cloze_trainer.errors import InputError
from cloze_trainer.files import is_complete, publish, write_json
from cloze_trainer.origin import Named, access, find, memory_of, need, remember
from cloze_trainer.run import Run

_TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|config\.json"
    rf"|vocab\.txt|vocab\.json|merges\.txt|sentencepiece\.bpe\.model|{re.escape(huggingface.SENTENCE_FILE)}"
)
_BASE = re.compile(rf"{_TOKENIZER.pattern}|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
# A base's own card, for its licence.
_TOLD = re.compile(rf"{_BASE.pattern}|{re.escape(card.CARD_FILE)}")
_DESCRIPTIONS = "|".join(map(re.escape, huggingface.DESCRIPTIONS))
_WHOLE = re.compile(rf"{_BASE.pattern}|{_DESCRIPTIONS}|[^/]+_Pooling/config\.json")
_FACTS = "facts.json"


def adopt_base(run: Run, pretrained: PretrainedFolder, task: Task = Task.FILL_MASK) -> BaseModel:
    """The base that a folder holds, for a task. Raises InputError, BaseModelError, TrainerError when nobody answers."""
    tokenizer = _adopted(run, pretrained, task)
    return BaseModel(
        folder=tokenizer.folder,
        name=tokenizer.name,
        digest=tokenizer.digest,
        special_tokens=tokenizer.special_tokens,
        lowercase=tokenizer.lowercase,
        config=read_config(tokenizer.folder, tokenizer),
        license=json.loads((tokenizer.folder / _FACTS).read_text(encoding="utf-8")).get("license"),
    )


def adopt_tokenizer(run: Run, pretrained: PretrainedFolder) -> PretrainedTokenizer:
    """The tokenizer that a folder holds. Raises InputError, TrainerError when nobody answers."""
    return _adopted(run, pretrained, None)


@dataclass(frozen=True, slots=True)
class Given:
    """A folder's files on this machine, by their own names. digest: of all of them."""

    found: SourceFiles
    paths: dict[str, Path]
    digest: str

    def folder(self, workspace: Path) -> AbstractContextManager[Path]:
        """A folder with these names; what is wrong with it is told of the URI."""
        return _links(workspace, self.paths, self.found.uri)


def named_model(uri: str, revision: str | None, credentials: Credentials | None) -> Named:
    """A folder that holds a model with weights."""
    return Named(uri, revision, credentials, _BASE)


def find_model(run: Run, source: Named) -> Given:
    """What such a folder holds, as `origin.find` has it. Raises InputError, TrainerError when nobody answers."""
    given = _given(find(run, source, memory_of(run)))
    _check_weights(given)
    return given


def need_model(run: Run, source: Named, given: Given) -> Given:
    """The same, as `origin.need` has it."""
    return _given(need(run, source, given.found))


def find_whole(named: PretrainedFolder, *, workspace: Path, corpus_root: Path) -> Given:
    """A model with weights, and all that its folder says of it. Raises as `find_model`."""
    assert named.uri is not None, "a registered version isn't adopted"
    found = locate(
        named.uri,
        corpus_root=corpus_root,
        downloads=workspace / "downloads",
        revision=named.revision,
        access=access(named.credentials),
        wanted=lambda name: _WHOLE.fullmatch(name) is not None,
    )
    given = _given(found)
    _check_weights(given)
    return given


def _check_weights(given: Given) -> None:
    """Raise InputError where there are none that may be loaded."""
    if not any(name.endswith(".safetensors") for name in given.paths):
        raise InputError(
            "SafetensorsMissing",
            f"{given.found.uri} has no weights in safetensors; pickled ones, which could run anything when they are "
            "loaded, are refused: save them as safetensors where they come from",
        )


def _given(found: SourceFiles, besides: Collection[str] = ()) -> Given:
    """besides: names of files that may be there, too, and aren't in the digest."""
    paths = dict(zip(found.names, found.paths, strict=True))
    contents = dict(zip(found.names, found.contents.values(), strict=True))
    # What people say of a model is no part of it.
    parts = [name for name in paths if name not in besides]
    digest = digest_of((contents[name], compression(paths[name])) for name in parts)
    return Given(found, paths, hashlib.sha256(json.dumps([digest, sorted(parts)]).encode()).hexdigest())


def _adopted(run: Run, pretrained: PretrainedFolder, task: Task | None) -> PretrainedTokenizer:
    """task: what the weights are for; None where there is no need of any."""
    assert pretrained.uri is not None, "a registered version isn't adopted"
    source = Named(pretrained.uri, pretrained.revision, pretrained.credentials, _TOLD if task else _TOKENIZER)
    besides = (card.CARD_FILE,)
    given = _given(find(run, source, memory_of(run)), besides)
    if task:
        _check_weights(given)
    folder = run.workspace / "base" / given.digest[:20]
    if not is_complete(folder):
        given = _given(need(run, source, given.found), besides)
        with given.folder(run.workspace) as linked, publish(folder) as staging:
            _convert(linked, staging, task)
        given.found.check_unchanged()
        log("base read" if task else "tokenizer read", uri=source.uri)
    remember(run, [(source, given.found)])
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    return PretrainedTokenizer(
        folder=folder,
        name=source.uri,
        digest=f"sha256:{given.digest}",
        special_tokens=SpecialTokens(**facts["special_tokens"]),
        lowercase=facts["lowercase"],
    )


@contextmanager
def _links(workspace: Path, paths: dict[str, Path], uri: str) -> Iterator[Path]:
    """A folder in which the files have their own names; what is wrong with it is told of the URI."""
    with tempfile.TemporaryDirectory(dir=workspace, prefix=".given-") as name:
        for file, path in paths.items():
            (Path(name) / file).parent.mkdir(exist_ok=True)
            (Path(name) / file).symlink_to(path)
        try:
            yield Path(name)
        except InputError as error:
            raise InputError(error.reason, error.message.replace(name, uri)) from error


def _convert(given: Path, folder: Path, task: Task | None) -> None:
    # torch and transformers take seconds to import.
    from cloze_trainer import conversion  # noqa: PLC0415

    vocab_size = None
    if task:
        huggingface.configuration(given)
        # With the task's own head, so that a pooler that was trained is kept. Vectors need none, and the tensors of a
        # bare encoder lack the prefix that those beside a head have.
        model, told = conversion.load_model(given, Task.FILL_MASK if task is Task.EMBEDDING else task)
        vocab_size = int(model.config.vocab_size)
    loaded, tokenizer = conversion.load_tokenizer(given)
    # Only who hides tokens needs one to hide them with.
    mask = task in (None, Task.FILL_MASK)
    special = conversion.find_special_tokens(given, loaded, tokenizer, mask=mask, vocab_size=vocab_size)
    loaded.save_pretrained(folder)
    tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
    facts = {"special_tokens": special.model_dump(), "lowercase": conversion.is_lowercase(tokenizer)}
    theirs = given / card.CARD_FILE
    if theirs.is_file():
        facts["license"] = card.license_of(theirs.read_text(encoding="utf-8", errors="replace"))
    write_json(folder / _FACTS, facts)
    if task:
        _write_weights(model, told, folder)


def _write_weights(model: Any, told: dict[str, Any], folder: Path) -> None:
    """The tensors that came with the folder, and its settings in full, with what is absent as transformers has it."""
    from safetensors.torch import save_file  # noqa: PLC0415 - heavy, like those above

    (folder / huggingface.CONFIG_FILE).write_text(model.config.to_json_string(use_diff=False), encoding="utf-8")
    made_up = {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}
    # What is tied to another tensor is that tensor.
    tied = set(model.all_tied_weights_keys)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name not in made_up and name not in tied
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
