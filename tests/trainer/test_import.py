"""Folders in Hugging Face's format become artifacts whose graphs give what transformers' models give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from asking import ask
from families import FAMILIES, PAIRED
from remote_stores import KEYS, Stores, serving
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from whole_runs import command

from cloze_api.manifest import ONNX_FILE, WEIGHTS_FILE, Manifest, verify
from cloze_api.precision import Precision
from cloze_api.progress import ExitCode
from cloze_api.task import Problem, Task
from cloze_trainer import import_options, importing
from cloze_trainer.base import open_base, open_encoder
from cloze_trainer.errors import BaseModelError, InputError
from cloze_trainer.huggingface import PROBLEM_TYPES
from cloze_trainer.model import build, load_encoder, tensors

TEXTS = ["Ada Lovelace lived in London.", "hello"]
QUESTION = "who?"
TASKS = (
    Task.FILL_MASK,
    Task.SEQUENCE_CLASSIFICATION,
    Task.TOKEN_CLASSIFICATION,
    Task.QUESTION_ANSWERING,
    Task.EMBEDDING,
)
LABELS = ["O", "B-PER", "I-PER"]
POSITIONS = 40
# Of a text; no layer is as wide.
LENGTH = 24


def convert(folder: Path, output: Path, task: Task, **options: Any) -> Manifest:
    """Import a folder; the verified manifest."""
    importing.run(asked(folder, output, task, **options))
    return verify(output)


def asked(folder: Path, output: Path, task: Task, **options: Any) -> import_options.Asked:
    """A command line."""
    given = {"name": "tiny", "register": False, "pooling": None, "normalize": False, "matryoshka": []} | options
    return import_options.Asked(source=str(folder), output=output, task=task, **given)


def run_graph(folder: Path, manifest: Manifest, encoded: Any) -> Any:
    """The output of an artifact's graph."""
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
    ids = encoded["input_ids"].numpy()
    available = {"input_ids": ids, "attention_mask": encoded["attention_mask"].numpy()}
    available["token_type_ids"] = encoded["token_type_ids"].numpy() if "token_type_ids" in encoded else ids * 0
    return session.run([manifest.output], {name: available[name] for name in manifest.inputs})[0]


