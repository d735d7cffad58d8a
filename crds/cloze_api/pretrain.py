"""PretrainJob: raw text to a registered masked language model."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from cloze_api.audit import Audit
from cloze_api.evaluation import Gate
from cloze_api.people import Names
from cloze_api.pretrained import Pretrained
from cloze_api.schema import Rule, Schema, undefaulted
from cloze_api.source import REVISION_PATTERN, STORES, Credentials, SourceURI, uri_rule
from cloze_api.training import ADJUSTABLE_RULES, RANKS, SPEC_RULES, Optimization, TrainingSpec, immutable_after_start


class CorpusFormat(StrEnum):
    """How documents lie in a file."""

    PARAGRAPHS = "paragraphs"
    """Plain text; documents are separated by blank lines."""
    LINES = "lines"
    """Plain text; each line is a document."""
    JSONL = "jsonl"
    """One JSON object a line; the document is in `textField`."""
    CSV = "csv"
    """Comma-separated values, the first row the columns' names; the document is in the column `textField`."""
    PARQUET = "parquet"
    """The document is in the column `textField`."""


class Corpus(Schema):
    """One source of raw text. Files whose names end in `.gz` or `.zst` are unpacked as they are read."""

    uri: SourceURI
    revision: Annotated[str, Field(pattern=REVISION_PATTERN, max_length=128)] | None = None
    """Branch, tag or commit of a data set at `hf://`; its main branch when absent."""
    credentials: Credentials | None = None
    """Outside a cluster the environment's variables of the same names are used instead, but for those of `https`."""
    format: CorpusFormat = CorpusFormat.PARAGRAPHS
    text_field: Annotated[str, Field(min_length=1, max_length=128)] = "text"
    """Field or column that holds the document: of `jsonl`, `csv` and `parquet`."""
    max_broken_lines: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Broken lines that are passed over and counted; one more ends the job. Broken is a line that isn't UTF-8 or the
    format's, has no text in `textField`, or is longer than 4 MiB."""

    rules: ClassVar[tuple[Rule, ...]] = (
        uri_rule("spec.corpus[].uri"),
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            message="spec.corpus[].revision is for hf:// alone: remove it",
            check=lambda corpus: corpus.revision is None or corpus.uri.startswith("hf://"),
        ),
        Rule(
            cel="!has(self.credentials) || self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || "
            "self.uri.startsWith('hf://') || self.uri.startsWith('https://')",
            message="spec.corpus[].credentials are for s3://, gs://, hf:// and https:// alone: remove them",
            check=lambda corpus: corpus.credentials is None or corpus.uri.startswith(STORES),
        ),
    )


class Deduplication(StrEnum):
    """Which repeated documents are dropped."""

    NONE = "none"
    EXACT = "exact"
    NEAR = "near"
    """MinHash over word 5-grams, Jaccard similarity ≥ 0.8 (Broder 1997)."""


class PII(StrEnum):
    """What happens to e-mail addresses, IP addresses, phone, card and account numbers."""

    REPLACE = "replace"
    """Their kind stands in their place, as `[EMAIL]`."""
    DROP = "drop"
    """Documents with any are dropped."""
    KEEP = "keep"


