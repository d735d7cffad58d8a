"""The file of a run: which of its documents is the job, and which run it is."""

import json
from pathlib import Path

import pytest

from cloze_api.resources import PretrainJob
from cloze_trainer.errors import InputError
from cloze_trainer.run import open_run

JOB = """\
apiVersion: cloze.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}}}
spec:
  corpus: [{{uri: file:///x}}]
  registry: {{name: x}}
"""
CLAIM = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: texts}\n"


def opened(folder: Path, *documents: str) -> str:
    file = folder / "job.yaml"
    file.write_text("---\n".join(documents), encoding="utf-8")
    return open_run(file).job.metadata.name


def test_the_one_training_job_of_several_documents_is_taken(tmp_path: Path) -> None:
    """A file for `kubectl apply`, with a claim beside the job, also runs here."""
    assert opened(tmp_path, CLAIM, JOB.format(kind="PretrainJob", name="mine"), "") == "mine"


def test_json_may_write_any_character_as_escapes(tmp_path: Path) -> None:
    """Those beyond the first 65,536 are two of them."""
    spec = {"corpus": [{"uri": "file:///📚"}], "registry": {"name": "x"}}
    job = {"apiVersion": "cloze.dev/v1alpha1", "kind": "PretrainJob", "metadata": {"name": "one"}, "spec": spec}
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job), encoding="ascii")
    opened = open_run(file).job
    assert isinstance(opened, PretrainJob)
    assert opened.spec.corpus[0].uri == "file:///📚"


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (
            [JOB.format(kind="PretrainJob", name="one"), JOB.format(kind="PretrainJob", name="two")],
            r"more than one training job \(PretrainJob one, PretrainJob two\)",
        ),
        ([CLAIM, CLAIM], r"no training job \(PersistentVolumeClaim texts, PersistentVolumeClaim texts\)"),
        ([CLAIM], "kind is 'PersistentVolumeClaim'"),
        (["a text\n"], "no training job"),
        ([""], "no training job"),
    ],
)
def test_any_other_number_is_refused_with_the_choices(tmp_path: Path, documents: list[str], words: str) -> None:
    """The message names what the file holds."""
    with pytest.raises(InputError, match=words) as refusal:
        opened(tmp_path, *documents)
    assert refusal.value.reason == "JobInvalid"


@pytest.mark.parametrize(
    ("kind", "place", "field"), [("PretrainJob", "optimization", "lora"), ("FineTuneJob", "evaluation", "audit")]
)
def test_a_field_of_the_other_kind_of_job_is_told(tmp_path: Path, kind: str, place: str, field: str) -> None:
    """By its place, and that it isn't one of this kind's."""
    spec = {place: {field: {}}}
    job = {"apiVersion": "cloze.dev/v1alpha1", "kind": kind, "metadata": {"name": "one"}, "spec": spec}
    with pytest.raises(InputError, match=rf"spec\.{place}\.{field}: there is no such field in this kind of job"):
        opened(tmp_path, json.dumps(job))


def test_a_run_stays_the_same_with_another_topology(tmp_path: Path) -> None:
    """Nor is it another one for what watches, retries or stores it; it is, for what it learns."""

    def identity(**spec: object) -> str:
        whole = {"corpus": [{"uri": "file:///x"}], "registry": {"name": "x"}, **spec}
        job = {"apiVersion": "cloze.dev/v1alpha1", "kind": "PretrainJob", "metadata": {"name": "one"}, "spec": whole}
        file = tmp_path / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        return open_run(file).identity

    same: list[dict[str, object]] = [
        {"topology": {"nodes": 2, "processesPerNode": 2, "threadsPerProcess": 4}},
        {"profile": {"fromStep": 20}},
        {"failurePolicy": {"stuckSeconds": 60, "maxRestarts": 0}},
        {"suspend": True, "image": "train:2", "storage": {"size": "1Gi"}},
    ]
    assert {identity(**spec) for spec in same} == {identity()}
    assert identity(optimization={"seed": 1}) != identity()
