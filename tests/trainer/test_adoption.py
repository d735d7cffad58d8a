"""Continuing from models in Hugging Face's format, and taking their tokenizers: what is learned goes on as it was."""

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES
from safetensors.torch import load_file, save_file
from small_runs import run_of
from tokenizers import Tokenizer, processors
from torch.nn import functional

from cloze_api.manifest import Manifest, tokenizer_fingerprint, verify
from cloze_api.task import Task
from cloze_trainer import artifact, conclusion, worker
from cloze_trainer.base import open_base
from cloze_trainer.data import shards
from cloze_trainer.errors import BaseModelError, GateError, InputError
from cloze_trainer.gang import Gang
from cloze_trainer.pretrain import Pretraining, prepare
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality.judgement import Judgement
from cloze_trainer.run import Run
from cloze_trainer.worker import initial_model

TEXTS = [f"sentence number {number} tells what the ships carry. is it {number % 7}?" for number in range(60)]
EVERY = pytest.mark.parametrize("family", FAMILIES)


class Alone(Gang):
    """The only rank, without a process group."""

    def __init__(self) -> None:
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")

    def sum(self, *values: float) -> tuple[float, ...]:
        return values


def workload_of(folder: Path, **spec: Any) -> tuple[Run, Pretraining]:
    run, parsed = run_of(folder, TEXTS, **spec)
    # As the other ranks get it.
    prepared = pickle.loads(pickle.dumps(prepare(run, parsed, ProgressFile(None))))  # noqa: S301 - made here
    return run, Pretraining(parsed, prepared, torch.device("cpu"))


def save(folder: Path, tiny: Any, family: str, task: Task = Task.FILL_MASK) -> Any:
    """A model as this trainer's networks are; ModernBERT's local layers see 64 tokens to each side."""
    model, _ = tiny.save(folder, family, task)
    if family == "modernbert":
        model.config.local_attention = 128
        model = transformers.AutoModel.from_pretrained(folder) if task is Task.EMBEDDING else model
        model.config.local_attention = 128
        model.save_pretrained(folder)
    return model


def expected_loss(workload: Pretraining, theirs: Any) -> tuple[float, int]:
    """Mean loss of the held-out masks by transformers' model, each text alone."""
    loss, count = 0.0, 0
    held_out_NT, special = workload.shards.held_out_NT, workload.config.special_tokens
    for number, row_T in enumerate(held_out_NT):
        masked_T, hidden_T = workload._evaluation_masker.row(row_T.astype("int64"), 0, number)
        starts = [at for at, token in enumerate(row_T) if token == special.cls]
        for start in starts:
            end = start + list(row_T[start:]).index(special.sep) + 1
            hidden = torch.from_numpy(hidden_T[start:end])
            with torch.no_grad():
                logits = theirs(torch.from_numpy(masked_T[start:end])[None]).logits[0]
            targets = torch.from_numpy(row_T[start:end].astype("int64"))[hidden]
            loss += float(functional.cross_entropy(logits[hidden], targets, reduction="sum"))
            count += len(targets)
    return loss / count, count


@EVERY
def test_before_the_first_step_the_held_out_loss_is_that_of_the_base(family: str, tmp_path: Path, tiny: Any) -> None:
    """The same masked texts through transformers' model and through ours, with its ids, positions and head."""
    save(tmp_path / "model", tiny, family)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    _, workload = workload_of(tmp_path, base={"uri": f"file://{tmp_path}/model"})
    figures = workload.evaluate(initial_model(workload, 1), Alone())
    loss, count = expected_loss(workload, theirs)
    assert count > 20
    assert figures["masked_loss"] == pytest.approx(loss, rel=1e-4)
    assert workload.config.max_length == 40


