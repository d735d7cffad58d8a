"""The model card: what a reviewer reads of an artifact before it is served. A function of what is in the artifact.

Front matter as Hugging Face's hub has it (https://huggingface.co/docs/hub/model-cards), text in Markdown, after
Mitchell et al., arXiv:1810.03993: use, limitations, data, evaluation with its spread and groups.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from cloze_api.card import Card
from cloze_api.manifest import IMPORT_KIND, Manifest
from cloze_api.segments import VALUES_MAX
from cloze_api.source import with_files
from cloze_api.task import Task

CARD_FILE: Final = "README.md"
DESCRIPTION_MAX: Final = 5000
"""Characters that MLflow keeps of a version's description."""

_PIPELINES: Final = {
    Task.FILL_MASK: "fill-mask",
    Task.SEQUENCE_CLASSIFICATION: "text-classification",
    Task.TOKEN_CLASSIFICATION: "token-classification",
    Task.QUESTION_ANSWERING: "question-answering",
    Task.EMBEDDING: "feature-extraction",
}
#: The hub's names of figures.
_METRICS: Final = {
    "accuracy": "accuracy",
    "masked_accuracy": "accuracy",
    "macro_f1": "f1",
    "entity_f1": "f1",
    "perplexity": "perplexity",
}
_ENDS: Final = ("lower_", "upper_")
_HUB: Final = re.compile(r"^hf://(?:datasets/)?([^/@]+/[^/@]+)")
_HUB_LICENSE: Final = re.compile(r"^[a-z0-9][-a-z0-9.]*$")
_FRONT: Final = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_UNSTATED: Final = "not stated"
_LABELS_SHOWN: Final = 20
_CUT: Final = "\n\n… The whole card is README.md among the files of this version."


def render(manifest: Manifest, report: Mapping[str, Any], settings: Mapping[str, str]) -> str:
    """The card. report: `evaluation.json`; empty where there is none. settings: of the training, by their names."""
    parts = [
        f"# {manifest.name}",
        _summary(manifest),
        "## Intended use",
        _stated(manifest, "intended_use"),
        "## Limitations",
        _stated(manifest, "limitations"),
        "## Licences",
        _table(("of", "licence"), _licenses(manifest)),
        "## Data",
        _data(manifest),
        "## Evaluation",
        *_evaluation(manifest, report),
        *(["## Training", _table(("setting", "value"), sorted(settings.items()))] if settings else []),
        "## Where it comes from",
        _table(("", ""), _lineage(manifest)),
        "## How to load it",
        _use(manifest),
    ]
    return f"---\n{_front_matter(manifest)}---\n\n" + "\n\n".join(parts) + "\n"


def stated(card: Card | None, base: str | None, teacher: str | None = None) -> Card | None:
    """What the job states, and of the base's and the teacher's licence what these do where the job doesn't."""
    given = {"base_license": base, "teacher_license": teacher}
    theirs = {name: value for name, value in given.items() if value and not getattr(card, name, None)}
    return (card or Card()).model_copy(update=theirs) if theirs else card


def describe(folder: Path) -> str:
    """The description of an artifact's version; empty for one that was made before there were cards."""
    path = folder / CARD_FILE
    return description(path.read_text(encoding="utf-8")) if path.is_file() else ""


def description(card: str) -> str:
    """The card's text as MLflow shows it beside a version: without front matter, and no longer than it may be."""
    text = _FRONT.sub("", card).strip()
    if len(text) <= DESCRIPTION_MAX:
        return text
    return text[: DESCRIPTION_MAX - len(_CUT)].rpartition("\n")[0] + _CUT


def license_of(card: str) -> str | None:
    """The licence that a card's front matter names."""
    found = _FRONT.match(card)
    try:
        document = yaml.safe_load(found[0].strip().strip("-")) if found else None
    except (yaml.YAMLError, ValueError):  # the latter of dates that aren't in the calendar
        return None
    if not isinstance(document, dict):
        return None
    named = document.get("license_name") if document.get("license") == "other" else document.get("license")
    # One line, as the manifest has it.
    return " ".join(named.split())[:128].strip() or None if isinstance(named, str) else None


def _front_matter(manifest: Manifest) -> str:
    license_ = manifest.card.license if manifest.card else None
    on_hub = bool(license_ and _HUB_LICENSE.match(license_))
    document: dict[str, Any] = {"library_name": "transformers", "tags": ["cloze", manifest.architecture]}
    if manifest.task in _PIPELINES:
        document["pipeline_tag"] = _PIPELINES[manifest.task]
    if license_:
        document |= {"license": license_} if on_hub else {"license": "other", "license_name": license_}
    if base := _HUB.match(manifest.lineage.base or ""):
        document["base_model"] = base[1]
    if datasets := sorted({found[1] for uri in manifest.lineage.data if (found := _HUB.match(uri))}):
        document["datasets"] = datasets
    if metrics := sorted({_METRICS[name] for name in manifest.evaluation if name in _METRICS}):
        document["metrics"] = metrics
    written: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return written


