"""`cloze-train gate`: judge an artifact on labelled examples, for people and for CI."""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from pydantic import ValidationError

from cloze_api.evaluation import Champion, Evaluation, Gate
from cloze_api.finetune import Truncation
from cloze_api.manifest import ArtifactError, Manifest
from cloze_api.names import CORPUS_MOUNT, ENV_CORPUS_ROOT, ENV_MLFLOW_URI
from cloze_api.precision import Precision, named
from cloze_api.progress import ExitCode, Outcome
from cloze_api.signature import TrustedKeys
from cloze_api.source import parse_source
from cloze_api.task import LABEL_TASKS
from cloze_trainer import example_options, own_registry, trust
from cloze_trainer.data.records import JSON_LINES, Form
from cloze_trainer.data.source import locate
from cloze_trainer.errors import GateError, InputError
from cloze_trainer.example_options import check_revision
from cloze_trainer.quality import gates, judgement
from cloze_trainer.quality.assessment import assess, kind_of, refuse_other
from cloze_trainer.quality.judgement import Judgement

_REFERENCE = re.compile(r"(?P<name>[^/@]+)(/(?P<version>[1-9][0-9]*)|@(?P<alias>[^/@]+))")
_URIS = "file:///path, s3://bucket/path, gs://bucket/path, https://host/path or hf://datasets/owner/name/path"


class Asked(NamedTuple):
    """The command line."""

    model: str
    data: str
    evaluation: Evaluation
    against: str | None
    junit: Path | None
    truncation: Truncation = Truncation.RIGHT
    verify_key: tuple[str, ...] = ()
    precision: Precision = Precision.FP32
    form: Form = JSON_LINES
    revision: str | None = None


def parse(arguments: Sequence[str]) -> Asked:
    """Read the command line; ends the process with usage for one that can't be read."""
    parser = argparse.ArgumentParser(
        prog="cloze-train gate",
        description="Judge a model on labelled examples: figures with their intervals, and whether they keep the "
        "bounds. Exits with 0 when all do.",
        epilog=f"exit codes: {ExitCode.SUCCESS:d} all gates pass, {ExitCode.GATE_FAILED:d} one doesn't, "
        f"{ExitCode.INVALID_INPUT:d} the model or the examples can't be used, {ExitCode.REGISTRY:d} MLflow doesn't "
        f"answer. Registered models are found by {ENV_MLFLOW_URI}.",
    )
    parser.add_argument("model", metavar="MODEL", help="an artifact's folder, name/version or name@alias")
    parser.add_argument(
        "data", metavar="DATA", help="labelled examples, as a FineTuneJob has them: a path, or their URI"
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of DATA at hf://; its main branch when absent"
    )
    example_options.add(parser)
    parser.add_argument("--minimum", action="append", default=[], metavar="FIGURE=VALUE", help="such as macro_f1=0.9")
    parser.add_argument("--maximum", action="append", default=[], metavar="FIGURE=VALUE")
    parser.add_argument("--against", metavar="MODEL", help="one that it must not be worse than, as MODEL")
    parser.add_argument("--max-loss", type=float, default=Champion().max_loss, metavar="SHARE", help="%(default)s")
    parser.add_argument("--confidence", type=float, default=Evaluation().confidence, metavar="SHARE")
    parser.add_argument("--min-slice-examples", type=int, default=Evaluation().min_slice_examples, metavar="N")
    parser.add_argument(
        "--truncate",
        type=Truncation,
        choices=list(Truncation),
        default=Truncation.RIGHT,
        metavar="HOW",
        help="what is read of longer texts, in classification: right, their beginning, or all by window",
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        choices=list(Precision),
        default=Precision.FP32,
        help="which of the model's graphs is judged (default: %(default)s); --against is always judged in fp32",
    )
    parser.add_argument(trust.FLAG, action="append", default=[], metavar="KEY", help=trust.HELP)
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write what came of each gate as JUnit's XML")
    parsed = parser.parse_args(arguments)
    try:
        evaluation = Evaluation(
            gates=[
                *(Gate(figure=name, minimum=value) for name, value in map(_pair, parsed.minimum)),
                *(Gate(figure=name, maximum=value) for name, value in map(_pair, parsed.maximum)),
            ],
            champion=Champion(max_loss=parsed.max_loss, confidence=parsed.confidence) if parsed.against else None,
            confidence=parsed.confidence,
            # As it is served.
            calibrate=False,
            min_slice_examples=parsed.min_slice_examples,
        )
        form = example_options.form(parsed, parsed.data)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except (ValidationError, ValueError) as error:
        lines = [each["msg"] for each in error.errors()] if isinstance(error, ValidationError) else [str(error)]
        parser.error("; ".join(lines))
    return Asked(
        *(parsed.model, parsed.data, evaluation, parsed.against, parsed.junit, parsed.truncate),
        verify_key=tuple(parsed.verify_key),
        precision=parsed.precision,
        form=form,
        revision=parsed.revision,
    )


def _pair(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"{text!r} isn't FIGURE=VALUE, as macro_f1=0.9") from None