@EVERY
def test_what_is_published_loads_in_transformers_and_is_a_base_again(family: str, tmp_path: Path, tiny: Any) -> None:
    """Continued and published, it has its tokenizer's fingerprint, ids and lengths; the next run starts from it."""
    save(tmp_path / "model", tiny, family)
    run, workload = workload_of(tmp_path, base={"uri": f"file://{tmp_path}/model"})
    model = initial_model(workload, 1)
    artifact.write(run, workload, model, Judgement({}), {})
    manifest = verify(run.artifact)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    # As the library reads it, which may round the last digit of a piece's probability.
    given = json.loads(Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).to_str())
    assert manifest.tokenizer_fingerprint == tokenizer_fingerprint(given)
    assert manifest.special_tokens.mask == theirs.mask_token_id
    assert manifest.limits.max_length == 40
    assert manifest.lineage.base == f"file://{tmp_path}/model"
    ids = theirs("where is it?", return_tensors="pt")["input_ids"]
    again = transformers.AutoModelForMaskedLM.from_pretrained(run.artifact).eval()
    assert transformers.AutoTokenizer.from_pretrained(run.artifact)("where is it?")["input_ids"] == ids[0].tolist()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids), rtol=1e-4, atol=1e-5)
    base = open_base(run.artifact, "small/1", None)
    assert base.config == workload.config


@EVERY
def test_base_without_a_head_gets_a_new_one(
    family: str, tmp_path: Path, tiny: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """The encoder is the base's, the head is drawn from the seed, and the log says so."""
    save(tmp_path / "model", tiny, family, Task.EMBEDDING)
    _, workload = workload_of(tmp_path, base={"uri": f"file://{tmp_path}/model"})
    model, same = initial_model(workload, 1), initial_model(workload, 1)
    words = next(
        value
        for name, value in load_file(tmp_path / "model" / "model.safetensors").items()
        if "word" in name or "tok_" in name
    )
    torch.testing.assert_close(model.encoder.embeddings.words.weight, words)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert "head is new" in capfd.readouterr().err


def test_a_tokenizer_is_taken_as_it_is(tmp_path: Path, tiny: Any) -> None:
    """A new model of the spec's sizes; vocabulary and special tokens follow from the tokenizer, and so does masking."""
    tiny.save(tmp_path / "model", "roberta", Task.FILL_MASK)
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "config.json").unlink()
    run, workload = workload_of(
        tmp_path,
        tokenizer={"reuse": {"uri": f"file://{tmp_path}/model"}},
        model={"layers": 1, "hiddenSize": 16, "heads": 2, "intermediateSize": 32, "maxLength": 32, "dropout": 0},
        masking={"unit": "word"},
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert workload.base is None
    assert workload.config.vocab_size == len(theirs)
    (row, *_) = workload.shards.train_NT
    assert row[0] == theirs.cls_token_id
    hidden = {int(token) for step in range(20) for chunk in workload.share(step, 0, 1, 0.0) for token in chunk.targets}
    assert hidden
    assert not hidden & {theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id, theirs.mask_token_id}
    artifact.write(run, workload, initial_model(workload, 1), Judgement({}), {})
    given = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert verify(run.artifact).tokenizer_fingerprint == tokenizer_fingerprint(given)


def test_a_tokenizer_may_be_in_sentencepieces_own_file(tmp_path: Path, tiny: Any) -> None:
    """As many of XLM-RoBERTa's are published: it is what it is in `tokenizer.json`."""
    _, tokenizer = tiny.save(tmp_path / "model", "xlm-roberta", Task.FILL_MASK)
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "sentencepiece.bpe.model").write_bytes(tiny.sentence_piece_model())
    _, workload = workload_of(tmp_path, base={"uri": f"file://{tmp_path}/model"}, masking={"unit": "word"})
    assert workload.base is not None
    read = Tokenizer.from_file(str(workload.base.folder / "tokenizer.json"))
    assert all(read.encode(text).ids == tokenizer(text)["input_ids"] for text in TEXTS)


def test_long_texts_are_not_cut_by_settings_in_the_tokenizer(tmp_path: Path, tiny: Any) -> None:
    """Truncation and padding that somebody left in `tokenizer.json` lose no text and add nothing."""
    _, tokenizer = tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
    plain = sum(len(tokenizer(text)["input_ids"]) - 2 for text in TEXTS)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    tokenizer.backend_tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    _, workload = workload_of(tmp_path, base={"uri": f"file://{tmp_path}/model"})
    special = [0, 2, 3]
    both = (workload.shards.train_NT, workload.shards.held_out_NT)
    assert sum(int((~np.isin(rows_NT, special)).sum()) for rows_NT in both) == plain


