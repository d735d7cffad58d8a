"""What is whole on a run's volume needs no source any more: neither the text nor the base that it was made from."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import finetune_of, run_of
from whole_runs import Trainer, finetune, kill_after, pretrain, weights

from cloze_api.pretrain import PretrainJobSpec
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer import preparation, tagging
from cloze_trainer import pretrain as pretraining
from cloze_trainer.data.names import NameFilter
from cloze_trainer.data.remote import redacted
from cloze_trainer.data.source import SourceFiles, locate
from cloze_trainer.errors import InputError
from cloze_trainer.origin import Named, digests, find_all, need_all, remember
from cloze_trainer.progress import ProgressFile
from cloze_trainer.run import Run

TEXTS = [f"sentence number {number} tells what the ships carry. is it {number % 7}?" for number in range(60)]
ROWS = [{"text": text, "label": "ham" if number % 3 else "spam"} for number, text in enumerate(TEXTS)]
SIZES = {"tokenizer": {"vocabSize": 200}, "model": {"maxLength": 16}}

Prepared = pretraining.PreparedCorpus | preparation.PreparedDataset


def prepared(run: Run) -> Prepared:
    """As a start of the run has it."""
    spec = run.job.spec
    if isinstance(spec, PretrainJobSpec):
        return pretraining.prepare(run, spec, ProgressFile(None))
    return preparation.prepare(run, spec, ProgressFile(None))


def corpus_of(folder: Path, _tiny: Any) -> tuple[Run, list[Path]]:
    """A pretraining, and its sources."""
    run, _ = run_of(folder, TEXTS, **SIZES)
    return run, [folder / "text.txt"]


def continued(folder: Path, tiny: Any) -> tuple[Run, list[Path]]:
    tiny.save(folder / "model", "bert", Task.FILL_MASK)
    run, _ = run_of(folder, TEXTS, base={"uri": f"file://{folder}/model"})
    return run, [folder / "text.txt", folder / "model"]


def named(folder: Path, tiny: Any) -> tuple[Run, list[Path]]:
    tiny.save(folder / "model", "bert", Task.TOKEN_CLASSIFICATION)
    run, _ = run_of(folder, TEXTS, **SIZES, cleaning={"names": {"uri": f"file://{folder}/model", "found": "replace"}})
    return run, [folder / "text.txt", folder / "model"]


def examples_of(folder: Path, tiny: Any) -> tuple[Run, list[Path]]:
    tiny.save(folder / "model", "bert", Task.FILL_MASK)
    examples = {"train": ROWS[:40], "test": ROWS[40:50], "validation": ROWS[50:]}
    choice = {"batchSequences": 2, "earlyStopping": {"figure": "accuracy"}}
    run, _ = finetune_of(folder, examples, optimization=choice)
    return run, [*(folder / f"{name}.jsonl" for name in examples), folder / "model"]


Made = Callable[[Path, Any], tuple[Run, list[Path]]]
EVERY = pytest.mark.parametrize("made", [corpus_of, continued, named, examples_of])


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.fixture(autouse=True)
def nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded finds no names."""

    class Nobody(NameFilter):
        def __init__(self) -> None:
            pass

        def filtered(self, texts: Any, replaced: Any, dropped: Any) -> Any:
            return texts

    monkeypatch.setattr(tagging, "_load", lambda *_: Nobody())


@EVERY
@pytest.mark.parametrize("shared", [False, True])
def test_prepared_data_are_taken_without_their_sources(made: Made, shared: bool, tmp_path: Path, tiny: Any) -> None:
    """The run's own, or those in a cache: the same folder, base and digests as on the first start."""
    run, sources = made(tmp_path, tiny)
    run = replace(run, data_cache=tmp_path / "cache" if shared else None)
    first = prepared(run)
    for source in sources:
        remove(source)
    assert prepared(run) == first


@EVERY
def test_another_run_in_the_same_workspace_remembers_nothing(made: Made, tmp_path: Path, tiny: Any) -> None:
    """What the sources are now is what counts for it."""
    run, sources = made(tmp_path, tiny)
    prepared(run)
    for source in sources:
        remove(source)
    with pytest.raises(InputError) as refusal:
        prepared(replace(run, identity="another"))
    assert refusal.value.reason == "SourceNotFound"