def run(asked: Asked) -> Outcome:
    """Judge, print the figures, write the report. Raises GateError, InputError, RegistryError, OSError."""
    _check_data(asked.data, asked.revision)
    if asked.junit is not None and (asked.junit.is_dir() or not asked.junit.parent.is_dir()):
        raise InputError("ReportUnwritable", f"--junit: {asked.junit} isn't a file in a folder that is there")
    scratch = Path(tempfile.mkdtemp(prefix="cloze-gate-"))
    try:
        judged = _judge(asked, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.stdout.write(table(judged))
    if asked.junit is not None:
        asked.junit.write_bytes(junit(asked.model, judged))
    if judged.refusal:
        raise GateError(judged.refusal, judged.figures)
    return Outcome(reason="GatesPassed", message=f"{len(judged.verdicts)} gates pass", metrics=dict(judged.figures))


def _check_data(data: str, revision: str | None) -> None:
    check_revision(data, revision)
    if "://" not in data:
        if not Path(data).is_file():
            raise InputError("ExamplesMissing", f"{data} isn't a file: name labelled examples")
        return
    try:
        parse_source(data)
    except ValueError as error:
        # Not shown: an address may have a password in it.
        message = f"DATA is no URI of examples: give a path, or {_URIS}, without `..`"
        raise InputError("SourceInvalid", message) from error


def _files(asked: Asked, downloads: Path) -> Sequence[Path]:
    """What the path or the URI names; fetched, where need be."""
    if "://" not in asked.data:
        return [Path(asked.data)]
    corpus_root = Path(os.environ.get(ENV_CORPUS_ROOT) or CORPUS_MOUNT)
    return locate(asked.data, corpus_root=corpus_root, downloads=downloads, revision=asked.revision).paths


def _judge(asked: Asked, scratch: Path) -> Judgement:
    keys = trust.find(asked.verify_key)
    folder, manifest = _artifact(asked.model, scratch / "model", keys)
    if asked.precision not in (Precision.FP32, *manifest.precisions):
        there = named(manifest.precisions)
        message = f"{asked.model} has no graph in {asked.precision}; --precision may be one of those it has: {there}"
        raise InputError("PrecisionMissing", message)
    kind, labels = kind_of(manifest), manifest.labels
    if asked.truncation is Truncation.WINDOW and kind.task not in LABEL_TASKS:
        raise InputError("TruncationUnsuitable", f"--truncate is for classification, not for {kind.task}")
    examples = kind.read(_files(asked, scratch / "data"), asked.form)
    sliced = bool(judgement.counted_slices((each.slices for each in examples), asked.evaluation.min_slice_examples))
    key = kind.key(examples)
    known = judgement.figure_names(manifest.task, labels, sliced=sliced, problem=manifest.problem, key=key)
    known += kind.thresholded if manifest.calibration and manifest.calibration.thresholds != {} else []
    if strange := gates.unknown(asked.evaluation.gates, known):
        raise InputError("GateFigureUnknown", f"there is no figure {strange[0]!r}; there are {', '.join(known)}")
    kind.check(examples, labels)
    scores = assess(folder, manifest, examples, labels, asked.truncation, precision=asked.precision)
    verdict = None
    if asked.against is not None and asked.evaluation.champion is not None:
        other, its = _artifact(asked.against, scratch / "against", keys)
        refuse_other(its, kind, labels)
        theirs = assess(other, its, examples, labels, asked.truncation)
        comparison = judgement.compare(
            *(scores, theirs, labels),
            task=manifest.task,
            problem=manifest.problem,
            against=asked.against,
            confidence=asked.evaluation.champion.confidence,
        )
        verdict = gates.no_worse(comparison, asked.evaluation.champion.max_loss, asked.evaluation.champion.confidence)
    return judgement.judge(
        *(scores, labels, asked.evaluation),
        task=manifest.task,
        problem=manifest.problem,
        champion=verdict,
        known=manifest.calibration,
    )


def _artifact(model: str, folder: Path, keys: TrustedKeys | None) -> tuple[Path, Manifest]:
    """A verified artifact: the folder itself, or what the registry has, in `folder`."""
    if not Path(model).is_dir():
        match, uri = _REFERENCE.fullmatch(model), own_registry.address(there=True)
        if match is None:
            raise InputError("ModelUnknown", f"{model} is no folder: give one, or name/version or name@alias")
        if not uri:
            raise InputError("RegistryUnset", f"{model} is in MLflow: {own_registry.ADVICE}")
        from cloze_trainer import registry  # noqa: PLC0415 - MLflow takes seconds to import

        version = match["version"] or registry.version_of_alias(uri, match["name"], match["alias"])
        registry.download(uri, match["name"], version, folder)
        model = str(folder)
    try:
        return Path(model), trust.verify(Path(model), keys)
    except ArtifactError as error:
        raise InputError(error.reason, f"{model} can't be used: {error}") from error


def table(judged: Judgement) -> str:
    """The figures, with their intervals, and the gates, for a person."""
    figures = judged.figures
    lines = []
    for name, value in figures.items():
        if name.partition("_")[0] in judgement.ENDS:
            continue
        interval = (
            f"  ({figures[f'lower_{name}']:.4f} to {figures[f'upper_{name}']:.4f})"
            if f"lower_{name}" in figures
            else ""
        )
        lines.append(f"{name:<32} {value:>8.4f}{interval}")
    lines += [f"{'ok  ' if each.passed else 'FAIL'} {each.message}" for each in judged.verdicts]
    return "\n".join(lines) + "\n"


def junit(model: str, judged: Judgement) -> bytes:
    """One test case for each gate."""
    failed = sum(not verdict.passed for verdict in judged.verdicts)
    suite = ElementTree.Element(
        "testsuite", name=f"cloze-train gate {model}", tests=str(len(judged.verdicts)), failures=str(failed)
    )
    for verdict in judged.verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=verdict.gate)
        if not verdict.passed:
            ElementTree.SubElement(case, "failure", message=verdict.message)
    written: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written