class Cleaning(Schema):
    """What happens to a document before it is tokenized. Text is always normalised to Unicode NFC."""

    min_characters: Annotated[int, Field(ge=0, le=1_000_000)] = 8
    max_characters: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Longer documents are dropped, such as dumps and tables; none is when absent."""
    languages: Annotated[
        list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$", max_length=3)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """Documents in other languages are dropped: ISO 639 codes such as `en` and `de`, of 139 that can be told apart.
    None is when empty."""
    min_language_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How sure the language must be; a document whose language isn't is dropped, too."""
    deduplicate: Deduplication = Deduplication.EXACT
    pii: PII = PII.REPLACE
    names: Names | None = None
    """Names of people are kept when absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.maxCharacters) || self.minCharacters <= self.maxCharacters",
            message="spec.cleaning.minCharacters is greater than spec.cleaning.maxCharacters, which no document is: "
            "change one of them",
            check=lambda cleaning: (
                cleaning.max_characters is None or cleaning.min_characters <= cleaning.max_characters
            ),
        ),
    )


class TokenizerAlgorithm(StrEnum):
    """How words are cut into pieces, and what pieces there are."""

    WORDPIECE = "wordpiece"
    """As BERT's: the longest piece first; a character that has none makes its word unknown."""
    BYTE_LEVEL_BPE = "byte-level-bpe"
    """As RoBERTa's and ModernBERT's: merges of pairs over the bytes of UTF-8, so that nothing is unknown."""
    UNIGRAM = "unigram"
    """As XLM-RoBERTa's: pieces with probabilities, of which a word takes the likeliest; blanks are part of words."""
    BPE = "bpe"
    """Merges of pairs over characters; one that has no piece is unknown, and blanks are part of words."""


class Tokenizer(Schema):
    """The tokenizer to train on the cleaned corpus, or one to take as it is."""

    algorithm: Annotated[TokenizerAlgorithm, Field(json_schema_extra=undefaulted)] = TokenizerAlgorithm.WORDPIECE
    """`wordpiece` when absent."""
    vocab_size: Annotated[int, Field(ge=128, le=262_144, json_schema_extra=undefaulted)] = 8192
    """8192 when absent."""
    lowercase: Annotated[bool, Field(json_schema_extra=undefaulted)] = True
    """True when absent."""
    reuse: Pretrained | None = None
    """Tokenizer of another model, which is kept as it is; the vocabulary's size follows from it. None is trained."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.algorithm) || self.algorithm != 'byte-level-bpe' || !has(self.vocabSize) || "
            "self.vocabSize >= 512",
            message="spec.tokenizer.vocabSize must be at least 512 for byte-level-bpe: 256 of it are single bytes",
            check=lambda tokenizer: (
                tokenizer.algorithm is not TokenizerAlgorithm.BYTE_LEVEL_BPE or tokenizer.vocab_size >= 512
            ),
        ),
        Rule(
            cel="!has(self.reuse) || !(has(self.algorithm) || has(self.vocabSize) || has(self.lowercase))",
            message="spec.tokenizer.reuse takes a tokenizer as it is: remove algorithm, vocabSize and lowercase",
            check=lambda tokenizer: (
                tokenizer.reuse is None
                or not tokenizer.model_fields_set.intersection({"algorithm", "vocab_size", "lowercase"})
            ),
        ),
    )


class Architecture(StrEnum):
    """How an encoder is built; the names are transformers' `model_type`."""

    BERT = "bert"
    """Devlin et al., arXiv:1810.04805."""
    ROBERTA = "roberta"
    """BERT without types of texts (Liu et al., arXiv:1907.11692)."""
    DISTILBERT = "distilbert"
    """BERT without types of texts and pooler (Sanh et al., arXiv:1910.01108)."""
    XLM_ROBERTA = "xlm-roberta"
    """RoBERTa as it was published for many languages (Conneau et al., arXiv:1911.02116)."""
    ELECTRA = "electra"
    """BERT with another activation in its pooler; published ones have narrower embeddings, too (Clark et al.,
    arXiv:2003.10555)."""
    MODERNBERT = "modernbert"
    """Rotary positions, gated feed-forward blocks and local attention (Warner et al., arXiv:2412.13663)."""