def assert_served_alike(model: Any, tokenizer: Any, folder: Path, task: Task) -> None:
    """A server answers as transformers does: it frames texts and pairs as the tokenizer, with its special tokens."""

    def logits(*texts: str) -> Any:
        with torch.no_grad():
            encoded = tokenizer(*texts, return_tensors="pt", return_token_type_ids=model.config.model_type in PAIRED)
            return model(**encoded)

    match task:
        case Task.FILL_MASK:
            text = f"Ada {tokenizer.mask_token} in London"
            (place,) = (tokenizer(text, return_tensors="pt")["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0]
            best = logits(text).logits[0, place].softmax(-1).topk(3)
            (mask,) = ask(folder, task, inputs=text, top_k=3)["results"][0]["masks"]
            assert mask["position"] == place
            found, expected = [each["score"] for each in mask["predictions"]], best.values
            assert [each["token_id"] for each in mask["predictions"]] == best.indices.tolist()
        case Task.SEQUENCE_CLASSIFICATION:
            predictions = ask(folder, task, inputs=TEXTS[0])["results"][0]["predictions"]
            scores = {each["label"]: each["score"] for each in predictions}
            found, expected = [scores[label] for label in LABELS], logits(TEXTS[0]).logits[0].softmax(-1)
        case Task.TOKEN_CLASSIFICATION:
            tags = ask(folder, task, inputs=TEXTS[0], aggregation="none")["results"][0]["tags"]
            scores = logits(TEXTS[0]).logits[0, 1:-1].softmax(-1)
            assert [tag["label"] for tag in tags] == [LABELS[number] for number in scores.argmax(-1)]
            found, expected = [tag["score"] for tag in tags], scores.max(-1).values
        case Task.QUESTION_ANSWERING:
            result = ask(folder, task, question=QUESTION, context=TEXTS[0])["results"][0]
            sequences = tokenizer(QUESTION, TEXTS[0]).sequence_ids()
            counted = [place for place, sequence in enumerate(sequences) if sequence == 1 or place == 0]
            output = logits(QUESTION, TEXTS[0])
            none = output.start_logits[0, counted].softmax(-1)[0] * output.end_logits[0, counted].softmax(-1)[0]
            assert result["tokens"] == len(sequences)
            found, expected = [result["no_answer_score"]], none[None]
        case _:
            hidden = logits(TEXTS[0]).last_hidden_state[0].mean(0)
            found = ask(folder, task, input=TEXTS[0])["data"][0]["embedding"]
            expected = hidden / hidden.norm()
    assert found == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_the_graph_of_every_architecture_gives_what_its_model_gives(
    tmp_path: Path, tiny: Any, family: str, task: Task
) -> None:
    """On padded texts, and on pairs for question answering; the manifest says what a server needs to know."""
    model, tokenizer = tiny.save(tmp_path / "model", family, task)
    options = {"pooling": "mean", "normalize": True} if task is Task.EMBEDDING else {}
    manifest = convert(tmp_path / "model", tmp_path / "artifact", task, **options)
    pairs = ([QUESTION] * 2, TEXTS) if task is Task.QUESTION_ANSWERING else (TEXTS,)
    keep_segments = {"return_token_type_ids": family in PAIRED}
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
    assert_served_alike(model, tokenizer, tmp_path / "artifact", task)
    special = manifest.special_tokens
    assert (special.pad, special.cls, special.sep) == (
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )
    assert (special.mask, special.unk) == (tokenizer.mask_token_id, tokenizer.unk_token_id)
    assert manifest.limits.max_length == POSITIONS
    assert ("token_type_ids" in manifest.inputs) == (family in PAIRED)
    assert manifest.labels == (LABELS if "classification" in task else [])
    assert manifest.lineage.data["model.safetensors"]
    assert manifest.lowercase == (family in ("bert", "distilbert", "electra"))


# Of the settings of a tiny one the reach isn't ModernBERT's own.
WHOLE_REACH = {"local_attention": 128}


@pytest.mark.parametrize(
    ("family", "settings", "width", "rows"),
    [
        ("bert", {}, 32, [1, LENGTH]),
        ("roberta", {}, 32, [1, LENGTH]),
        ("distilbert", {}, 32, [1, LENGTH]),
        ("xlm-roberta", {}, 32, [1, LENGTH]),
        ("electra", {}, 32, [1, LENGTH]),
        ("modernbert", WHOLE_REACH, 64, [1, *[LENGTH] * 3]),
        # What the class is made of isn't the first token, as the tensors don't tell.
        ("modernbert", WHOLE_REACH | {"classifier_pooling": "mean"}, 64, [LENGTH] * 4),
    ],
)
def test_a_classifiers_last_layer_computes_what_its_class_is_made_of(
    tmp_path: Path, tiny: Any, family: str, settings: dict[str, Any], width: int, rows: list[int]
) -> None:
    """The first token alone in most: as many rows go through each layer's feed-forward block, which is so wide."""
    model, _ = tiny.save(tmp_path / "model", family, Task.SEQUENCE_CLASSIFICATION, **settings)
    manifest = convert(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION)
    graph = onnx.load(tmp_path / "artifact" / ONNX_FILE)
    products = [node.output[0] for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in products)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(5, 60, (2, LENGTH))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    found, *computed = session.run([manifest.output, *products], {name: given[name] for name in manifest.inputs})
    assert sorted(each.shape[1] for each in computed if each.shape[0] == 2 and each.shape[-1] == width) == rows
    with torch.no_grad():
        expected = model(torch.from_numpy(ids), attention_mask=torch.ones(2, LENGTH, dtype=torch.int64)).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("problem", "labels", "told"),
    [
        (Problem.MULTI_LABEL, ["sea", "land", "air"], False),
        (Problem.MULTI_LABEL, ["relevant"], True),
        (Problem.REGRESSION, ["LABEL_0"], False),
    ],
)
def test_labels_by_themselves_and_numbers_are_served_as_transformers_pipeline_has_them(
    tmp_path: Path, tiny: Any, family: str, problem: Problem, labels: list[str], told: bool
) -> None:
    """Where the folder says what they are, and where only the command line does; int8 is held to fp32 by texts."""
    type_of = PROBLEM_TYPES[problem]
    settings = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    model, tokenizer = tiny.save(
        *(tmp_path / "model", family, Task.SEQUENCE_CLASSIFICATION), **settings, problem_type=None if told else type_of
    )
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    options = {"precision": (Precision.INT8,), "examples": tmp_path / "examples.jsonl", "max_accuracy_loss": 1}
    manifest = convert(
        *(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION),
        **options,
        problem=problem if told else None,
    )
    assert (manifest.problem, manifest.labels) == (problem, labels)
    assert manifest.precisions["int8"].metric == ("r2" if problem is Problem.REGRESSION else "micro_f1")
    model.config.problem_type = type_of
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    results = ask(tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION, inputs=TEXTS)["results"]
    for result, expected in zip(results, theirs(TEXTS), strict=True):
        given = {each["label"]: each["score"] for each in result["predictions"]}
        assert given == pytest.approx({each["label"]: each["score"] for each in expected}, rel=1e-3, abs=1e-4)
        assert result["abstained"] is False
    again = transformers.AutoConfig.from_pretrained(tmp_path / "artifact")
    assert again.problem_type == type_of


@pytest.mark.parametrize("family", FAMILIES)
def test_an_artifact_is_still_a_folder_in_hugging_faces_format(tmp_path: Path, tiny: Any, family: str) -> None:
    """It can be loaded again, and imported again."""
    model, _ = tiny.save(tmp_path / "model", family, Task.TOKEN_CLASSIFICATION)
    theirs = "---\nlicense: cc-by-4.0\n---\na card"
    (tmp_path / "model" / "README.md").write_text(theirs)
    convert(tmp_path / "model", tmp_path / "artifact", Task.TOKEN_CLASSIFICATION)
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "artifact")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "artifact")
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        torch.testing.assert_close(again(**encoded).logits, model(**encoded).logits)
    assert (tmp_path / "artifact" / "UPSTREAM_README.md").read_text() == theirs
    ours = (tmp_path / "artifact" / "README.md").read_text()
    assert "license: cc-by-4.0" in ours
    assert f"`{type(model).__name__}` for token-classification, imported" in ours
    other = convert(tmp_path / "model", tmp_path / "told", Task.TOKEN_CLASSIFICATION, license="mit")
    assert other.card is not None
    assert other.card.license == "mit"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "artifact").iterdir())


