"""The meaning of an answer of S3, or of the lack of one, to an operator.

Owns the table of error codes and the list of errors that come without an answer. Promises that all of them become
`StorageError`, matched by code and type, never by text; that a verdict upon one object alone (its key, class, tags or
encryption, or the right to put it) becomes a `Refusal`; and that a hint names the settings that went with the request,
where one of them may be what the store does not take. Never calls the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.disk import StorageError
from ingest.store.outcome import CLOCK, IN_DOUBT, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping


_DENIED = (
    "the credentials may not do this: allow s3:PutObject, with KMS kms:GenerateDataKey, and with "
    "S3_CONDITIONAL_PUTS=false s3:GetObject and s3:ListBucket"
)
_KEYS = "the credentials are wrong: check the access key and its secret"
_REGION = "the bucket is in another region: fix AWS_REGION"
_DAMAGED = "the body changed on its way: it is sent again; if this lasts, check the network path"
_BUSY = "the store is overloaded: it recovers, or UPLOAD_CONCURRENCY is too high for it"
_CLOCK = "this host's clock is wrong: run NTP"
_TIMES_OUT = "no answer within S3_TIMEOUT: check the network path, or raise it"
_UNREACHABLE = "the store cannot be reached: check the endpoint, DNS, routes and security groups"
_UNFORESEEN = "the SDK or its source of credentials failed: the error says how; it is tried again"
NO_ANSWER_FROM_SOURCE = "the source of credentials does not answer: check the role's endpoint, or credential_process"
EXPIRED_KEYS = "the keys that the source gave are over already: check this host's clock (NTP), then the source"
NO_CREDENTIALS = "no credentials found: give the task a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
UNUSABLE_KEYS = "the source of credentials gave what cannot sign: check what it prints, or what it reads"

# The store's error code -> (what the operator can do, whether the same call may succeed later by itself).
_ADVICE: dict[str, tuple[str, bool]] = {
    "AccessDenied": (_DENIED, False),
    "InvalidAccessKeyId": (_KEYS + "; they are looked for anew", True),
    "SignatureDoesNotMatch": (_KEYS + "; they are looked for anew", False),
    "ExpiredToken": ("the credentials expired: they are looked for anew; if this lasts, check their source", True),
    "InvalidToken": ("the session token is wrong: check AWS_SESSION_TOKEN or the role; it is looked for anew", True),
    "RequestTimeTooSkewed": (_CLOCK, False),
    "RequestExpired": (_CLOCK, False),
    "NoSuchBucket": ("there is no such bucket: fix RAW_BUCKET, or create it", False),
    "NoSuchKey": ("there is no such object", False),
    "PermanentRedirect": (_REGION, False),
    "AuthorizationHeaderMalformed": (_REGION, False),
    "BadDigest": (_DAMAGED, True),
    "IncompleteBody": (_DAMAGED, True),
    "XAmzContentChecksumMismatch": (_DAMAGED, True),
    "XAmzContentSHA256Mismatch": (_DAMAGED, True),
    "SlowDown": (_BUSY, True),
    "ServiceUnavailable": (_BUSY, True),
    "RequestTimeout": (_TIMES_OUT, True),
    "ConditionalRequestConflict": ("somebody else is storing this key at this moment", True),
    "OperationAborted": ("somebody else is storing this key at this moment", True),
    "NotImplemented": ("the store lacks a feature: set S3_CONDITIONAL_PUTS=false if it is create-only puts", False),
    "InvalidStorageClass": ("the store does not know S3_STORAGE_CLASS", False),
    "InvalidTag": ("the store does not accept S3_TAGS", False),
    "InvalidRequest": ("the store does not take such a request", False),
    "InvalidArgument": ("the store does not take what the request asks for", False),
    "InvalidEncryptionAlgorithmError": ("the store does not know S3_SSE", False),
    "KeyTooLongError": ("shorten RAW_PREFIX or DLQ_PREFIX", False),
    "KMS.ThrottlingException": ("KMS is asked too often: enable the bucket's S3 Bucket Key, or raise the quota", True),
    "KMS.NotFoundException": ("there is no such key: fix S3_SSE_KMS_KEY_ID", False),
    "KMS.DisabledException": ("the key is disabled: enable it, or fix S3_SSE_KMS_KEY_ID", False),
    "EntityTooLarge": ("the store takes no object of this size: lower BATCH_BYTES", False),
}
# Codes that judge one object, not the way to the store. By contrast only: see `store.outcome`.
_REFUSALS = frozenset({
    "AccessDenied",
    "AllAccessDisabled",
    "EntityTooLarge",
    "InvalidArgument",
    "InvalidEncryptionAlgorithmError",
    "InvalidObjectState",
    "InvalidRequest",
    "InvalidStorageClass",
    "InvalidTag",
    "InvalidURI",
    "KeyTooLongError",
    "MetadataTooLarge",
    "MethodNotAllowed",
    "NotImplemented",
})  # fmt: skip
_KMS = "KMS."
KEYS_IN_DOUBT = frozenset({
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
})  # fmt: skip
"""Codes after which credentials are looked for anew: what was read may be half of what was being written."""
_CLOCK_IN_DOUBT = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
# Codes by which a store may mean any of the settings that went with the request.
_ABOUT_SETTINGS = frozenset(
    {"InvalidRequest", "InvalidArgument", "NotImplemented", "InternalError", "MethodNotAllowed"}
)

# An error's text may quote what it failed on.
LONGEST_TEXT = 500
_LONGEST_WORD = 100
"""No code and no request id of a store is as long. A longer one is cut."""

_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_CLIENT_ERROR, _SERVER_ERROR, _NOT_IMPLEMENTED = 400, 500, 501
_CONFLICT = 409


class EndlessAnswer(Exception):  # noqa: N818 - the answer is at fault
    """An answer that is longer than any of a store's; the rest of it was not read. `status` is its own, 0 for none."""

    def __init__(self, told: str, status: int = 0) -> None:
        super().__init__(told)
        self.status = status


