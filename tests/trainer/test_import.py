"""Folders in Hugging Face's format become artifacts whose graphs give what transformers' models give."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cloze_api.manifest import ONNX_FILE, Manifest, verify
from cloze_api.progress import ExitCode
from cloze_api.task import Task
from cloze_trainer import importing
from cloze_trainer.base import open_base
from cloze_trainer.errors import BaseModelError, InputError

TEXTS = ["Ada Lovelace lived in London.", "hello"]
QUESTION = "who?"
LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@dataclass(frozen=True)
class Family:
    """Configuration and tokenizer of an architecture. room: tokens that 40 positions hold."""

    config: Callable[[int], Any]
    tokenizer: Callable[[], Any]
    room: int
    segments: bool


def wordpiece(kind: str) -> Any:
    """BERT's tokenizer, of letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz.?"
    vocabulary = {
        token: number for number, token in enumerate([*special, *letters, *(f"##{each}" for each in letters)])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return getattr(transformers, kind)(tokenizer_object=tokenizer, model_max_length=10**9, **names)


def byte_level(special: list[str], kind: str, *, pairs: bool) -> Any:
    """A tokenizer of bytes, as RoBERTa's and ModernBERT's are of merged ones."""
    vocabulary = {
        token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    cls, pad, sep, unknown, mask = special
    if pairs:
        tokenizer.post_processor = processors.RobertaProcessing((sep, 2), (cls, 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B {sep}", special_tokens=[(cls, 0), (sep, 2)]
        )
    names = {"cls_token": cls, "pad_token": pad, "sep_token": sep, "unk_token": unknown, "mask_token": mask}
    if pairs:
        names |= {"bos_token": cls, "eos_token": sep}
    return getattr(transformers, kind)(tokenizer_object=tokenizer, **names)


FAMILIES = {
    "bert": Family(
        lambda size: transformers.BertConfig(
            vocab_size=size, max_position_embeddings=40, initializer_range=0.4, **SIZES
        ),
        lambda: wordpiece("PreTrainedTokenizerFast"),
        40,
        segments=True,
    ),
    "distilbert": Family(
        lambda size: transformers.DistilBertConfig(
            vocab_size=size,
            max_position_embeddings=40,
            initializer_range=0.4,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
        ),
        lambda: wordpiece("PreTrainedTokenizerFast"),
        40,
        segments=False,
    ),
    "roberta": Family(
        lambda size: transformers.RobertaConfig(
            vocab_size=size,
            max_position_embeddings=42,
            type_vocab_size=1,
            initializer_range=0.4,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            **SIZES,
        ),
        lambda: byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "PreTrainedTokenizerFast", pairs=True),
        40,
        segments=False,
    ),
    "modernbert": Family(
        lambda size: transformers.ModernBertConfig(
            **{**SIZES, "num_hidden_layers": 4},
            vocab_size=size,
            max_position_embeddings=40,
            local_attention=8,
            initializer_range=0.4,
            cls_token_id=0,
            bos_token_id=0,
            pad_token_id=1,
            sep_token_id=2,
            eos_token_id=2,
        ),
        lambda: byte_level(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"], "PreTrainedTokenizerFast", pairs=False),
        40,
        segments=False,
    ),
}
HEADS = {
    Task.FILL_MASK: transformers.AutoModelForMaskedLM,
    Task.SEQUENCE_CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    Task.TOKEN_CLASSIFICATION: transformers.AutoModelForTokenClassification,
    Task.QUESTION_ANSWERING: transformers.AutoModelForQuestionAnswering,
    Task.EMBEDDING: transformers.AutoModel,
}


def save(folder: Path, family: str, task: Task) -> tuple[Any, Any]:
    """Write a tiny random model in Hugging Face's format; the model and its tokenizer."""
    tokenizer = FAMILIES[family].tokenizer()
    config = FAMILIES[family].config(len(tokenizer))
    if task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
        config.id2label, config.label2id = LABELS, {name: number for number, name in LABELS.items()}
    torch.manual_seed(3)
    model = HEADS[task].from_config(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def convert(folder: Path, output: Path, task: Task, **options: Any) -> Manifest:
    """Import a folder; the verified manifest."""
    importing.run(asked(folder, output, task, **options))
    return verify(output)


def asked(folder: Path, output: Path, task: Task, **options: Any) -> importing.Asked:
    """A command line."""
    given = {"name": "tiny", "register": False, "pooling": None, "normalize": False, "matryoshka": []} | options
    return importing.Asked(folder=folder, output=output, task=task, **given)


def run_graph(folder: Path, manifest: Manifest, encoded: Any) -> Any:
    """The output of an artifact's graph."""
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
    ids = encoded["input_ids"].numpy()
    available = {"input_ids": ids, "attention_mask": encoded["attention_mask"].numpy()}
    available["token_type_ids"] = encoded["token_type_ids"].numpy() if "token_type_ids" in encoded else ids * 0
    return session.run([manifest.output], {name: available[name] for name in manifest.inputs})[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", HEADS)
def test_the_graph_of_every_architecture_gives_what_its_model_gives(tmp_path: Path, family: str, task: Task) -> None:
    """On padded texts, and on pairs for question answering; the manifest says what a server needs to know."""
    model, tokenizer = save(tmp_path / "model", family, task)
    options = {"pooling": "mean", "normalize": True} if task is Task.EMBEDDING else {}
    manifest = convert(tmp_path / "model", tmp_path / "artifact", task, **options)
    pairs = ([QUESTION] * 2, TEXTS) if task is Task.QUESTION_ANSWERING else (TEXTS,)
    keep_segments = {"return_token_type_ids": FAMILIES[family].segments}
    encoded = tokenizer(*pairs, padding=True, return_tensors="pt", **keep_segments)
    with torch.no_grad():
        output = model(**encoded)
    actual = run_graph(tmp_path / "artifact", manifest, encoded)
    mask = encoded["attention_mask"].numpy()
    if task is Task.QUESTION_ANSWERING:
        expected = torch.stack([output.start_logits, output.end_logits], -1).numpy()
    elif task is Task.EMBEDDING:
        hidden = output.last_hidden_state.numpy()
        expected = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    else:
        expected = output.logits.numpy()
    if task not in (Task.EMBEDDING, Task.SEQUENCE_CLASSIFICATION):
        expected, actual = expected[mask == 1], actual[mask == 1]
    np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=1e-3)
    special = manifest.special_tokens
    assert (special.pad, special.cls, special.sep) == (
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )
    assert (special.mask, special.unk) == (tokenizer.mask_token_id, tokenizer.unk_token_id)
    assert manifest.limits.max_length == FAMILIES[family].room
    assert ("token_type_ids" in manifest.inputs) == FAMILIES[family].segments
    assert manifest.labels == (list(LABELS.values()) if "classification" in task else [])
    assert manifest.lineage.data["model.safetensors"]
    assert manifest.lowercase == (family in ("bert", "distilbert"))


def test_an_artifact_is_still_a_folder_in_hugging_faces_format(tmp_path: Path) -> None:
    """It can be loaded again, and imported again."""
    model, _ = save(tmp_path / "model", "roberta", Task.TOKEN_CLASSIFICATION)
    (tmp_path / "model" / "README.md").write_text("a card")
    convert(tmp_path / "model", tmp_path / "artifact", Task.TOKEN_CLASSIFICATION)
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "artifact")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "artifact")
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        torch.testing.assert_close(again(**encoded).logits, model(**encoded).logits)
    assert (tmp_path / "artifact" / "README.md").read_text() == "a card"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "artifact").iterdir())