def test_a_tokenizer_without_a_mask_serves_other_tasks(tmp_path: Path, tiny: Any) -> None:
    """The manifest says that there is none; for fill-mask it is refused."""
    tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
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


def cased(folder: Path, family: str) -> None:
    """Have a tiny model's tokenizer tell capitals from small letters, as those of BERT are published that do."""
    if family in ("bert", "distilbert", "electra"):
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text())
        document["normalizer"]["lowercase"] = False
        path.write_text(json.dumps(document))
    if family == "bert":
        change("tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_capitals_are_small_letters_where_sentence_transformers_makes_them_so(
    tmp_path: Path, tiny: Any, family: str
) -> None:
    """It does so before the tokenizer, which an artifact's does by itself then, at a server and in transformers: ids
    are those of the text in small letters, accents and all.
    """
    tiny.save(tmp_path / "model", family, Task.EMBEDDING)
    cased(tmp_path / "model", family)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "ADA [\u00c9] A\u0300 la"
    assert theirs(text)["input_ids"] != theirs(text.lower())["input_ids"]
    for told in (False, True):
        told_to_sentence_transformers(max_seq_length=24, do_lower_case=told)(tmp_path / "model")
        artifact = tmp_path / f"artifact-{told}"
        manifest = convert(tmp_path / "model", artifact, Task.EMBEDDING, pooling="mean")
        assert manifest.lowercase is told
        expected = theirs(text.lower() if told else text)["input_ids"]
        assert Tokenizer.from_file(str(artifact / "tokenizer.json")).encode(text).ids == expected
        again = transformers.AutoTokenizer.from_pretrained(artifact)
        assert again(text)["input_ids"] == expected
        assert (again.mask_token_id, again.model_max_length) == (theirs.mask_token_id, theirs.model_max_length)
    small, capital = (ask(artifact, Task.EMBEDDING, input=each)["data"][0] for each in (text.lower(), text))
    assert small == capital


