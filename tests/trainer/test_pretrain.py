"""What is told before the first step, not after the last."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from small_runs import run_of
from transformers import AutoConfig, AutoModelForMaskedLM

from cloze_api.pretrain import Architecture, MaskingUnit, PretrainJobSpec
from cloze_api.task import Task
from cloze_trainer.artifact import data_figures
from cloze_trainer.clock import Clock
from cloze_trainer.data.tokenizer import SPECIAL_IDS, continuing, read
from cloze_trainer.errors import InputError
from cloze_trainer.model import tensors
from cloze_trainer.pretrain import PreparedCorpus, Pretraining, prepare
from cloze_trainer.progress import ProgressFile
from cloze_trainer.worker import initial_model


def prepared(
    folder: Path, held_out: float, architecture: Architecture = Architecture.BERT
) -> tuple[PretrainJobSpec, PreparedCorpus]:
    run, spec = run_of(
        folder,
        [f"word{number} and" for number in range(120)],
        tokenizer={"vocabSize": 200},
        model={"maxLength": 16, "architecture": architecture},
        evaluation={"heldOutFraction": held_out},
    )
    return spec, prepare(run, spec, ProgressFile(None))


def test_held_out_text_without_a_masked_token_is_refused_before_the_training(tmp_path: Path) -> None:
    """The evaluation's masks are known from the start: hours of training don't end in nothing to measure."""
    with pytest.raises(InputError, match="heldOutFraction") as refusal:
        prepared(tmp_path, 0.001)
    assert refusal.value.reason == "HeldOutTooSmall"
    prepared(tmp_path, 0.3)


def test_figures_of_the_tokenizer_are_among_those_of_the_data(tmp_path: Path) -> None:
    """By the names that MLflow and gates have."""
    figures = data_figures(Pretraining(*prepared(tmp_path, 0.3), torch.device("cpu")))
    report = json.loads(next((tmp_path / "workspace" / "data").glob("*/report.json")).read_text())
    assert figures["data_unknown_share"] == report["unknown_share"]
    assert figures["data_tokens_per_character"] == report["tokens_per_character"] > 0


@pytest.mark.parametrize("unit", MaskingUnit)
def test_what_is_hidden_as_one_and_how_much_is_as_the_job_says(unit: MaskingUnit, tmp_path: Path) -> None:
    """Words and spans of the job's own tokenizer, and more at the first step than at the last."""
    spec, corpus = prepared(tmp_path, 0.3)
    masking = {"unit": unit, "probability": 0.8, "finalProbability": 0.1}
    spec = spec.model_copy(update={"masking": type(spec.masking).model_validate(masking)})
    workload = Pretraining(spec, corpus, torch.device("cpu"))
    goes_on = continuing(read(corpus.folder))

    def weight(batch: int, done: float) -> int:
        return sum(chunk.weight for chunk in workload.share(batch, 0, 1, done))

    assert sum(weight(batch, 0.0) for batch in range(4)) > 2 * sum(weight(batch, 1.0) for batch in range(4))
    parted = 0
    for chunk in (chunk for batch in range(20) for chunk in workload.share(batch, 0, 1, 0.0)):
        _, _, _, positions, _ = chunk.inputs
        assert positions is not None
        hidden = dict(zip(positions.tolist(), chunk.targets.tolist(), strict=True))
        for position, token in hidden.items():
            parted += bool(goes_on[token]) and position - 1 not in hidden
    assert (parted > 0) == (unit is MaskingUnit.TOKEN)


def test_the_length_in_tokens_and_the_growing_batch_are_the_jobs(tmp_path: Path) -> None:
    """How many steps that takes is told from the start, about."""
    spec, corpus = prepared(tmp_path, 0.3)
    asked = {
        "maxTokens": 3000,
        "warmupTokens": 300,
        "batchSequences": 8,
        "batchWarmup": {"fromSequences": 2, "steps": 6},
    }
    optimization = type(spec.optimization).model_validate(asked)
    workload = Pretraining(spec.model_copy(update={"optimization": optimization}), corpus, torch.device("cpu"))
    assert workload.clock == Clock(3000, 300, in_tokens=True)
    batches = [workload.share(batch, 0, 1, 0.0) for batch in range(60)]
    assert [sum(chunk.sequences for chunk in chunks) for chunks in batches[:8]] == [2, 3, 4, 5, 6, 7, 8, 8]
    tokens = list(itertools.accumulate(sum(chunk.tokens for chunk in chunks) for chunks in batches))
    needed = next(number for number, reached in enumerate(tokens, 1) if reached >= 3000)
    assert workload.total_steps == pytest.approx(needed, rel=0.1)


@pytest.mark.parametrize("architecture", Architecture)
def test_a_text_among_others_is_predicted_as_if_it_were_alone(architecture: Architecture, tmp_path: Path) -> None:
    """Packed texts see neither each other nor the padding: the logits are those of transformers for each by itself."""
    workload = Pretraining(*prepared(tmp_path, 0.3, architecture), torch.device("cpu"))
    model = initial_model(workload, 1)
    settings = AutoConfig.for_model(**workload.config.transformers(Task.FILL_MASK))
    theirs = AutoModelForMaskedLM.from_config(settings, attn_implementation="eager")
    assert theirs.load_state_dict(tensors(model), strict=False).unexpected_keys == []
    theirs.tie_weights()
    model.eval()
    theirs.eval()
    compared = 0
    for chunk in (chunk for step in range(4) for chunk in workload.share(step, 0, 1, 0.0)):
        ids, mask, _, _, places = chunk.inputs
        assert ids is not None
        assert mask is not None
        assert places is not None
        with torch.no_grad():
            ours = model(ids, mask, None, None, places)
            for ids_T, places_T, logits_TV in zip(ids, places, ours, strict=True):
                for text in texts(ids_T, places_T):
                    (alone_TV,) = theirs(ids_T[text][None]).logits
                    torch.testing.assert_close(logits_TV[text], alone_TV, rtol=1e-4, atol=1e-5)
                    compared += 1
    assert compared > 16


def texts(ids_T: torch.Tensor, places_T: torch.Tensor) -> list[slice]:
    """Where the texts of a row are."""
    length = int((ids_T != SPECIAL_IDS.pad).sum())
    starts = [int(start) for start in torch.nonzero(places_T[:length] == 0).flatten()]
    return [slice(start, end) for start, end in itertools.pairwise([*starts, length])]
