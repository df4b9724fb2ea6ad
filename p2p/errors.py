"""The errors that cross a boundary between Damselfly's parts.

Each says what was wrong, with which value, and what to do; none ever carries a secret. `error_type` is the value of the
`X-Dragonfly-Error-Type` response header for the failure (WIRE §3): `backend` when the origin is to blame, `proxy` when
the request is, `daemon` when Damselfly is.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorType(StrEnum):
    """Who is to blame, as `X-Dragonfly-Error-Type` says it."""

    BACKEND = "backend"
    PROXY = "proxy"
    DAEMON = "daemon"


class DamselflyError(Exception):
    """Base of every error that Damselfly raises on purpose; its text is fit for a person and a log."""

    error_type = ErrorType.DAEMON


class ConfigError(DamselflyError):
    """A setting has a value that cannot work; the text names the setting, the value and the remedy."""


class BadRequestError(DamselflyError):
    """The client's request cannot be understood (HTTP 400)."""

    error_type = ErrorType.PROXY


class RangeNotSatisfiableError(DamselflyError):
    """No requested byte exists (HTTP 416); `length` is the object's length in bytes."""

    error_type = ErrorType.PROXY

    def __init__(self, header: str, length: int) -> None:
        super().__init__(f"range {header!r} lies outside the object's {length} bytes")
        self.length = length


class OriginError(DamselflyError):
    """The origin did not give the bytes."""

    error_type = ErrorType.BACKEND


class OriginRefusedError(OriginError):
    """The origin answered with a status that is neither the bytes nor a reason to try again (401, 403, 404, …)."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the origin answered {status}: {detail}")
        self.status = status


class CredentialsError(OriginError):
    """The credentials for an origin cannot be had, or it refuses them; the text names where they came from.

    `status` is what a client is told: 502, or the origin's own 401 or 403.
    """

    def __init__(self, text: str, status: int = 502) -> None:
        super().__init__(text)
        self.status = status


class DeniedError(OriginError):
    """The operator does not want this origin asked, or this request made (HTTP 403)."""

    error_type = ErrorType.PROXY


class OriginUnreachableError(OriginError):
    """No connection to the origin, or it broke and retries did not help (HTTP 502)."""


class OriginStalledError(OriginError):
    """The origin sent nothing within the progress deadline (HTTP 504)."""


class VersionChangedError(OriginError):
    """The origin's object is no longer the version that was asked for."""


class ParentError(DamselflyError):
    """A parent did not give the piece; the piece must come from elsewhere."""


class ParentBusyError(ParentError):
    """The parent has no free upload slot."""


class ParentMissingError(ParentError):
    """The parent does not hold the piece."""


class ParentUnreachableError(ParentError):
    """No connection to the parent, or it broke."""


class ParentStalledError(ParentError):
    """The parent sent nothing within the progress deadline."""


class CorruptPieceError(DamselflyError):
    """A piece's bytes do not have the digest that the scheduler vouched for."""


class DigestMismatchError(DamselflyError):
    """A whole object does not have the digest that its user expects."""


class ChecksumMismatchError(DigestMismatchError):
    """A whole object does not have the checksum that its store gives."""

    error_type = ErrorType.BACKEND


class StoreError(DamselflyError):
    """The data directory cannot do what is asked of it (taken, unwritable, full, damaged)."""


class StoreFullError(StoreError):
    """No room for another piece."""


class StoppingError(DamselflyError):
    """The daemon is shutting down and takes no new work."""


class UnauthorizedError(DamselflyError):
    """The caller did not prove that it belongs to the cluster."""

    error_type = ErrorType.PROXY