@pytest.mark.parametrize("changed", ["uri", "revision"])
def test_a_changed_spec_remembers_nothing(changed: str, tmp_path: Path) -> None:
    """Of a source that it didn't name before."""
    run, spec = run_of(tmp_path, TEXTS, **SIZES)
    first = prepared(run)
    (tmp_path / "other.txt").write_text("\n\n".join(TEXTS[:50]))
    corpus = spec.corpus[0].model_copy(
        update={"uri": f"file://{tmp_path}/other.txt"} if changed == "uri" else {"revision": "another"}
    )
    job = run.job.model_copy(update={"spec": spec.model_copy(update={"corpus": [corpus]})})
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS[:50]))
    assert prepared(replace(run, job=job)).folder != first.folder


@EVERY
def test_damaged_data_need_their_sources_as_they_were(made: Made, tmp_path: Path, tiny: Any) -> None:
    """Gone or changed ones are told, and the rest of the data isn't thrown away; with the old ones all is as before."""
    run, (source, *_) = made(tmp_path, tiny)
    first = prepared(run)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    damaged = next(path for path in first.folder.iterdir() if path.suffix == ".npy")
    damaged.write_bytes(b"x" + damaged.read_bytes())
    text = source.read_bytes()
    source.unlink()
    with pytest.raises(
        InputError, match=rf"{source.name} names no file .*; nothing whole that was made of it is there"
    ) as refusal:
        prepared(run)
    assert (refusal.value.reason, refusal.value.exit_code) == ("SourceNotFound", ExitCode.INVALID_INPUT)
    source.write_bytes(text[: len(text) // 2])
    with pytest.raises(InputError, match=rf"{source.name} changed since the run first read it") as refusal:
        prepared(run)
    assert refusal.value.reason == "SourceChanged"
    assert first.folder.exists()
    source.write_bytes(text)
    assert prepared(run) == first
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before


def test_data_that_a_run_can_not_begin_with_are_not_remembered(tmp_path: Path) -> None:
    """A person who adds what was missing, and starts the same job again, isn't told that it is missing."""
    run, _ = run_of(tmp_path, TEXTS[:10], **SIZES, optimization={"batchSequences": 20})
    with pytest.raises(InputError, match="lower it or add text") as refusal:
        prepared(run)
    assert refusal.value.reason == "BatchTooLarge"
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    prepared(run)


def local(run: Run) -> Run:
    """The same, as a person starts it outside a cluster."""
    return replace(run, identity="local-1")


def test_a_cluster_does_not_look_at_sources_again(tmp_path: Path) -> None:
    """Files that came since, as the next part of a crawl, are nothing to a run that has its data."""
    run, _ = run_of(tmp_path, TEXTS, **SIZES)
    first = prepared(run)
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS[:50]))
    assert prepared(run) == first


def test_names_of_any_bytes_are_remembered(tmp_path: Path) -> None:
    """A text in a file whose name is Latin-1."""
    run, _ = run_of(tmp_path, TEXTS, **SIZES, corpus=[{"uri": f"file://{tmp_path}/crawl/*.txt"}])
    (tmp_path / "crawl").mkdir()
    (tmp_path / "text.txt").rename(tmp_path / "crawl" / os.fsdecode(b"caf\xe9.txt"))
    first = prepared(run)
    shutil.rmtree(tmp_path / "crawl")
    assert prepared(run) == first


def test_what_came_since_does_not_matter_to_data_that_are_made_again(tmp_path: Path) -> None:
    """The files that the run first read are there as they were: the same data, without the next part of the crawl."""
    run, _ = run_of(tmp_path, TEXTS, **SIZES, corpus=[{"uri": f"file://{tmp_path}/crawl"}])
    (tmp_path / "crawl").mkdir()
    (tmp_path / "text.txt").rename(tmp_path / "crawl" / "first.txt")
    first = prepared(run)
    rows = (first.folder / "train.npy").read_bytes()
    shutil.rmtree(first.folder)
    (tmp_path / "crawl" / "next.txt").write_text("a part that came later")
    assert prepared(run) == first
    assert (first.folder / "train.npy").read_bytes() == rows