@EVERY
def test_special_tokens_that_a_text_spells_frame_nothing(family: str, tmp_path: Path, tiny: Any) -> None:
    """Pages have `<s>` as they have `<b>`: no other text begins there, and none of a text is padding, or hidden."""
    _, theirs = tiny.save(tmp_path / "model", family, Task.FILL_MASK)
    spelt = itertools.cycle(theirs.all_special_tokens)
    texts = [f"{token}{text}{token} so {token} is it" for token, text in zip(spelt, TEXTS, strict=False)]
    wanted = {"layers": 1, "hiddenSize": 16, "heads": 2, "intermediateSize": 32, "maxLength": 200}
    run, spec = run_of(tmp_path, texts, tokenizer={"reuse": {"uri": f"file://{tmp_path}/model"}}, model=wanted)
    found = shards.read(prepare(run, spec, ProgressFile(None)).folder)
    begun = 0
    for row_T in [*found.train_NT, *found.held_out_NT]:
        assert theirs.mask_token_id not in row_T
        text_T = row_T[: int((row_T != theirs.pad_token_id).sum())]
        begins, ends = (np.flatnonzero(text_T == each) for each in (theirs.cls_token_id, theirs.sep_token_id))
        assert theirs.pad_token_id not in text_T
        assert begins.tolist() == [0, *(ends[:-1] + 1)]
        assert ends[-1] == len(text_T) - 1
        begun += len(begins)
    assert begun >= len(texts)


def refused(folder: Path, **spec: Any) -> InputError | BaseModelError:
    run, parsed = run_of(folder, TEXTS, **spec)
    with pytest.raises((InputError, BaseModelError)) as refusal:
        prepare(run, parsed, ProgressFile(None))
    assert isinstance(refusal.value, InputError | BaseModelError)
    assert str(folder / "workspace") not in refusal.value.message
    return refusal.value


