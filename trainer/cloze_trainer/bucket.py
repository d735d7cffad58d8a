"""Checkpoints in a bucket: a prefix that no other attempt writes to, its digests last; without them it doesn't count.

The newest one stays on this machine too, so that ranks which start again here have nothing to fetch.
"""

import contextlib
import fcntl
import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cloze_api.progress import ExitCode
from cloze_trainer.console import log
from cloze_trainer.errors import InputError, TrainerError
from cloze_trainer.files import COMPLETE, Damaged, check, digests_of
from cloze_trainer.volume import Volume, folder_name, step_of

NOT_STORED: Final = "CheckpointNotStored"
"""Reason of a checkpoint that the store didn't take: it costs that checkpoint only."""

_REFUSAL: Final = "CheckpointStoreRefused"
_ERRORS = (BotoCoreError, ClientError, Boto3Error)
# All within the time that a pod has to end: an answer that doesn't come, twice, and the copy before.
_CONNECT_SECONDS, _ANSWER_SECONDS = 5, 15
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
# How long a run that starts waits for its store; Kubernetes' back-off comes after it.
_START_SECONDS = 60.0
_TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=4)
# Answers of a store that the same request would get again, but for what is over once it is made anew, with a clock and
# credentials of then.
_REFUSED: Final = {400, 401, 403, 404}
_PASSING: Final = {"ExpiredToken", "IncompleteBody", "RequestTimeTooSkewed", "RequestTimeout", "TokenRefreshRequired"}