@dataclass(frozen=True, slots=True)
class Sent:
    """The request that failed: the `settings` that put something into it, and the `address` that was asked."""

    settings: tuple[str, ...] = ()
    address: str = ""

    def doubt(self) -> str:
        """Say which of the settings the store may not take; nothing if none was sent."""
        if not self.settings:
            return ""
        named = " or ".join(self.settings)
        if "S3_SSE" in self.settings and self.address.startswith("http://"):
            return f"; it was sent {named}: most stores take S3_SSE over https only, and some not at all"
        return f"; it was sent {named}: unset what it does not know"


def verdict_of(response: Mapping[str, Any]) -> tuple[int, str]:
    """Return the status and the code that stood in the body; the SDK puts the status in place of a code it misses."""
    return status_of(response), str(response.get("Error", {}).get("Code", ""))[:_LONGEST_WORD]


def is_answer(failure: StorageError) -> bool:
    """Tell whether a try failed by the store's word on this request: not by a page, nor because it is busy or ill."""
    status = failure.cause.get("status")
    return status == _CONFLICT or (status is not None and not failure.transient)


def storage_error(operation: str, key: str, error: Exception, sent: Sent | None = None) -> StorageError:
    """Say what an error means to the operator, and keep its cause for the log."""
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # it ships no types

    if isinstance(error, StorageError):
        return error
    cause: dict[str, str | int] = {"error": f"{type(error).__name__}: {error}"[:LONGEST_TEXT]}
    sent = sent or Sent()
    if sent.address:
        cause["address"] = sent.address
    if isinstance(error, EndlessAnswer) and error.status:
        cause["status"] = error.status
    if isinstance(error, ClientError):
        return _answer(operation, key, error.response, cause, sent)
    for kind, hint, transient in _kinds():
        if isinstance(error, kind):
            number = error.errno if isinstance(error, OSError) else None
            return StorageError(operation, key, hint, transient=transient, errno=number, cause=cause)
    if (place := _place(error)) is not None:
        cause["at"] = place
    return StorageError(operation, key, _UNFORESEEN, transient=True, cause=cause)


def _place(error: Exception) -> str | None:
    """Tell where an error that nobody foresaw was raised: it may be a bug, of the SDK's or of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else None


def _kinds() -> tuple[tuple[type[Exception], str, bool], ...]:
    """List the errors that come without an answer of the store; the first that fits counts."""
    from aiohttp import ClientError as ClientSideError
    from botocore import exceptions  # type: ignore[import-untyped]  # it ships no types
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # it ships no types

    return (
        (EndlessAnswer, "the answer is longer than any of a store's: check the endpoint and proxies", True),
        (TimeoutError, _TIMES_OUT, True),
        (exceptions.ConnectTimeoutError, _TIMES_OUT, True),
        (exceptions.ReadTimeoutError, _TIMES_OUT, True),
        (exceptions.SSLError, "TLS failed: check certificates (AWS_CA_BUNDLE), clock and endpoint", False),
        (exceptions.NoCredentialsError, NO_CREDENTIALS, True),
        (exceptions.PartialCredentialsError, NO_CREDENTIALS, False),
        (exceptions.CredentialRetrievalError, "the source of credentials failed: check it", True),
        (exceptions.ConnectionError, _UNREACHABLE, True),
        (exceptions.HTTPClientError, _UNREACHABLE, True),
        (ResponseParserError, "the answer is not S3's: check the endpoint and proxies", True),
        (exceptions.IncompleteReadError, _UNREACHABLE, True),
        (exceptions.BotoCoreError, "the SDK refuses its settings: check the S3 and AWS variables", False),
        (ClientSideError, _UNREACHABLE, True),
        (OSError, _UNREACHABLE, True),
    )


def _answer(
    operation: str, key: str, response: Mapping[str, Any], cause: dict[str, str | int], sent: Sent
) -> StorageError:
    status, code = verdict_of(response)
    advice = _ADVICE.get(code)
    if code in ("", str(status)):
        advice = (f"the answer ({status}) has no code of S3's: check the endpoint and proxies", True)
    elif advice is None:
        transient = status >= _SERVER_ERROR or status in _TRANSIENT_STATUS
        advice = (f"the store answered {status} {code}", transient)
    cause.update(code=code, status=status)
    if request_id := response.get("ResponseMetadata", {}).get("RequestId"):
        cause["request_id"] = str(request_id)[:_LONGEST_WORD]
    hint, transient = advice
    if code in _ABOUT_SETTINGS and sent.settings and (code != "InternalError" or "S3_SSE" in sent.settings):
        hint += sent.doubt()
        transient = False  # a 500 to each put that asks for encryption does not pass either
    if code in _CLOCK_IN_DOUBT:
        cause[CLOCK] = IN_DOUBT
    is_refusal = (code in _REFUSALS or code.startswith(_KMS)) and not transient and _is_verdict(status)
    kind = Refusal if is_refusal else StorageError
    return kind(operation, key, hint, transient=transient, cause=cause)


def _is_verdict(status: int) -> bool:
    """Tell a status that judges the request from one by which a store says that it is ill."""
    return _CLIENT_ERROR <= status < _SERVER_ERROR or status == _NOT_IMPLEMENTED


def status_of(response: Mapping[str, Any]) -> int:
    """Return the HTTP status of an answer; 0 if it has none."""
    status: int = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status
