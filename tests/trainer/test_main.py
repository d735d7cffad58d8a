"""The command: what it leaves behind."""

import argparse
import json
from pathlib import Path

import pytest

from cloze_api.progress import ExitCode, Outcome
from cloze_trainer import main, outcome
from cloze_trainer.errors import PeerLost
from cloze_trainer.run import Run


def test_failing_pod_leaves_the_success_of_another_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's pod has registered the model when this one, which lost it, comes to its end."""
    monkeypatch.setenv("CLOZE_WORKSPACE", str(tmp_path))
    job = {
        "apiVersion": "cloze.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {"name": "small", "uid": "u"},
        "spec": {"corpus": [{"uri": "file:///x"}], "registry": {"name": "small"}},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = Outcome(reason="Registered", model_name="small", model_version="3")

    def launch(run: Run, file: Path, port: int | None) -> Outcome:
        outcome.finish(run.workspace, run.identity, done, sources={})
        return outcome.failed(PeerLost("gone"))

    monkeypatch.setattr("cloze_trainer.launch.launch", launch)
    arguments = argparse.Namespace(file=tmp_path / "job.json", progress_port=None)
    assert main._run(arguments).exit_code == ExitCode.PEER_LOST
    assert outcome.finished(tmp_path, "u", registered=True) == done
    assert main._run(arguments) == done


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--workspace", "w", "job.yaml"],
        ["--workspace", "w", "job.yaml"],
        ["run", "job.yaml", "--workspace", "w"],
    ],
)
def test_options_may_stand_between_the_words(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in any other command."""
    monkeypatch.setattr("sys.argv", ["cloze-train", *words])
    parsed = main._arguments()
    assert (parsed.file, parsed.workspace) == (Path("job.yaml"), "w")