def sentence_transformer(tiny: Any, folder: Path, *, normalize: bool = True, **pooling: Any) -> Any:
    """A folder as sentence-transformers writes it."""
    model, tokenizer = tiny.save(folder, "bert", Task.EMBEDDING)
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
def test_sentence_transformers_say_themselves_how_they_pool(
    tmp_path: Path, tiny: Any, pooling: str, normalize: bool
) -> None:
    """And how many tokens they take, however many positions the encoder has."""
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    model, tokenizer = sentence_transformer(tiny, tmp_path / "model", normalize=normalize, **{key: True})
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


LONGEST = r"max_seq_length in /.*/sentence_bert_config\.json"


def told_to_sentence_transformers(**settings: Any) -> Callable[[Path], None]:
    """A folder with these settings for texts."""
    return lambda folder: (folder / "sentence_bert_config.json").write_text(json.dumps(settings)) and None


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
        (Task.SEQUENCE_CLASSIFICATION, change("config.json", vocab_size=float("inf")), {}, "ConfigInvalid", "infinity"),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", problem_type="regression"),
            {},
            "LabelsInvalid",
            "3 numbers",
        ),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", problem_type="ranking"),
            {},
            "ConfigInvalid",
            "regression",
        ),
        (Task.SEQUENCE_CLASSIFICATION, change("config.json", id2label={"0": "a"}), {}, "ProblemUnknown", "--problem"),
        (
            Task.SEQUENCE_CLASSIFICATION,
            change("config.json", problem_type="multi_label_classification"),
            {"problem": Problem.REGRESSION},
            "ProblemKnown",
            "leave --problem out",
        ),
        (Task.TOKEN_CLASSIFICATION, lambda _: None, {"problem": Problem.REGRESSION}, "ProblemUnsuitable", "token"),
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
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            {},
            "PickleRefused",
            "safetensors",
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
        *(
            (
                Task.EMBEDDING,
                told_to_sentence_transformers(max_seq_length=value),
                {"pooling": "cls"},
                "ConfigInvalid",
                f"{LONGEST} is {shown}: give a whole",
            )
            for value, shown in (
                ("256", '"256"'),
                (0, "0"),
                (-1, "-1"),
                (True, "true"),
                (256.5, "256.5"),
                ([256], r"\[256\]"),
                ("9" * 99, f'"{"9" * 39}…'),
            )
        ),
        (
            Task.EMBEDDING,
            told_to_sentence_transformers(do_lower_case="yes"),
            {"pooling": "cls"},
            "ConfigInvalid",
            r'do_lower_case in /.*/sentence_bert_config\.json is "yes": give true or false',
        ),
        (Task.EMBEDDING, lambda _: None, {}, "PoolingUnknown", "--pooling"),
        (Task.EMBEDDING, modules("Transformer", "Pooling", "Dense"), {}, "ModulesUnsupported", "Dense"),
        (Task.EMBEDDING, modules("Transformer", "Pooling"), {"pooling": "cls"}, "PoolingKnown", "leave it"),
        (Task.EMBEDDING, modules("Transformer", "Pooling"), {}, "PoolingUnsupported", "nothing"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(
    tmp_path: Path,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    task: Task,
    break_it: Callable[[Path], None],
    options: dict[str, Any],
    reason: str,
    said: str,
) -> None:
    """Final, in a sentence that says what to do, and without leaving anything behind."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    tiny.save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    break_it(tmp_path / "model")
    with pytest.raises(InputError, match=said) as refused:
        importing.run(asked(tmp_path / "model", tmp_path / "artifact", task, **options))
    assert (refused.value.reason, refused.value.exit_code) == (reason, ExitCode.INVALID_INPUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_positions_that_are_counted_by_another_tokens_id_are_refused(tmp_path: Path, tiny: Any) -> None:
    """RoBERTa counts them by padding's: config.json or the tokenizer has another id than it was trained with."""
    tiny.save(tmp_path / "model", "roberta", Task.FILL_MASK)
    change("config.json", pad_token_id=3)(tmp_path / "model")
    with pytest.raises(InputError, match="pad_token_id 3, its tokenizer 1") as refused:
        convert(tmp_path / "model", tmp_path / "artifact", Task.FILL_MASK)
    assert refused.value.reason == "SpecialTokensInvalid"


def test_a_model_with_one_type_of_texts_is_told_of_none(tmp_path: Path, tiny: Any) -> None:
    """Though its tokenizer counts those of a pair: the second's would lie beyond the model's table."""
    for types, inputs in ((2, 3), (1, 2)):
        tiny.save(tmp_path / f"model-{types}", "bert", Task.FILL_MASK, type_vocab_size=types)
        manifest = convert(tmp_path / f"model-{types}", tmp_path / f"artifact-{types}", Task.FILL_MASK)
        assert len(manifest.inputs) == inputs


def test_the_same_import_again_keeps_what_is_there(tmp_path: Path, tiny: Any) -> None:
    """Another one does not take its place."""
    tiny.save(tmp_path / "model", "distilbert", Task.SEQUENCE_CLASSIFICATION)
    first = importing.run(asked(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION))
    again = importing.run(asked(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION))
    assert first.model_digest == again.model_digest
    with pytest.raises(InputError) as refused:
        importing.run(asked(tmp_path / "model", tmp_path / "artifact", Task.SEQUENCE_CLASSIFICATION, name="other"))
    assert refused.value.reason == "OutputExists"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_encoder_is_a_base_of_its_sizes(tmp_path: Path, tiny: Any, family: str) -> None:
    """As transformers has written them again."""
    model, tokenizer = tiny.save(
        *(tmp_path / "model", family, Task.FILL_MASK), **({"local_attention": 128} if family == "modernbert" else {})
    )
    convert(tmp_path / "model", tmp_path / "artifact", Task.FILL_MASK)
    config = open_base(tmp_path / "artifact", "tiny/1", None).config
    assert (config.architecture, config.vocab_size, config.max_length) == (family, len(tokenizer), POSITIONS)
    assert config.embedding_width == model.get_input_embeddings().embedding_dim


def test_an_imported_encoder_is_a_base_with_ids_of_its_own(tmp_path: Path, tiny: Any) -> None:
    """Its special tokens and positions are taken as they are; one without a mask token, or with another's, is none."""
    tiny.save(tmp_path / "model", "roberta", Task.FILL_MASK)
    convert(tmp_path / "model", tmp_path / "artifact", Task.FILL_MASK)
    base = open_base(tmp_path / "artifact", "tiny/1", None)
    assert base.special_tokens.model_dump() == {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4}
    assert (base.config.first_position, base.config.max_length) == (2, 40)
    document = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    for mask, why in ((None, "has no mask token"), (2, "one token as sep and mask")):
        document["special_tokens"]["mask"] = mask
        (tmp_path / "artifact" / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(BaseModelError, match=why) as refused:
            open_base(tmp_path / "artifact", "tiny/1", None)
        assert refused.value.reason == "BaseTokenizerUnsuitable"
    document["special_tokens"]["mask"] = None
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps(document))
    assert open_encoder(tmp_path / "artifact", "tiny/1", None).special_tokens.mask is None


@pytest.mark.parametrize("task", [Task.EMBEDDING, Task.SEQUENCE_CLASSIFICATION])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fine_tuning_starts_from_the_encoder_of_any_task(tmp_path: Path, tiny: Any, family: str, task: Task) -> None:
    """Of a bare one, and of one with a head, which is left; a pretraining needs one that predicts hidden tokens."""
    sizes = {"local_attention": 128} if family == "modernbert" else {}
    tiny.save(tmp_path / "model", family, task, **sizes)
    convert(tmp_path / "model", tmp_path / "artifact", task, pooling="mean" if task is Task.EMBEDDING else None)
    base = open_encoder(tmp_path / "artifact", "tiny/1", None)
    tagger = build(Task.TOKEN_CLASSIFICATION, base.config, 3)
    load_encoder(tagger, load_file(base.folder / WEIGHTS_FILE))
    (tmp_path / "tagger").mkdir()
    save_file(tensors(tagger), tmp_path / "tagger" / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "tagger")
    given, taken = (
        transformers.AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("model", "tagger")
    )
    encoder = [name for name in given if "pooler" not in name]
    assert len(encoder) > 10
    for name in encoder:
        torch.testing.assert_close(taken[name], given[name], rtol=0, atol=0)
    with pytest.raises(BaseModelError) as refused:
        open_base(tmp_path / "artifact", "tiny/1", None)
    assert refused.value.reason == "BaseTaskUnsuitable"


def test_the_command_registers_a_version_once(tmp_path: Path, tiny: Any, mlflow: str) -> None:
    """With the digest that the server will ask for; the same command again finds it."""
    from cloze_trainer import connection, registry  # noqa: PLC0415 - MLflow takes seconds to import

    tiny.save(tmp_path / "model", "bert", Task.SEQUENCE_CLASSIFICATION)
    words = ("--task", "sequence-classification", "--name", "imported", "--output", f"{tmp_path}/artifact")
    for _ in range(2):
        code, said = command(tmp_path, "import", f"{tmp_path}/model", *words, "--register", MLFLOW_TRACKING_URI=mlflow)
        assert code == 0, said
    versions = connection.client(mlflow).search_model_versions("name = 'imported'")
    assert [(version.version, version.tags["cloze.dev/task"]) for version in versions] == [
        ("1", "sequence-classification")
    ]
    registry.download(mlflow, "imported", "1", tmp_path / "downloaded")
    assert verify(tmp_path / "downloaded", versions[0].tags["cloze.dev/digest"]).name == "imported"


def test_the_command_tells_a_refusal_by_its_code(tmp_path: Path, tiny: Any) -> None:
    """On the log, too."""
    words = ("--task", "embedding", "--name", "x", "--output", f"{tmp_path}/artifact")
    code, said = command(tmp_path, "import", f"{tmp_path}/none", *words)
    assert code == ExitCode.INVALID_INPUT
    assert "FolderMissing" in said


def whole(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """What a folder holds, as stores do."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("source", ["file", "s3://books/models/small", "hf://o/books"])
def test_a_model_in_a_store_becomes_what_it_becomes_here(tmp_path: Path, tiny: Any, source: str) -> None:
    """With its pooling, its length and its card, by what gives access in the environment; nothing else is fetched."""
    sentence_transformer(tiny, tmp_path / "model", pooling_mode_mean_tokens=True)
    (tmp_path / "model/README.md").write_text("---\nlicense: mit\n---\na card")
    here = convert(tmp_path / "model", tmp_path / "here", Task.EMBEDDING)
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "model/onnx").mkdir()
    (tmp_path / "model/onnx/config.json").write_text("{}")
    uri = f"file://{tmp_path}/model" if source == "file" else source
    words = ["--task", "embedding", "--name", "tiny", "--output", f"{tmp_path}/there"]
    words += ["--revision", "v2"] if source.startswith("hf") else []
    with serving(whole(tmp_path / "model", "models/small/" if source.startswith("s3") else "")) as address:
        access = KEYS | {"AWS_ENDPOINT_URL": address, "HF_TOKEN": "t0ken", "HF_ENDPOINT": address}
        for _ in range(2):
            code, said = command(tmp_path, "import", uri, *words, **access)
            assert code == 0, said
    assert "imported before" in said
    there = verify(tmp_path / "there")
    assert there.lineage.data == here.lineage.data
    assert there.lineage.job == (f"{uri}@v2" if source.startswith("hf") else uri)
    assert (there.embedding, there.limits, there.card) == (here.embedding, here.limits, here.card)
    differing = {name for name, digest in there.files.items() if here.files[name] != digest}
    assert differing == {"README.md"}
    assert not any("pytorch_model" in path or "onnx" in path for path, _ in Stores.seen)
    assert all("c0ffee2" in path for path, _ in Stores.seen if "resolve" in path)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("source", "revision", "reason", "said"),
    [
        ("https://host/model", None, "SourceInvalid", "hf://owner/name"),
        ("ftp://host/model", None, "SourceInvalid", "hf://owner/name"),
        ("s3://books/*", None, "SourceInvalid", "hf://owner/name"),
        ("file:///a/../b", None, "SourceInvalid", "hf://owner/name"),
        ("file:///nothing/here", None, "SourceNotFound", "file:///nothing/here"),
        ("pickled", None, "SafetensorsMissing", "file://"),
        ("broken", None, "ConfigInvalid", "config.json of file://"),
        ("/a/folder", "v2", "RevisionUnsuitable", "hf://"),
        ("s3://books/model", "v2", "RevisionUnsuitable", "hf://"),
        ("hf://o/books", "a b", "RevisionInvalid", "--revision"),
    ],
)
def test_a_source_that_is_none_is_refused_with_the_reason(
    tmp_path: Path, tiny: Any, source: str, revision: str | None, reason: str, said: str
) -> None:
    """What is wrong with the files is told of the URI; pickled weights are refused as a job's are."""
    if source in ("pickled", "broken"):
        tiny.save(tmp_path / "model", "bert", Task.FILL_MASK)
        break_it = change("config.json", architectures=None)
        break_it(tmp_path / "model")
        if source == "pickled":
            (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
        source = f"file://{tmp_path}/model"
    words = ["--task", "fill-mask", "--name", "x", "--output", f"{tmp_path}/artifact"]
    words += ["--revision", revision] if revision else []
    with pytest.raises(InputError, match=said) as refused:
        importing.run(import_options.parse([source, *words]))
    assert (refused.value.reason, refused.value.exit_code) == (reason, ExitCode.INVALID_INPUT)
    assert {path.name for path in tmp_path.iterdir()} <= {"model"}


def test_a_store_that_refuses_or_is_down_is_told_by_the_code(tmp_path: Path) -> None:
    """The first is final; the second is not the command's fault, and nothing of it is left."""
    words = ["--task", "embedding", "--name", "x", "--output", f"{tmp_path}/artifact"]
    with serving({}) as address:
        access = {"HF_TOKEN": "wr0ng", "HF_ENDPOINT": address, "CLOZE_TERMINATION_LOG": f"{tmp_path}/end"}
        code, said = command(tmp_path, "import", "hf://o/books", *words, **access)
        assert (code, "SourceNotFound" in said, "wr0ng" in said) == (ExitCode.INVALID_INPUT, True, False)
    code, said = command(tmp_path, "import", "hf://o/books", *words, **access)
    assert (code, "SourceUnavailable" in said) == (ExitCode.INTERNAL, True)
    assert not (tmp_path / "artifact").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_command_line_takes_dimensions_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """What isn't any is refused in words."""
    given = ["model", "--task", "embedding", "--name", "x", "--output", "y"]
    assert import_options.parse([*given, "--matryoshka", "256,128"]).matryoshka == [256, 128]
    with pytest.raises(SystemExit):
        import_options.parse([*given, "--matryoshka", "half"])
    assert "'half' isn't whole numbers with commas between" in capsys.readouterr().err