class Encoder(Schema):
    """Architecture and sizes."""

    architecture: Architecture = Architecture.BERT
    layers: Annotated[int, Field(ge=1, le=96)] = 4
    hidden_size: Annotated[int, Field(ge=16, le=8192)] = 256
    heads: Annotated[int, Field(ge=1, le=128)] = 4
    intermediate_size: Annotated[int, Field(ge=16, le=65_536)] = 1024
    max_length: Annotated[int, Field(ge=16, le=8192)] = 128
    """Longest sequence in tokens, special tokens included."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.hiddenSize % self.heads == 0",
            message="spec.model.hiddenSize must be a multiple of spec.model.heads: change one of them",
            check=lambda model: model.hidden_size % model.heads == 0,
        ),
        Rule(
            cel="self.architecture != 'modernbert' || self.hiddenSize % (2 * self.heads) == 0",
            message="spec.model.hiddenSize must be an even multiple of spec.model.heads for modernbert, which turns "
            "pairs of numbers by the position: change one of them",
            check=lambda model: (
                model.architecture is not Architecture.MODERNBERT or model.hidden_size % (2 * model.heads) == 0
            ),
        ),
    )


class MaskingUnit(StrEnum):
    """What is hidden as one."""

    TOKEN = "token"  # noqa: S105 - no password
    WORD = "word"
    """All tokens of a word: what is left of it tells nothing."""
    SPAN = "span"
    """Up to ten words in a row, 3.8 on average (SpanBERT, Joshi et al., arXiv:1907.10529, section 3.1)."""


class Masking(Schema):
    """Which tokens are predicted, and what stands in their place. The rest keeps the original token.

    The evaluation hides single tokens with a probability of 15 %, whatever stands here.
    """

    unit: MaskingUnit = MaskingUnit.TOKEN
    probability: Annotated[float, Field(gt=0, le=0.9)] = 0.15
    final_probability: Annotated[float, Field(gt=0, le=0.9)] | None = None
    """Probability at the last step, to which it changes evenly; the same throughout when absent."""
    mask_share: Annotated[float, Field(ge=0, le=1)] = 0.8
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.1

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.maskShare + self.randomShare <= 1.000001",
            message="spec.masking.maskShare and spec.masking.randomShare add up to more than 1: lower one of them",
            check=lambda masking: masking.mask_share + masking.random_share <= 1.000001,
        ),
    )


DEFAULT_STEPS: Final = 1000


class BatchWarmup(Schema):
    """A batch that begins small and grows evenly to `batchSequences`."""

    from_sequences: Annotated[int, Field(ge=1, le=65_536)]
    """Sequences in the first batch, over all ranks."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """Steps until the batch is full."""


def _warmed_up(optimization: "PretrainOptimization") -> bool:
    if optimization.max_tokens is not None:
        return optimization.warmup_steps == 0 and (optimization.warmup_tokens or 0) <= optimization.max_tokens
    return optimization.warmup_tokens is None and optimization.warmup_steps <= (optimization.steps or DEFAULT_STEPS)


class PretrainOptimization(Optimization):
    """Optimization over a number of steps, or of tokens."""

    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """1000 when neither it nor `maxTokens` is given."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000_000_000_000)] | None = None
    """Real tokens to train on, padding not counted, instead of `steps`; the schedule follows them, too. The step that
    reaches them is the last."""
    warmup_tokens: Annotated[int, Field(ge=0, le=1_000_000_000_000_000)] | None = None
    """Takes the place of `warmupSteps` where `maxTokens` is given."""
    batch_warmup: BatchWarmup | None = None
    """The full batch from the start when absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.steps) || !has(self.maxTokens)",
            message="spec.optimization has both steps and maxTokens, of which only one can end the training: remove "
            "one of them",
            check=lambda optimization: optimization.steps is None or optimization.max_tokens is None,
        ),
        Rule(
            cel="has(self.maxTokens) ? self.warmupSteps == 0 && (!has(self.warmupTokens) || "
            "self.warmupTokens <= self.maxTokens) : !has(self.warmupTokens) && "
            f"self.warmupSteps <= (has(self.steps) ? self.steps : {DEFAULT_STEPS})",
            message="spec.optimization's warm-up is longer than the training or counted in something else: with steps "
            "use warmupSteps and with maxTokens use warmupTokens, and lower it where it is greater",
            check=_warmed_up,
        ),
        Rule(
            cel="!has(self.batchWarmup) || self.batchWarmup.fromSequences <= self.batchSequences",
            message="spec.optimization.batchWarmup.fromSequences is greater than spec.optimization.batchSequences, to "
            "which the batch grows: lower it",
            check=lambda optimization: (
                optimization.batch_warmup is None
                or optimization.batch_warmup.from_sequences <= optimization.batch_sequences
            ),
        ),
    )


class PretrainEvaluation(Schema):
    """Masked-token evaluation on held-out documents, with fixed masks at 15 %, and probes."""

    held_out_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.02
    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Evaluate also during training; only at the end when absent."""
    audit: Audit = Audit()
    gates: Annotated[list[Gate], Field(max_length=32)] = []
    """Bounds on `masked_loss`, `masked_accuracy`, `perplexity`, on the audit's figures and on those of the data. What
    fails one is not registered."""


