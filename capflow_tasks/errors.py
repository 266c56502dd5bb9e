"""Every error Capflow raises, sorted by what to do about it.

    CapflowError
    ├── UserError                 mend the input, then start again
    │   ├── PlanError
    │   ├── SettingsError
    │   └── WorkflowError         a domain file
    ├── ServiceError              the database, the broker or the model cannot be had
    ├── EngineDead                the batch goes back to the queue; the engine is rebuilt
    └── SampleError               one sample; its neighbours go on
        ├── FatalSampleError      trying again cannot help
        │   ├── BadEntry
        │   ├── MediaMissing
        │   ├── MediaOutsideRoot
        │   ├── MediaUnsupported
        │   ├── MediaCorrupt
        │   ├── MediaTooLarge
        │   ├── PromptTooLong
        │   ├── RequestRefused
        │   └── Quarantined
        └── RetryableSampleError  trying again may help
            ├── MediaUnreadable
            ├── RequestTimeout
            ├── RequestFailed
            └── BadAnswer

An error without a message says its docstring.
"""

from __future__ import annotations

import re
from typing import ClassVar

EXIT_OK = 0
EXIT_SAMPLES_FAILED = 1
EXIT_USAGE = 2
EXIT_SERVICE = 3
EXIT_SAMPLES_HELD = 4
#: A worker asks its supervisor to start it again.
EXIT_RESTART = 75
EXIT_INTERRUPTED = 130

#: Begins the one sentence in which a worker says why it cannot start.
WORKER_ERROR_MARK = "capflow worker: error: "


class CapflowError(Exception):
    """Capflow could not go on."""

    exit_code: ClassVar[int] = EXIT_SERVICE

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class UserError(CapflowError):
    """Something in the input has to be mended first."""

    exit_code = EXIT_USAGE


class PlanError(UserError):
    """The split plan cannot be used."""


class SettingsError(UserError):
    """A setting cannot be used."""


class WorkflowError(UserError):
    """A domain file cannot be used."""


class ServiceError(CapflowError):
    """A service that Capflow needs cannot be reached."""


class EngineDead(CapflowError):
    """The engine died; what was in flight goes back to the queue."""


class SampleError(CapflowError):
    """This sample cannot be captioned."""

    #: The snake-case name of the class, as stored in `samples.error_kind`.
    kind: ClassVar[str] = "sample_error"
    #: Whether trying the sample again may help.
    is_retryable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class FatalSampleError(SampleError):
    """This sample cannot be captioned, however often it is tried."""


class RetryableSampleError(SampleError):
    """This sample was not captioned; trying again may help."""

    is_retryable = True


class BadEntry(FatalSampleError):
    """The annotation entry is not usable."""


class MediaMissing(FatalSampleError):
    """The media file does not exist."""


class MediaOutsideRoot(FatalSampleError):
    """The media path leaves the dataset's root."""


class MediaUnsupported(FatalSampleError):
    """The file is not a picture or video that can be decoded here."""


class MediaCorrupt(FatalSampleError):
    """The media file is damaged or cut short."""


class MediaTooLarge(FatalSampleError):
    """The media file is larger than the limit."""


class PromptTooLong(FatalSampleError):
    """The prompt does not fit into the model's context."""


class RequestRefused(FatalSampleError):
    """The engine refused the request."""


class Quarantined(FatalSampleError):
    """Every try of this sample ended its engine or its worker."""


class MediaUnreadable(RetryableSampleError):
    """The media file could not be read just now."""


class RequestTimeout(RetryableSampleError):
    """The engine gave no answer within the request's deadline."""


class RequestFailed(RetryableSampleError):
    """The engine failed on this request and lives on."""


class BadAnswer(RetryableSampleError):
    """The model's answer could not be used."""


#: What stands between a URL's user and its host. A password that holds an @ is hidden to its last one.
_PASSWORD = re.compile(r"""(://[^:/@\s"']*:)[^\s"'<>]*@""")


def redacted(text: str) -> str:
    """The text with `***` for the password of every URL in it."""
    return _PASSWORD.sub(r"\1***@", text)
