"""Runs that share prepared data: one prepares, the others take what it made, and nobody waits for the dead."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from whole_runs import Trainer, pretrain

from cloze_api.pretrain import PretrainJobSpec
from cloze_trainer.data import cleaning, shards, sharing
from cloze_trainer.data.passes import Unheard
from cloze_trainer.data.sharing import turn
from cloze_trainer.data.source import locate
from cloze_trainer.errors import InputError

TEXT = "\n\n".join(f"paragraph {number} speaks of the sea and of {number} ships" for number in range(200))


class Heard(Unheard):
    def __init__(self) -> None:
        self.doing: set[str] = set()

    def advance(self, doing: str, **_: int | None) -> None:
        self.doing.add(doing)


def prepared(folder: Path, name: str, heard: Unheard, **spec: Any) -> tuple[shards.Shards, bool]:
    """As the run of this name has them, which shares them with others. spec: what differs."""
    file = folder / f"{name}.txt"
    file.write_text(TEXT)
    job = PretrainJobSpec.model_validate(
        {
            "corpus": [{"uri": f"file://{file}"}],
            "tokenizer": {"vocabSize": 200},
            "model": {"maxLength": 16},
            "registry": {"name": name},
            **spec,
        }
    )
    source = locate(job.corpus[0].uri, corpus_root=folder, downloads=folder)
    return shards.prepare(job, [source], folder / "cache", heard, scratch=folder / name)


def test_the_same_text_is_prepared_once_for_all_runs(tmp_path: Path) -> None:
    """Wherever it lies, and whatever else the jobs ask for; what decides the data gives others."""
    first, reused = prepared(tmp_path, "one", Heard())
    assert not reused
    second, reused = prepared(tmp_path, "two", Heard(), optimization={"learningRate": 0.5})
    assert reused
    assert second.folder == first.folder
    for other in ({"tokenizer": {"vocabSize": 300}}, {"cleaning": {"pii": "keep"}}):
        third, reused = prepared(tmp_path, "three", Heard(), **other)
        assert not reused
        assert third.folder != first.folder


def test_a_run_waits_for_one_that_prepares_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so meanwhile, and prepares nothing itself."""
    monkeypatch.setattr(sharing, "_POLL_SECONDS", 0.01)
    begun, go_on = threading.Event(), threading.Event()
    clean, cleaned = cleaning.clean, []

    def slow(*arguments: Any, **options: Any) -> Any:
        cleaned.append(1)
        begun.set()
        assert go_on.wait(60)
        return clean(*arguments, **options)

    monkeypatch.setattr(cleaning, "clean", slow)
    heard = Heard()
    with ThreadPoolExecutor(2) as both:
        one = both.submit(prepared, tmp_path, "one", Heard())
        assert begun.wait(60)
        two = both.submit(prepared, tmp_path, "two", heard)
        while "waiting" not in heard.doing:
            assert not two.done()
        go_on.set()
        assert (one.result()[1], two.result()[1]) == (False, True)
    assert cleaned == [1]
    assert heard.doing == {"waiting", "verifying"}


def test_damaged_data_are_prepared_again_by_whoever_finds_them(tmp_path: Path) -> None:
    """With the same bytes as before; a run that reads them already keeps what it has."""
    first, _ = prepared(tmp_path, "one", Heard())
    train = first.folder / "train.npy"
    whole, rows_NT = train.read_bytes(), first.train_NT.copy()
    train.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    second, reused = prepared(tmp_path, "two", Heard())
    assert not reused
    assert train.read_bytes() == whole
    assert (second.train_NT == rows_NT).all()


HOLD = """
import os, signal, sys
from pathlib import Path
from cloze_trainer.data.sharing import turn

with turn(Path(sys.argv[1]), lambda: None):
    print(flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_dies_gives_way(tmp_path: Path) -> None:
    """Whatever it left."""
    folder = tmp_path / "cache" / "key"
    (tmp_path / "cache" / ".key.staging").mkdir(parents=True)
    killed = subprocess.run([sys.executable, "-c", HOLD, str(folder)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with turn(folder, pytest.fail):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs would write the same files there."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("cloze_trainer.data.sharing.fcntl.flock", none)
    with pytest.raises(InputError, match="has no locks") as refusal:
        prepared(tmp_path, "one", Heard())
    assert refusal.value.reason == "DataCacheUnusable"


@pytest.mark.timeout(600)
def test_two_jobs_with_a_cache_prepare_their_corpus_once(corpus: Path, tmp_path: Path) -> None:
    """Whole runs: the second has another learning rate, and takes what the first left; so does a restart."""
    prepared = []
    for number, rate in enumerate((1e-3, 2e-3)):
        trainer = Trainer(tmp_path / str(number), {"CLOZE_DATA_CACHE": str(tmp_path / "cache")})
        job = pretrain(corpus, optimization={"steps": 2, "batchSequences": 8, "learningRate": rate})
        assert trainer.run(job) == 0, trainer.log
        events = [json.loads(line) for line in trainer.log.splitlines() if line.startswith('{"time"')]
        prepared += [event["reused"] for event in events if event["event"] == "corpus prepared"]
        assert not list((trainer.folder / "workspace").glob("data/*/train.npy"))
    assert prepared == [False, True]