def test_a_person_is_not_answered_with_data_of_before(tmp_path: Path) -> None:
    """Outside a cluster files are looked at as long as they are there, and read if they look otherwise."""
    run = local(run_of(tmp_path, TEXTS, **SIZES)[0])
    file = tmp_path / "text.txt"
    first = prepared(run)
    state = file.stat()
    text = file.read_text()
    file.write_text(text.replace("ships", "boats"))
    other = prepared(run)
    assert other.folder != first.folder
    assert other.sources != first.sources
    file.write_text(text)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert prepared(run) == first


def test_files_that_look_the_same_are_not_read_again(tmp_path: Path) -> None:
    """By their sizes and times of change: what only their bytes tell isn't seen."""
    run = local(run_of(tmp_path, TEXTS, **SIZES)[0])
    file = tmp_path / "text.txt"
    first = prepared(run)
    state = file.stat()
    file.write_text(file.read_text().replace("ships", "boats"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digests(find_all(run)) == first.sources
    assert digests(need_all(run, find_all(run))) == first.sources


def test_an_unreadable_memory_is_none(tmp_path: Path) -> None:
    """The sources are read again, and it is written anew."""
    run, _ = run_of(tmp_path, TEXTS, **SIZES)
    first = prepared(run)
    memory = run.workspace / "sources.json"
    whole = memory.read_text()
    memory.write_text(whole[:-20])
    assert prepared(run) == first
    assert json.loads(memory.read_text()) == json.loads(whole)


def test_no_secret_of_an_address_is_remembered(tmp_path: Path) -> None:
    """The volume may be looked at by others."""
    run, _ = run_of(tmp_path, TEXTS, **SIZES)
    uri = "https://host/text.txt?token=s3cret"
    (file,) = locate(f"file://{tmp_path}/text.txt", corpus_root=tmp_path, downloads=tmp_path).paths
    contents = {redacted(uri): "d" * 64}
    remember(run, [(Named(uri), SourceFiles(uri, (file,), "d" * 64, ((1, 1),), (redacted(uri),), contents))])
    kept = (run.workspace / "sources.json").read_text()
    assert "text.txt" in kept
    assert "s3cret" not in kept


def damage(folder: Path) -> Callable[[], None]:
    """Turn over one bit of the prepared rows; what is returned turns it back."""
    rows, *_ = sorted(folder.glob("workspace/data/*/train*.npy"))

    def turn() -> None:
        whole = rows.read_bytes()
        with rows.open("r+b") as file:
            file.seek(len(whole) // 2)
            file.write(bytes([whole[len(whole) // 2] ^ 1]))

    turn()
    return turn


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["PretrainJob", "FineTuneJob"])
def test_a_killed_run_ends_without_its_sources(kind: str, corpus: Path, tmp_path: Path, tiny: Any) -> None:
    """With the weights of one that nothing happened to; where its data are damaged, too, it says what it lacks."""
    text = tmp_path / "text"
    text.mkdir()
    if kind == "PretrainJob":
        shutil.copyfile(corpus, text / "text.txt")
        job = pretrain(text / "text.txt", topology={"processesPerNode": 1})
    else:
        tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
        job = finetune(text, base={"uri": f"file://{tmp_path}/model"}, checkpoint={"everySteps": 10})
    steady, killed = (Trainer(tmp_path / name, {}) for name in ("steady", "killed"))
    assert steady.run(job) == 0, steady.log
    kill_after(killed, job, 10)
    text.rename(tmp_path / "away")
    if (tmp_path / "model").exists():
        (tmp_path / "model").rename(tmp_path / "model-away")
    mend = damage(killed.folder)
    assert killed.run(job) == ExitCode.INVALID_INPUT, killed.log
    assert killed.outcome["reason"] == "SourceNotFound"
    assert "nothing whole that was made of it is there" in killed.outcome["message"]
    mend()
    assert killed.run(job) == 0, killed.log
    assert killed.resumed() >= 10
    assert weights(killed) == weights(steady)
