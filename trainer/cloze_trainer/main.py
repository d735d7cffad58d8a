"""`cloze-train`: carry out one PretrainJob or FineTuneJob, in a pod or on this machine, or import a model."""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from cloze_api.names import (
    CORPUS_MOUNT,
    ENV_CORPUS_ROOT,
    ENV_DATA_CACHE,
    ENV_MLFLOW_URI,
    ENV_RENDEZVOUS,
    ENV_SIGNING_KEY,
    ENV_VERIFY_KEY,
    ENV_WORKSPACE,
    JOB_FILE,
    PROGRESS_PORT,
)
from cloze_api.progress import ExitCode, Outcome
from cloze_trainer import import_options, importing, outcome, own_registry, trust
from cloze_trainer.console import log
from cloze_trainer.errors import InputError, Suspended, TrainerError, classify
from cloze_trainer.files import write_atomically
from cloze_trainer.lineage import command as lineage
from cloze_trainer.nursery import open_nursery
from cloze_trainer.origin import refuse_changed
from cloze_trainer.outcome import FAILURE_FILE
from cloze_trainer.run import Run, open_run

_IMPORT = "import"
_GATE = "gate"
_LINEAGE = "lineage"

_EPILOG = f"""\
cloze-train import FOLDER --task TASK --name NAME --output DIR [--register] makes an artifact of a model in
Hugging Face's format, here or in a store: see cloze-train import --help.
cloze-train gate MODEL DATA [--minimum FIGURE=VALUE] judges a model on labelled examples: see cloze-train
gate --help.
cloze-train lineage VERSION | --data DATA tells where a registered version comes from, and what has come of it or of a
data set: see cloze-train lineage --help.

environment:
  {ENV_MLFLOW_URI:<22} registry of the finished model; ./{own_registry.FILE} where it isn't set and mlflow is installed,
                         none where it is empty
  {ENV_SIGNING_KEY:<22} file of the private key by which the artifact is signed
  {ENV_VERIFY_KEY:<22} public keys, separated by white space, as --verify-key
  {ENV_RENDEZVOUS:<22} host:port of the gang's rendezvous; without it all ranks run on this machine
  {ENV_WORKSPACE:<22} as --workspace
  {ENV_CORPUS_ROOT:<22} as --corpus-root
  {ENV_DATA_CACHE:<22} as --data-cache

exit codes:
{chr(10).join(f"  {int(code):<4}{code.name.lower().replace('_', ' ')}" for code in ExitCode)}
"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cloze-train",
        description="Carry out one PretrainJob or FineTuneJob: the file is the resource itself. Started again with "
        "the same file it goes on where it stopped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="[run] FILE", help=f"the resource as YAML or JSON ({JOB_FILE})")
    parser.add_argument("--workspace", help="folder for shards, checkpoints and the artifact (./cloze-run/<name>)")
    parser.add_argument("--corpus-root", help=f"parent of the pvc:// and configmap:// mounts ({CORPUS_MOUNT})")
    parser.add_argument("--data-cache", metavar="DIR", help="folder for prepared data that runs share (none)")
    parser.add_argument("--progress-port", type=int, help=f"serve /progress, /metrics, /healthz ({PROGRESS_PORT})")
    parser.add_argument(trust.FLAG, action="append", type=_key, metavar="KEY", help=trust.HELP)
    # Options may stand between the words.
    parsed = parser.parse_intermixed_args()
    words = parsed.words[1:] if parsed.words[:1] == ["run"] else parsed.words
    if len(words) > 1:
        parser.error(f"one FILE is expected, got {' '.join(words)}")
    parsed.file = Path(words[0] if words else JOB_FILE)
    return parsed


def _key(place: str) -> str:
    if place.split() != [place]:
        raise argparse.ArgumentTypeError(f"{place!r} is empty or has white space, which separates keys")
    return place


def _claim(run: Run) -> None:
    """Take the workspace for this run. Raises InputError when it belongs to another one."""
    run.workspace.mkdir(parents=True, exist_ok=True)
    marker = run.workspace / ".run"
    if not marker.exists():
        write_atomically(marker, run.identity.encode())
    if marker.read_text(encoding="utf-8") != run.identity:
        raise InputError(
            "WorkspaceOfAnotherRun",
            f"{run.workspace} holds a run of another or a changed job: name another --workspace or delete the folder",
        )


def _run(arguments: argparse.Namespace) -> Outcome:
    try:
        run = open_run(arguments.file)
        _claim(run)
    except (TrainerError, OSError) as error:
        return outcome.failed(classify(error))
    if (done := run.finished()) is not None:
        try:
            refuse_changed(run, outcome.finished_sources(run.workspace))
        except (TrainerError, OSError) as error:
            return outcome.failed(classify(error))
        log("finished before", reason=done.reason)
        return done
    try:
        trust.find()
    except TrainerError as error:
        return outcome.failed(error)
    port = arguments.progress_port
    if port is None and os.environ.get(ENV_RENDEZVOUS):
        port = PROGRESS_PORT
    # Torch takes seconds to import; a mistake in the file is told before.
    open_nursery(run.job.spec.topology.threads_per_process)
    from cloze_trainer.launch import launch  # noqa: PLC0415

    result = launch(run, arguments.file.resolve(), port)
    if result.exit_code != ExitCode.SUCCESS:
        try:
            # Not the note of success: another pod may have finished the run meanwhile.
            outcome.write(run.workspace / FAILURE_FILE, result)
        except OSError as error:
            log("outcome not written", why=error.strerror)
    return result


def _import(arguments: list[str]) -> Outcome:
    """Import a model; nothing is left behind by a failure."""
    try:
        return importing.run(import_options.parse(arguments))
    except (TrainerError, OSError) as error:
        return outcome.failed(classify(error))


def _gate(arguments: list[str]) -> Outcome:
    """Judge a classifier."""
    # ONNX Runtime takes a second to import.
    from cloze_trainer.quality import command  # noqa: PLC0415

    try:
        return command.run(command.parse(arguments))
    except (TrainerError, OSError) as error:
        return outcome.failed(classify(error))


def _lineage(arguments: list[str]) -> Outcome:
    """Tell where a version comes from, or what has come of something."""
    try:
        return lineage.run(lineage.parse(arguments))
    except (TrainerError, OSError) as error:
        return outcome.failed(classify(error))


def _end(result: Outcome) -> None:
    """Tell how it ended, on the log and where Kubernetes reads it."""
    outcome.terminate(result)
    log("ended", reason=result.reason, message=result.message, exit_code=int(result.exit_code))


def _hear(_number: int, _frame: FrameType | None) -> None:
    """Until the launcher takes over: there is nothing to save, and an exception could be lost within an import."""
    _end(outcome.failed(Suspended("stopped by a signal before the ranks ran; it goes on from what is done")))
    os._exit(int(ExitCode.SUSPENDED))


def main() -> None:
    """Entry point; exits with a `cloze_api.progress.ExitCode`."""
    # A pod's first process ignores SIGTERM unless it asks for it, and the imports to come take seconds.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _hear)
    commands = {_IMPORT: _import, _GATE: _gate, _LINEAGE: _lineage}
    if sys.argv[1:2] and sys.argv[1] in commands:
        result = commands[sys.argv[1]](sys.argv[2:])
        _end(result)
        sys.exit(int(result.exit_code))
    arguments = _arguments()
    if arguments.workspace:
        os.environ[ENV_WORKSPACE] = arguments.workspace
    if arguments.corpus_root:
        os.environ[ENV_CORPUS_ROOT] = arguments.corpus_root
    if arguments.data_cache:
        os.environ[ENV_DATA_CACHE] = arguments.data_cache
    if arguments.verify_key:
        os.environ[ENV_VERIFY_KEY] = " ".join(arguments.verify_key)
    result = _run(arguments)
    # It is decided; the signal that ended it may come again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _end(result)
    sys.exit(int(result.exit_code))


if __name__ == "__main__":
    main()
