"""Models without artifacts: `--model dummy:TASK`."""

import string

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from cloze_api.manifest import Embedding, SpecialTokens
from cloze_api.task import Task
from cloze_server.backend import DummyBackend
from cloze_server.echo import echo_model
from cloze_server.faults import Faults
from cloze_server.model import LOCAL_VERSION, LoadedModel
from cloze_server.tokenization import frame_of

_NAME = "dummy"
_DIGEST = "sha256:" + "0" * 64
_DIMENSIONS = 8
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def dummy_model(task: Task, seconds: float = 0.0) -> LoadedModel:
    """A model without weights: spells words in letters, answers with a hash. `seconds` is the time of a batch."""
    if task is Task.ECHO:
        return echo_model(name=_NAME, version=LOCAL_VERSION, digest=_DIGEST, faults=Faults(), seconds=seconds)
    pieces = [*_SPECIAL, *string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces += [f"##{character}" for character in string.ascii_lowercase + string.digits]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(list(_SPECIAL))
    special = SpecialTokens(**{name.strip("[]").lower(): vocabulary[name] for name in _SPECIAL})
    tokenizer.post_processor = BertProcessing(("[SEP]", special.sep), ("[CLS]", special.cls))
    labels, classes = {
        Task.FILL_MASK: ([], len(vocabulary)),
        Task.SEQUENCE_CLASSIFICATION: ([f"label-{index}" for index in range(8)], 8),
        Task.TOKEN_CLASSIFICATION: (["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], 5),
        Task.QUESTION_ANSWERING: ([], 2),
        Task.EMBEDDING: ([], _DIMENSIONS),
    }[task]
    embedding = Embedding(dimensions=_DIMENSIONS, pooling="mean", normalized=False, matryoshka=[_DIMENSIONS // 2])
    return LoadedModel(
        name=_NAME,
        version=LOCAL_VERSION,
        digest=_DIGEST,
        task=task,
        architecture="dummy",
        labels=labels,
        max_length=128,
        special_tokens=special,
        tokenizer=tokenizer.to_str(),
        frame=frame_of(tokenizer),
        vocabulary=vocabulary,
        backend=DummyBackend(
            classes=classes,
            per_token=task not in (Task.SEQUENCE_CLASSIFICATION, Task.EMBEDDING),
            seconds=seconds,
        ),
        embedding=embedding if task is Task.EMBEDDING else None,
    )