def test_unsuitable_folders_are_refused_before_the_corpus_is_read(tmp_path: Path, tiny: Any) -> None:
    """Pickled weights, a missing mask token, another kind of encoder: each with a reason, and named by its URI."""
    folder = tmp_path / "model"
    base = {"uri": f"file://{folder}"}
    _, tokenizer = tiny.save(folder, "bert", Task.FILL_MASK)
    weights, settings = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    (folder / "config.json").write_text(settings.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert refused(tmp_path, base=base).reason == "BaseArchitectureUnknown"
    (folder / "config.json").write_text(settings.replace('"model_type": "bert"', '"model_type": "t5"'))
    assert refused(tmp_path, base=base).reason == "ArchitectureUnsupported"
    (folder / "config.json").write_text(settings)
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    run, parsed = run_of(tmp_path, TEXTS, base=base)
    workload = Pretraining(parsed, prepare(run, parsed, ProgressFile(None)), torch.device("cpu"))
    with pytest.raises(BaseModelError, match=r"no tensor bert\.embeddings\.word_embeddings"):
        initial_model(workload, 1)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refusal = refused(tmp_path, base=base)
    assert refusal.reason == "SafetensorsMissing"
    assert base["uri"] in refusal.message
    (folder / "model.safetensors").write_bytes(weights)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("mask_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    refusal = refused(tmp_path, base=base)
    assert (refusal.reason, "mask" in refusal.message) == ("SpecialTokensMissing", True)
    refusal = refused(tmp_path, tokenizer={"reuse": base})
    assert refusal.reason == "SpecialTokensMissing"


@pytest.mark.parametrize(("one", "other"), [("pad", "sep"), ("cls", "mask")])
def test_a_tokenizer_with_one_token_in_two_roles_is_refused(tmp_path: Path, tiny: Any, one: str, other: str) -> None:
    """With the base and without: what is padding, where a text ends and what is hidden could not be told apart."""
    folder = tmp_path / "model"
    _, tokenizer = tiny.save(folder, "bert", Task.FILL_MASK)
    setattr(tokenizer, f"{one}_token", getattr(tokenizer, f"{other}_token"))
    if one == "cls":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[MASK] $A [SEP]", special_tokens=[("[MASK]", 4), ("[SEP]", 3)]
        )
    tokenizer.save_pretrained(folder)
    named = {"uri": f"file://{folder}"}
    for spec in ({"base": named}, {"tokenizer": {"reuse": named}}):
        refusal = refused(tmp_path, **spec)
        assert refusal.reason == "SpecialTokensInvalid"
        assert f"one token as {one} and {other}" in refusal.message


def test_a_language_model_that_fails_a_gate_is_not_registered(tmp_path: Path, tiny: Any) -> None:
    """Judged as a whole run judges it: the figures are told, and the artifact is kept with why, for a reviewer, too."""
    save(tmp_path / "model", tiny, "bert")
    gates = [{"figure": "masked_accuracy", "minimum": 1}, {"figure": "bias_work", "maximum": 1e6}]
    evaluation = {
        "heldOutFraction": 0.3,
        "gates": gates,
        "audit": {
            "bias": [{"name": "work"}],
            "canaries": [{"name": "code", "template": "it is {}", "secret": "qrxz"}],
        },
    }
    run, workload = workload_of(tmp_path, base={"uri": f"file://{tmp_path}/model"}, evaluation=evaluation)
    model = initial_model(workload, 1)
    judged = worker._judge(run, workload, model, Alone(), None)
    assert set(judged.figures) >= {"perplexity", "exposure_code", "exposure", "bias_work", "bias_spread_work"}
    artifact.write(run, workload, model, judged, {})
    with pytest.raises(GateError, match=r"masked_accuracy is .*, and must be at least 1") as refusal:
        conclusion.conclude(run, ProgressFile(None))
    assert refusal.value.figures["exposure"] == judged.figures["exposure"]
    report = json.loads((run.artifact / "evaluation.json").read_text())
    assert [(each["gate"], each["passed"]) for each in report["gates"]] == [
        ("masked_accuracy", False),
        ("bias_work", True),
    ]
    assert len(report["bias"]["work"]) == 8
    assert "**failed**: masked_accuracy is" in (run.artifact / "README.md").read_text()
    assert not any(b"qrxz" in path.read_bytes() for path in run.artifact.iterdir())


def test_continuing_from_a_registered_version(tmp_path: Path, tiny: Any, mlflow: str) -> None:
    """An imported model that was registered goes on with its own ids; its name and digest are recorded."""
    from cloze_trainer import import_options, importing, registry  # noqa: PLC0415 - MLflow takes seconds to import
    from cloze_trainer.tracking import JobTags  # noqa: PLC0415

    save(tmp_path / "model", tiny, "roberta")
    given = ["--task", "fill-mask", "--name", "adopted", "--output", str(tmp_path / "imported")]
    done = importing.run(import_options.parse([str(tmp_path / "model"), *given]))
    assert done.model_digest is not None
    tags = JobTags(uid="u", job="ns/j", task="fill-mask", experiment="adopted", repeatable=True)
    found = registry.register(mlflow, tags, tmp_path / "imported", done.model_digest, facts={}, params={}, figures={})
    version = {"model": {"name": "adopted", "version": found.version}}
    run, spec = run_of(tmp_path, TEXTS, base=version)
    run = Run(run.job, "uid", run.workspace, run.corpus_root, mlflow)
    workload = Pretraining(spec, prepare(run, spec, ProgressFile(None)), torch.device("cpu"))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    figures = workload.evaluate(initial_model(workload, 1), Alone())
    assert figures["masked_loss"] == pytest.approx(expected_loss(workload, theirs)[0], rel=1e-4)
    artifact.write(run, workload, initial_model(workload, 1), Judgement({}), {})
    manifest: Manifest = verify(run.artifact)
    assert (manifest.lineage.base, manifest.lineage.base_digest) == ("adopted/1", done.model_digest)
    run, spec = run_of(tmp_path, TEXTS, tokenizer={"reuse": version}, model={"maxLength": 32})
    run = Run(run.job, "uid", run.workspace, run.corpus_root, mlflow)
    scratch = Pretraining(spec, prepare(run, spec, ProgressFile(None)), torch.device("cpu"))
    assert scratch.config.vocab_size == workload.shards.vocab_size
