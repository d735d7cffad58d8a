"""What a run was made from: told without secrets, and never mixed with something else."""

import hashlib
import json
from pathlib import Path

import pytest

from cloze_api.progress import ExitCode, Outcome
from cloze_trainer import outcome
from cloze_trainer.data.source import SourceFiles, locate
from cloze_trainer.errors import InputError
from cloze_trainer.origin import digests, find_all, refuse_changed
from cloze_trainer.run import Run, open_run


def run_of(folder: Path, **metadata: str) -> Run:
    (folder / "text.txt").write_text("one")
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small", **metadata},
        "spec": {"corpus": [{"uri": f"file://{folder}/text.txt"}], "registry": {"name": "small"}},
    }
    (folder / "job.json").write_text(json.dumps(job))
    run = open_run(folder / "job.json")
    return Run(run.job, run.identity, folder, folder, None)


def test_addresses_that_differ_in_secrets_alone_stay_two_sources() -> None:
    """The lineage names both."""
    sources = [SourceFiles(f"https://h/x?part={part}", (), str(part)) for part in (1, 2)]
    assert digests(sources) == {"https://h/x": "1", "https://h/x#2": "2"}


def test_finished_run_is_not_the_answer_to_changed_data(tmp_path: Path) -> None:
    """A person who starts the same file on other data is told so, and not that it was finished before."""
    run = run_of(tmp_path)
    done = Outcome(reason="Completed")
    outcome.finish(tmp_path, run.identity, done, sources=digests(find_all(run)))
    recorded = outcome.finished_sources(tmp_path)
    refuse_changed(run, recorded)
    assert run.finished() == done
    (tmp_path / "text.txt").write_text("two")
    with pytest.raises(InputError, match=r"text\.txt changed since the run finished") as refusal:
        refuse_changed(run, recorded)
    assert (refusal.value.reason, refusal.value.exit_code) == ("SourceChanged", ExitCode.INVALID_INPUT)


def test_a_run_that_finished_before_contents_were_recorded_is_known(tmp_path: Path) -> None:
    """It has another digest of the same file, which isn't taken for a change; another content is one."""
    run = run_of(tmp_path)
    (source,) = find_all(run)
    assert source.digest != source.content
    refuse_changed(run, {source.uri: source.digest})
    (tmp_path / "text.txt").write_text("two")
    with pytest.raises(InputError, match=r"text\.txt changed"):
        refuse_changed(run, {source.uri: source.digest})


def test_files_of_a_folder_are_recorded_beside_it(tmp_path: Path) -> None:
    """An erasure names one file; one file by itself is recorded once."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    one, both = (
        locate(f"file://{tmp_path}/{name}", corpus_root=tmp_path, downloads=tmp_path) for name in ("a.txt", "*.txt")
    )
    assert set(digests([one])) == {one.uri}
    recorded = digests([one, both])
    assert recorded == {
        one.uri: hashlib.sha256(b"a.txt").hexdigest(),
        both.uri: both.digest,
        f"file://{tmp_path}/b.txt": hashlib.sha256(b"b.txt").hexdigest(),
    }


def test_clusters_finished_run_stays_finished(tmp_path: Path) -> None:
    """A pod that starts again for another pod's sake doesn't turn success into failure."""
    run = run_of(tmp_path, uid="11111111-2222-3333-4444-555555555555")
    recorded = digests(find_all(run))
    (tmp_path / "text.txt").write_text("two")
    refuse_changed(run, recorded)