class Bucket:
    """The checkpoints of one run below `s3://bucket/prefix`.

    run: the run's own part of the prefix. here: folder of this machine. access: what gives access, asked for again each
    time, as it may change in a long run; by the names that `remote.CREDENTIALS` has.
    """

    def __init__(self, uri: str, run: str, here: Path, access: Callable[[], Mapping[str, str]]) -> None:
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = "/".join(part for part in (*prefix.split("/"), run) if part) + "/"
        self._folder, self._here, self._access = here, Volume(here), access
        self._patience = _START_SECONDS

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def prepare(self) -> None:
        """As in Store: it must be possible to list and to write."""
        key = f"{self._prefix}.probe"

        def probe() -> None:
            client = self._client()
            client.put_object(Bucket=self._bucket, Key=key, Body=b"")
            client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            client.delete_object(Bucket=self._bucket, Key=key)

        self._patiently(probe, final=True)

    def steps(self) -> list[int]:
        """As in Store."""
        return self._steps(finished=False)

    def finished(self) -> list[int]:
        """As in Store."""
        return self._steps(finished=True)

    def open(self, step: int) -> Path:
        """As in Store: what this machine doesn't have is fetched."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # The ranks of a machine share its folder, and all of them ask.
        with (self._folder / ".fetching").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            damage = Damaged("it was not finished")
            for name in self._finished_names(step):
                try:
                    path: Path = self._patiently(partial(self._fetch, step, name))
                except Damaged as error:
                    damage = error
                else:
                    return path
            raise damage

    def publish(self, step: int, staged: Path, give_up: threading.Event) -> None:
        """As in Store. Raises TrainerError `CheckpointNotStored`; what is there already stays as it is."""
        digests, wait = digests_of(staged), _FIRST_WAIT
        # From now on there is a training that would wait, too.
        self._patience = 0.0
        while True:
            # Not even a former attempt's own name: its last request may still be on the way.
            name = f"{folder_name(step)}-{secrets.token_hex(4)}"
            try:
                self._clear()
                self._upload(name, staged, digests)
                break
            except _ERRORS as error:
                log("checkpoint not stored", step=step, store=str(self), why=_words(error), again=not give_up.is_set())
                if give_up.wait(wait):
                    raise TrainerError(
                        NOT_STORED, f"{self} doesn't take checkpoints: {_words(error)}", ExitCode.STORAGE
                    ) from error
                wait = min(2 * wait, _LONGEST_WAIT)
        # From here on it counts. What is left to do is of no consequence if it fails.
        with contextlib.suppress(TrainerError, *_ERRORS):
            for other in self._finished_names(step):
                if other != name:
                    self._remove(other)
        for old in self._here.steps():
            self._here.remove(old)
        self._here.take(step, staged, digests)

    def remove(self, step: int) -> None:
        """As in Store. Raises TrainerError."""
        self._here.remove(step)
        with self._told():
            for name in self._names():
                if step_of(name) == step:
                    self._remove(name)

    def clear(self) -> None:
        """As in Store: on this machine; what is in the bucket is cleared before the next upload."""
        self._here.clear()

    def _client(self) -> Any:
        access = self._access()
        endpoint = access.get("AWS_ENDPOINT_URL")
        return boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=access.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=access.get("AWS_SESSION_TOKEN"),
            region_name=access.get("AWS_REGION") or ("us-east-1" if endpoint else None),
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_ANSWER_SECONDS,
                # It is tried again here, as long as that is of use.
                retries={"mode": "standard", "total_max_attempts": 1},
                # Not every store has buckets as names of hosts, or the newer checksums; the digests are our own.
                s3={"addressing_style": "path"} if endpoint else {},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def _keys(self, prefix: str) -> Iterator[str]:
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return (entry["Key"] for page in pages for entry in page.get("Contents", ()))

    def _names(self) -> dict[str, set[str]]:
        """The files of everything that looks like a checkpoint, keyed by its name."""
        found: dict[str, set[str]] = {}
        for key in self._keys(self._prefix):
            name, _, file = key.removeprefix(self._prefix).partition("/")
            if step_of(name) is not None:
                found.setdefault(name, set()).add(file)
        return found

    def _steps(self, *, finished: bool) -> list[int]:
        names = self._patiently(self._names)
        found = {step_of(name) for name, files in names.items() if not finished or COMPLETE in files}
        return sorted((step for step in found if step is not None), reverse=True)

    def _finished_names(self, step: int) -> list[str]:
        names = self._patiently(self._names)
        return sorted(name for name, files in names.items() if step_of(name) == step and COMPLETE in files)

    def _upload(self, name: str, staged: Path, digests: Mapping[str, str]) -> None:
        client = self._client()
        for file in digests:
            client.upload_file(str(staged / file), self._bucket, f"{self._prefix}{name}/{file}", Config=_TRANSFER)
        body = json.dumps(digests, indent=2).encode()
        client.put_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{COMPLETE}", Body=body)

    def _fetch(self, step: int, name: str) -> Path:
        client = self._client()
        try:
            marker = client.get_object(Bucket=self._bucket, Key=f"{self._prefix}{name}/{COMPLETE}")["Body"].read()
            digests: dict[str, str] = json.loads(marker)
        except ValueError:
            raise Damaged("its marker can't be read") from None
        if not isinstance(digests, dict) or any(Path(file).name != file for file in digests):
            raise Damaged("its marker names files elsewhere")
        with contextlib.suppress(Damaged):
            if self._here.marker(step) == digests:
                return self._here.path(step)
        fetched = self._folder / f".{folder_name(step)}.staging"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        try:
            for file in digests:
                try:
                    client.download_file(self._bucket, f"{self._prefix}{name}/{file}", str(fetched / file))
                except ClientError as error:
                    if _status(error) == 404:
                        raise Damaged(f"{file} is missing") from None
                    raise
            check(fetched, digests)
            self._here.take(step, fetched, digests)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        return self._here.path(step)

    def _clear(self) -> None:
        """Remove half uploads: of files, and of checkpoints that have no digests."""
        client = self._client()
        # An account may lack this right, or a store this request: what is left then takes room, and does no harm.
        with contextlib.suppress(ClientError):
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for name, files in self._names().items():
            if COMPLETE not in files:
                self._remove(name)

    def _remove(self, name: str) -> None:
        client = self._client()
        # The digests go first, so that a half-deleted checkpoint doesn't count.
        keys = [f"{self._prefix}{name}/{COMPLETE}", *self._keys(f"{self._prefix}{name}/")]
        for key in keys:
            client.delete_object(Bucket=self._bucket, Key=key)

    def _patiently(self, ask: Callable[[], Any], *, final: bool = False) -> Any:
        """The answer of a store that may be away for a moment. final: as in `_told`. Raises as it does."""
        deadline, wait = time.monotonic() + self._patience, _FIRST_WAIT
        while True:
            try:
                with self._told(final=final):
                    return ask()
            except TrainerError as error:
                if isinstance(error, InputError) or time.monotonic() + wait > deadline:
                    raise
                log("checkpoint store doesn't answer", why=error.message, seconds=wait)
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    @contextlib.contextmanager
    def _told(self, *, final: bool = False) -> Iterator[None]:
        """What the store says, as what the run says of it. Raises TrainerError, which is tried again.

        final: whether a refusal ends the job, as InputError. A store that took what was asked of it when the run began
        may take it once more when somebody has seen to it, and days of training are at stake.
        """
        try:
            yield
        except (*_ERRORS, ValueError) as error:
            if _refused(error):
                message = (
                    f"{self} refuses ({_words(error)}): check spec.checkpoint.uri and AWS_ENDPOINT_URL, and that its "
                    "credentials may list, read, write and delete there"
                )
                if final:
                    raise InputError(_REFUSAL, message) from error
                raise TrainerError(_REFUSAL, message, ExitCode.STORAGE) from error
            raise TrainerError(
                "CheckpointStoreUnavailable",
                f"{self} doesn't answer ({_words(error)}): check the store, its credentials and AWS_ENDPOINT_URL",
                ExitCode.STORAGE,
            ) from error


def _refused(error: Exception) -> bool:
    """Whether the same request would get the same answer."""
    if not isinstance(error, ClientError):
        # A ValueError is about the address.
        return isinstance(error, ValueError)
    return _status(error) in _REFUSED and _code(error) not in _PASSING


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "error"))


def _words(error: Exception) -> str:
    """What a store said: its code, or the kind of failure; no key is in it."""
    cause = error.__context__ if isinstance(error, Boto3Error) else error
    if isinstance(cause, ClientError):
        return f"{_code(cause)}, HTTP status {_status(cause)}"
    return type(cause).__name__
