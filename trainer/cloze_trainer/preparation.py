"""What a fine-tuning is made from: a base, and labelled examples as rows of tokens in a folder, made once."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloze_api.finetune import FineTuneJobSpec, Truncation
from cloze_api.segments import VALUES_MAX
from cloze_api.task import Task
from cloze_trainer import left_head, selection, tasks
from cloze_trainer.adoption import adopt_base
from cloze_trainer.base import BaseModel, fetch, open_encoder
from cloze_trainer.console import log
from cloze_trainer.data import leakage, tokenizer, validation, word_blanks
from cloze_trainer.data.records import JSON_LINES, broken_lines, form_of
from cloze_trainer.data.remote import redacted
from cloze_trainer.data.sharing import turn
from cloze_trainer.data.source import SourceFiles
from cloze_trainer.data.verification import discard, intact
from cloze_trainer.distillation import beside
from cloze_trainer.errors import InputError
from cloze_trainer.files import publish, write_json
from cloze_trainer.origin import digests, find_all, named, need, need_all, remember
from cloze_trainer.progress import ProgressFile
from cloze_trainer.quality import champion, gates, judgement, luck
from cloze_trainer.run import Run
from cloze_trainer.tasks import rows
from cloze_trainer.tasks.kind import Reader
from cloze_trainer.tasks.rows import Rows

# Part of the data folder's key: raise it when the same input would give other arrays.
EDITION = 9
_META_FILE = "dataset.json"
_SLICES_FILE = "test-slices.json"
_KEY_END = "-key.json"
_SEEN_FILE = "seen.json"


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples in a folder.

    report: what the preparation counted. rows: by part. keys: what answers to a part are scored by besides targets.
    slices: of each test example.
    """

    labels: tuple[str, ...]
    max_length: int
    report: Mapping[str, float]
    rows: Mapping[str, Rows]
    keys: Mapping[str, Any]
    slices: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What rank 0 made of the base and the examples.

    folder: with the examples, and the tokenizer that they were read with. sources: SHA-256 of each source, keyed by its
    URI without secrets.
    """

    folder: Path
    base: BaseModel
    sources: dict[str, str]

    def open(self, parts: Sequence[str], *, per_token: bool) -> Examples:
        """These parts of the examples; `train` and `test` there are always. per_token: as of Rows."""
        meta = self._read(_META_FILE)
        pad = self.base.special_tokens.pad
        return Examples(
            labels=tuple(meta["labels"]),
            max_length=meta["max_length"],
            report={key: float(value) for key, value in meta.items() if isinstance(value, int | float)},
            rows={name: Rows.load(self.folder, name, per_token=per_token, pad=pad) for name in parts},
            keys={name: self._read(f"{name}{_KEY_END}") for name in parts if name != "train"},
            slices=self._read(_SLICES_FILE),
        )

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def prepare(run: Run, spec: FineTuneJobSpec, progress: ProgressFile) -> PreparedDataset:
    """Fetch the base, check and tokenize the examples into the workspace, once.

    Raises BaseModelError, InputError with file and line, or RegistryError.
    """
    progress.stage("data")
    base = adopt_base(run, spec.base, spec.task) if spec.base.uri else fetch(run, spec.base.model, open_encoder)
    max_length = spec.max_length or base.config.max_length
    if max_length > base.config.max_length:
        raise InputError(
            "MaxLengthTooLarge",
            f"spec.maxLength is {max_length}, the base model's limit is {base.config.max_length}: lower it",
        )
    sources = train, test, *others = find_all(run)
    champion.keep(run, spec, test, lambda: need(run, named(run)[1], test))
    key = {"edition": EDITION, "sources": [train.digest, test.digest], "base": base.digest, "max_length": max_length}
    key |= {"task": spec.task, "problem": spec.problem, "labels": spec.labels}
    if spec.optimization.early_stopping is not None:
        key |= {"validation": [each.digest for each in others] or spec.dataset.validation_fraction}
        validation.refuse_same(train.digest, test.digest, others[0].digest if others else None)
    if spec.truncate is Truncation.WINDOW:
        key |= {"truncate": spec.truncate}
    if (form := form_of(spec.dataset)) != JSON_LINES:
        key |= {"format": form.format, "fields": form.fields.model_dump(mode="json")}
    if spec.dataset.max_broken_lines:
        key |= {"max_broken_lines": spec.dataset.max_broken_lines}
    folder = run.data / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
    if not intact(folder):
        with turn(folder, lambda: progress.advance("waiting")) if run.data_cache else nullcontext():
            # Another run may have prepared them meanwhile.
            if not (run.data_cache and intact(folder)):
                there = need_all(run, sources)
                discard(folder)
                publish_examples(folder, spec, there, base=base, max_length=max_length)
    meta = json.loads((folder / _META_FILE).read_text(encoding="utf-8"))
    log("examples prepared", **{name: value for name, value in meta.items() if name != "labels"})
    if left := left_head.find(base, spec.task, meta["labels"]):
        log("head left", why=left["told"])
    keys = {name: json.loads((folder / f"{name}{_KEY_END}").read_text(encoding="utf-8")) for name in _scored(spec)}
    _check_gates(spec, meta, json.loads((folder / _SLICES_FILE).read_text(encoding="utf-8")), keys)
    champion.check(run, spec, meta["labels"])
    for each in json.loads((folder / _SEEN_FILE).read_text(encoding="utf-8")):
        seen = leakage.Seen(**each)
        if seen.count:
            log(f"{seen.part} examples seen in training", share=seen.share, what=seen.told())
        if seen.part == "test":
            leakage.refuse(seen, spec.evaluation.max_seen_share)
    if meta["examples"] < spec.optimization.batch_sequences:
        raise InputError(
            "BatchTooLarge",
            f"{redacted(train.uri)} holds {meta['examples']} examples, fewer than optimization.batchSequences "
            f"({spec.optimization.batch_sequences}): lower it or add examples",
        )
    # Not before: examples that the run can't begin with are to be prepared again once their source is corrected.
    remember(run, zip(named(run), sources, strict=True))
    return PreparedDataset(folder, base, digests(sources))


def _scored(spec: FineTuneJobSpec) -> Sequence[str]:
    """The parts that answers are scored on."""
    return ("test", "validation") if spec.optimization.early_stopping else ("test",)


def _check_gates(
    spec: FineTuneJobSpec,
    meta: Mapping[str, Any],
    slices: Sequence[Sequence[str]],
    keys: Mapping[str, Any],
) -> None:
    """Raise InputError for a gate on, or a choice by, a figure that there won't be: told before the training.

    slices: of the test examples. keys: of each part that is scored; any where it is absent.
    """
    kind, key = tasks.of(spec.task, spec.problem), keys.get("test")
    counted = [f"data_{name}" for name, value in meta.items() if isinstance(value, int | float)]
    counted += beside.figure_names(spec.task, meta["labels"]) if spec.distillation else []
    told, others = kind.figure_names(meta["labels"], key)
    counted += luck.figure_names([*told, *others]) if spec.evaluation.seeds > 1 else []
    counted += kind.thresholded if spec.evaluation.thresholds else []
    sliced = bool(judgement.counted_slices(slices, spec.evaluation.min_slice_examples))
    known = judgement.figure_names(spec.task, meta["labels"], sliced=sliced, problem=spec.problem, key=key) + counted
    if spec.optimization.early_stopping is not None:
        told, others = kind.figure_names(meta["labels"], keys.get("validation"))
        selection.check(spec.optimization.early_stopping, [*told, *others])
    if missing := gates.unknown(spec.evaluation.gates, known):
        near = difflib.get_close_matches(missing[0], known, n=3) or known[:8]
        raise InputError(
            "GateFigureUnknown",
            f"spec.evaluation.gates names {missing[0]!r}, which the evaluation doesn't give: there are "
            f"{', '.join(near)} and others, see the reference",
        )


def publish_examples(
    folder: Path,
    spec: FineTuneJobSpec,
    sources: Sequence[SourceFiles],
    *,
    base: BaseModel,
    max_length: int,
) -> None:
    """sources: of training, test and, where these are examples of their own, validation."""
    kind = tasks.of(spec.task, spec.problem)
    form, broken = form_of(spec.dataset), [broken_lines(spec.dataset) for _ in sources]
    train, test, *others = (kind.read(each.paths, form, counted) for each, counted in zip(sources, broken, strict=True))
    for source in sources:
        source.check_unchanged()
    labels = kind.labels(train, test, spec.labels)
    if others:
        kind.labels(train, others[0], spec.labels)
    elif spec.dataset.validation_fraction is not None:
        chosen = validation.split(train, kind.needed, spec.dataset.validation_fraction)
        train, others = chosen.train, [chosen.kept]
    scored = {"test": test, **({"validation": others[0]} if others else {})}
    slices = [example.slices for example in test]
    if (count := len({each for own in slices for each in own})) > VALUES_MAX:
        raise InputError(
            "SlicesTooMany",
            f"the metadata of the test examples has {count} different values, at most {VALUES_MAX} are told apart: "
            "leave out what isn't a group of examples",
        )
    # What a step is chosen by is seen, too.
    seen = [leakage.find("test", [*train, *(others[0] if others else [])], test)]
    # What is split off the training's examples is unlike them.
    seen += [leakage.find("validation", train, each) for each in others if spec.dataset.validation_fraction is None]
    with publish(folder, digests=True) as staging:
        if word_blanks.copy(base.folder, staging, words=spec.task is Task.TOKEN_CLASSIFICATION):
            log("blank before words", tokenizer=base.name)
        whole = spec.truncate is Truncation.WINDOW
        reader = Reader(tokenizer.read(staging), base.special_tokens, max_length, whole)
        parts = {name: kind.tokenize(examples, labels, reader) for name, examples in {"train": train, **scored}.items()}
        tokens = int(parts["train"].lengths.sum())
        for name, part in parts.items():
            rows.save(staging, name, part)
        for name, examples in scored.items():
            write_json(staging / f"{name}{_KEY_END}", kind.key(examples))
        write_json(staging / _SLICES_FILE, slices)
        write_json(staging / _SEEN_FILE, [asdict(each) for each in seen])
        write_json(
            staging / _META_FILE,
            {
                "labels": labels,
                "max_length": max_length,
                "examples": len(train),
                **{f"examples_{name}": len(examples) for name, examples in scored.items()},
                "tokens": tokens,
                "truncated": parts["train"].truncated,
                **{f"truncated_{name}": parts[name].truncated for name in scored},
                "unknown_share": parts["train"].unknown / max(1, tokens),
                **{f"{each.part}_seen_share": each.share for each in seen},
                "lines_broken": sum(each.counts.total() for each in broken),
                "broken": dict(sum((each.counts for each in broken), Counter())),
                "broken_first": [place for each in broken for place in each.places],
            },
        )