def test_a_tokenizer_without_a_mask_serves_other_tasks(tmp_path: Path) -> None:
    """The manifest says that there is none; for fill-mask it is refused."""
    save(tmp_path / "model", "bert", Task.FILL_MASK)
    path = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["mask_token"]
    path.write_text(json.dumps(settings))
    manifest = convert(tmp_path / "model", tmp_path / "artifact", Task.EMBEDDING, pooling="cls")
    assert manifest.special_tokens.mask is None
    with pytest.raises(InputError, match="no mask token") as refused:
        convert(tmp_path / "model", tmp_path / "other", Task.FILL_MASK)
    assert refused.value.reason == "SpecialTokensMissing"
    assert not (tmp_path / "other").exists()


def sentence_transformer(folder: Path, *, normalize: bool = True, **pooling: Any) -> Any:
    """A folder as sentence-transformers writes it."""
    model, tokenizer = save(folder, "bert", Task.EMBEDDING)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": number,
                    "path": "" if number == 0 else f"{number}_{kind}",
                    "type": f"sentence_transformers.models.{kind}",
                }
                for number, kind in enumerate(kinds)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings | pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    return model, tokenizer


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_say_themselves_how_they_pool(tmp_path: Path, pooling: str, normalize: bool) -> None:
    """And how many tokens they take, however many positions the encoder has."""
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    model, tokenizer = sentence_transformer(tmp_path / "model", normalize=normalize, **{key: True})
    manifest = convert(tmp_path / "model", tmp_path / "artifact", Task.EMBEDDING, matryoshka=[8, 4])
    assert manifest.embedding is not None
    assert manifest.embedding.model_dump() == {
        "dimensions": 16,
        "pooling": pooling,
        "normalized": normalize,
        "matryoshka": [4, 8],
    }
    assert manifest.limits.max_length == 24
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state.numpy()
    mask = encoded["attention_mask"].numpy()[:, :, None]
    expected = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(run_graph(tmp_path / "artifact", manifest, encoded), expected, atol=1e-4)


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    """Other fields of a JSON file of the folder."""

    def apply(folder: Path) -> None:
        path = folder / name
        document = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    return apply