def _summary(manifest: Manifest) -> str:
    kind = manifest.lineage.kind
    made = "imported" if kind == IMPORT_KIND else f"trained by the {kind}"
    about = f"{_code(manifest.architecture)} for {manifest.task}, {made} {_code(manifest.lineage.job)}"
    labels = ""
    if manifest.labels:
        shown = ", ".join(_code(label) for label in manifest.labels[:_LABELS_SHOWN])
        more = len(manifest.labels) - _LABELS_SHOWN
        labels = f" Labels: {shown}{f' and {more} more' if more > 0 else ''}."
    limits = f" It reads up to {manifest.limits.max_length} tokens, of a vocabulary of {manifest.limits.vocab_size}."
    return f"{about}.{labels}{limits}"


def _stated(manifest: Manifest, field: str) -> str:
    text = getattr(manifest.card, field) if manifest.card else None
    return _plain(text, lines=True) if text else "Nobody has stated any."


def _licenses(manifest: Manifest) -> list[tuple[str, str]]:
    card = manifest.card
    rows = [("this model", card.license if card else None), ("its data", card.data_license if card else None)]
    if manifest.lineage.base:
        rows.append(("its base", card.base_license if card else None))
    if manifest.lineage.teacher:
        rows.append(("its teacher", card.teacher_license if card else None))
    return [(what, license_ or _UNSTATED) for what, license_ in rows]


def _data(manifest: Manifest) -> str:
    counts = [
        (name.removeprefix("data_"), value) for name, value in manifest.evaluation.items() if name.startswith("data_")
    ]
    data = manifest.lineage.data
    sources = _table(
        ("source", "SHA-256"),
        [
            (f"{uri} ({files} files)" if files > 1 else uri, data[uri])
            for uri, files in sorted(with_files(data.keys()).items())
        ],
    )
    if not counts:
        return sources
    return f"{sources}\n\n{_table(('counted', ''), [(name, _number(value)) for name, value in counts])}"


def _evaluation(manifest: Manifest, report: Mapping[str, Any]) -> Iterable[str]:
    figures = manifest.evaluation
    rows = []
    for name, value in figures.items():
        if name.startswith(("data_", *_ENDS)):
            continue
        ends = [figures.get(f"{end}{name}") for end in _ENDS]
        interval = f"{_number(ends[0])} to {_number(ends[1])}" if None not in ends else ""
        rows.append((name, _number(value), interval))
    if not rows:
        yield "It has not been evaluated."
        return
    shown = rows[: VALUES_MAX + _LABELS_SHOWN]
    sure = f"{100 * report['confidence']:g} % interval" if "confidence" in report else ""
    yield _table(("figure", "value", sure), shown)
    if len(rows) > len(shown):
        yield f"{len(rows) - len(shown)} more are in `manifest.json`."
    counted = {name: found for name, found in report.get("slices", {}).items() if found["counts"]}
    if counted:
        worst = min(counted, key=lambda name: (counted[name]["figure"], name))
        found = counted[worst]
        yield (
            f"Worst of {len(counted)} slices: {_code(worst)}, {_number(found['figure'])} on {found['examples']} "
            "examples."
        )
    if manifest.calibration is not None:
        yield (
            f"Probabilities are calibrated with a temperature of {_number(manifest.calibration.temperature)}; servers "
            "divide by it."
        )
    if report.get("gates"):
        yield "Gates that decided on its registration:"
        yield "\n".join(
            f"- {'passed' if each['passed'] else '**failed**'}: {_plain(each['message'])}" for each in report["gates"]
        )
    if manifest.precisions:
        yield _table(
            ("precision", "metric", "value", "fp32"),
            [
                (name, each.metric, _number(each.value), _number(each.fp32))
                for name, each in sorted(manifest.precisions.items())
            ],
        )
        for name, each in sorted(manifest.precisions.items()):
            if (worst := each.worst_slice) is not None:
                yield (
                    f"In {name} the slice that loses most is {_code(worst.name)}: {_number(worst.value)} where fp32 "
                    f"has {_number(worst.fp32)}, on {worst.examples} examples."
                )


def _lineage(manifest: Manifest) -> list[tuple[str, str]]:
    lineage = manifest.lineage
    rows = [
        ("job", f"{lineage.kind} {lineage.job}"),
        ("job's UID", lineage.job_uid),
        ("base", lineage.base),
        ("base's digest", lineage.base_digest),
        ("teacher", lineage.teacher),
        ("teacher's digest", lineage.teacher_digest),
        ("tokenizer's fingerprint", manifest.tokenizer_fingerprint),
        ("made", lineage.created),
        ("by Cloze", lineage.trainer_version),
    ]
    return [(name, value) for name, value in rows if value]


def _use(manifest: Manifest) -> str:
    text = "```\ncloze-server --model DIR        # this folder, or models:/NAME/VERSION of the registry\n```"
    if manifest.task in _PIPELINES:
        text += (
            "\n\nIt also loads with transformers' `AutoModel.from_pretrained`. `manifest.json` has each file's SHA-256."
        )
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value.is_integer() else f"{value:.4f}"


def _code(text: str) -> str:
    shown = " ".join(text.replace("`", "'").split())
    return f"`{shown or ' '}`"


def _plain(text: str, *, lines: bool = False) -> str:
    """Text that is no markup: what a label or a person has written makes no row, heading, link or tag of its own."""
    escaped = re.sub(r"([|`<>\[\]])", r"\\\1", text)
    if lines:
        return "\n".join(re.sub(r"^(\s*)([#=-])", r"\1\\\2", line) for line in escaped.splitlines())
    return " ".join(escaped.split())
