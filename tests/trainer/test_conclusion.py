"""What MLflow is told of a job's settings."""

from cloze_api.resources import FineTuneJob
from cloze_trainer.conclusion import params


def test_a_runs_parameters_say_what_was_asked_for() -> None:
    """What the model is for and what it was held to, too; nothing where nothing was asked."""
    spec = {
        "base": {"uri": "file:///base"},
        "task": "sequence-classification",
        "problem": "multi-label",
        "dataset": {"train": "file:///train", "test": "file:///test"},
        "registry": {"name": "mails"},
        "evaluation": {"gates": [{"figure": "macro_f1", "minimum": 0.9}]},
        "export": {"precisions": ["int8"]},
    }
    document = {"apiVersion": "cloze.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "one"}, "spec": spec}
    told = params(FineTuneJob.model_validate(document))
    assert (told["kind"], told["task"], told["problem"]) == ("FineTuneJob", "sequence-classification", "multi-label")
    assert "'figure': 'macro_f1'" in told["evaluation.gates"]
    assert told["export.precisions"] == "['int8']"
    assert "distillation" not in told
    assert all(told.values())