def modules(*kinds: str) -> Callable[[Path], None]:
    """A folder of these modules."""
    listed = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    return lambda folder: (folder / "modules.json").write_text(json.dumps(listed)) and None


@pytest.mark.parametrize(
    ("task", "break_it", "options", "reason", "said"),
    [
        (
            Task.SEQUENCE_CLASSIFICATION,
            lambda folder: (folder / "config.json").unlink(),
            {},
            "ConfigMissing",
            "config.json",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            lambda folder: (folder / "config.json").write_text("{"),
            {},
            "ConfigInvalid",
            "JSON",
        ),
        (Task.SEQUENCE_CLASSIFICATION, change("config.json", model_type="gpt2"), {}, "ArchitectureUnsupported", "gpt2"),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", auto_map={"AutoModel": "x.Y"}),
            {},
            "ArchitectureUnsupported",
            "code",
        ),
        (Task.SEQUENCE_CLASSIFICATION, change("config.json", architectures=None), {}, "ConfigInvalid", "architectures"),
        (Task.SEQUENCE_CLASSIFICATION, change("config.json", vocab_size=None), {}, "ConfigInvalid", "vocab_size"),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", problem_type="regression"),
            {},
            "ProblemUnsupported",
            "exclude",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", id2label={"0": "a", "2": "b"}),
            {},
            "ConfigInvalid",
            "gaps",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", id2label={"0": "a", "1": "a"}),
            {},
            "LabelsInvalid",
            "different",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            lambda folder: (folder / "model.safetensors").unlink(),
            {},
            "WeightsInvalid",
            "weights",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
            {},
            "WeightsInvalid",
            "weights",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            {},
            "TokenizerUnsupported",
            "tokenizer",
        ),
        (Task.TOKEN_CLASSIFICATION, lambda _: None, {}, "HeadMissing", "sequence-classification"),
        (Task.FILL_MASK, lambda _: None, {}, "HeadMissing", "fine-tune"),
        (
            Task.FILL_MASK,
            change("config.json", architectures=["BertForMaskedLM"]),
            {},
            "WeightsMissing",
            "random",
        ),
        (Task.SEQUENCE_CLASSIFICATION, lambda _: None, {"name": "a/b"}, "NameInvalid", "name"),
        (Task.SEQUENCE_CLASSIFICATION, lambda _: None, {"register": True}, "RegistryUnset", "MLFLOW_TRACKING_URI"),
        (Task.SEQUENCE_CLASSIFICATION, lambda _: None, {"matryoshka": [4]}, "MatryoshkaInvalid", "matryoshka"),
        (Task.EMBEDDING, lambda _: None, {}, "PoolingUnknown", "--pooling"),
        (Task.EMBEDDING, modules("Transformer", "Pooling", "Dense"), {}, "ModulesUnsupported", "Dense"),
        (Task.EMBEDDING, modules("Transformer", "Pooling"), {"pooling": "cls"}, "PoolingKnown", "leave it"),
        (Task.EMBEDDING, modules("Transformer", "Pooling"), {}, "PoolingUnsupported", "nothing"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: Task,
    break_it: Callable[[Path], None],
    options: dict[str, Any],
    reason: str,
    said: str,
) -> None:
    """Final, in a sentence that says what to do, and without leaving anything behind."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    break_it(tmp_path / "model")
    with pytest.raises(InputError, match=said) as refused:
        importing.run(asked(tmp_path / "model", tmp_path / "artifact", task, **options))
    assert (refused.value.reason, refused.value.exit_code) == (reason, ExitCode.INVALID_INPUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_same_import_again_keeps_what_is_there(tmp_path: Path) -> None:
    """Another one does not take its place."""
    save(tmp_path / "model", "distilbert", Task.SEQUENCE_CLASSIFICATION)
    first = importing.run(asked(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION))
    again = importing.run(asked(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION))
    assert first.model_digest == again.model_digest
    with pytest.raises(InputError) as refused:
        importing.run(asked(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION, name="other"))
    assert refused.value.reason == "OutputExists"


def test_an_imported_encoder_is_no_base_whose_tokens_the_trainer_would_mistake(tmp_path: Path) -> None:
    """Its special tokens have ids of their own."""
    save(tmp_path / "model", "roberta", Task.FILL_MASK)
    convert(tmp_path / "model", tmp_path / "artifact", Task.FILL_MASK)
    with pytest.raises(BaseModelError) as refused:
        open_base(tmp_path / "artifact", "tiny/1", None)
    assert refused.value.reason == "BaseTokenizerUnsuitable"


def test_the_command_registers_a_version_once(tmp_path: Path, mlflow: str) -> None:
    """With the digest that the server will ask for; the same command again finds it."""
    from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

    save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    command = [
        *(sys.executable, "-m", "cloze_trainer.main", "import", str(tmp_path / "model")),
        *(
            "--task",
            "sequence-classification",
            "--name",
            "imported",
            "--output",
            str(tmp_path / "artifact"),
            "--register",
        ),
    ]
    for _ in range(2):
        done = subprocess.run(
            command, check=False, env=os.environ | {"MLFLOW_TRACKING_URI": mlflow}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    versions = registry.client(mlflow).search_model_versions("name = 'imported'")
    assert [(version.version, version.tags["cloze.dev/task"]) for version in versions] == [
        ("1", "sequence-classification")
    ]
    registry.download(mlflow, "imported", "1", tmp_path / "downloaded")
    assert verify(tmp_path / "downloaded", versions[0].tags["cloze.dev/digest"]).name == "imported"


def test_the_command_tells_a_refusal_by_its_code(tmp_path: Path) -> None:
    """On the log, too."""
    command = [
        *(sys.executable, "-m", "cloze_trainer.main", "import", str(tmp_path / "none")),
        *("--task", "embedding", "--name", "x", "--output", str(tmp_path / "artifact")),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == ExitCode.INVALID_INPUT
    assert "FolderMissing" in done.stdout + done.stderr