class PretrainJobSpec(TrainingSpec):
    """Desired state of a PretrainJob."""

    corpus: Annotated[list[Corpus], Field(min_length=1, max_length=32)]
    cleaning: Cleaning = Cleaning()
    base: Pretrained | None = None
    """The model to continue from: its architecture, sizes, weights and tokenizer. A new one when absent."""
    tokenizer: Annotated[Tokenizer, Field(json_schema_extra=undefaulted)] = Tokenizer()
    """That of the base, where there is one; else by default trained."""
    model: Annotated[Encoder, Field(json_schema_extra=undefaulted)] = Encoder()
    """That of the base, where there is one; else by default of 4 layers of 256."""
    masking: Masking = Masking()
    optimization: PretrainOptimization = PretrainOptimization()
    evaluation: PretrainEvaluation = PretrainEvaluation()

    rules: ClassVar[tuple[Rule, ...]] = (
        *SPEC_RULES,
        Rule(
            cel="!has(self.base) || !has(self.model)",
            message="spec.base has its own architecture and sizes: remove spec.model, or train a new model without "
            "spec.base",
            check=lambda spec: spec.base is None or "model" not in spec.model_fields_set,
        ),
        Rule(
            cel="!has(self.base) || !has(self.tokenizer)",
            message="spec.base has its own tokenizer: remove spec.tokenizer, or take only that by spec.tokenizer.reuse "
            "and train a new model",
            check=lambda spec: spec.base is None or "tokenizer" not in spec.model_fields_set,
        ),
        Rule(
            cel="!has(self.evaluation.audit.personalData) || self.cleaning.pii == 'keep'",
            message="spec.evaluation.audit.personalData asks what the model has kept of personal data, which "
            "spec.cleaning.pii takes out of the text before: remove it, or set spec.cleaning.pii to keep",
            check=lambda spec: spec.evaluation.audit.personal_data is None or spec.cleaning.pii is PII.KEEP,
        ),
        Rule(
            cel=f"!has(self.optimization.batchWarmup) || self.optimization.batchWarmup.fromSequences >= {RANKS}",
            message="spec.optimization.batchWarmup.fromSequences is smaller than the number of ranks "
            "(topology.nodes × topology.processesPerNode): raise it or use fewer processes",
            check=lambda spec: (
                spec.optimization.batch_warmup is None
                or spec.optimization.batch_warmup.from_sequences >= spec.topology.world_size
            ),
        ),
    )

    @property
    def pretrained(self) -> Pretrained | None:
        """What isn't made from the corpus: the base, or a tokenizer alone."""
        return self.base or self.tokenizer.reuse


PRETRAIN_RULES = (
    immutable_after_start(
        "PretrainJob",
        (
            "corpus",
            "cleaning",
            "base",
            "tokenizer",
            "model",
            "masking",
            "optimization",
            "evaluation",
            "storage",
            "checkpoint",
            "registry",
            "image",
        ),
    )
    + ADJUSTABLE_RULES
)
