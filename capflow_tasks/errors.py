"""Every error Capflow raises, sorted by what to do about it.

    CapflowError
    ├── UserError                 the user fixes the input and starts again
    │   ├── PlanError
    │   ├── SettingsError
    │   └── WorkflowError         a domain file
    ├── ServiceError              the database, the broker or the model cannot be reached
    │   └── NoProbabilities
    ├── EngineDead                the batch is sent again; the engine is rebuilt
    ├── NodeFault                 the batch goes to other workers; this one pauses until its node is well
    │   ├── MediaAway
    │   ├── WorkflowMissing
    │   ├── NodeExhausted
    │   ├── FailureSurge
    │   └── DecodersBroken
    └── SampleError               one sample fails; its neighbours go on
        ├── FatalSampleError      a second try cannot help
        │   ├── BadEntry              the producer refuses it; the entry must be corrected first
        │   │   └── TextOnly
        │   ├── MediaMissing
        │   ├── MediaOutsideRoot
        │   ├── MediaUnsupported
        │   ├── MediaCorrupt
        │   ├── MediaTooLarge
        │   ├── MediaForbidden
        │   ├── PromptTooLong
        │   ├── RequestRefused
        │   ├── AnswerFault       the guard refused every attempt at an answer; one class per rule
        │   └── Quarantined
        └── RetryableSampleError  a second try may help
            ├── MediaUnreadable
            ├── RequestTimeout
            ├── RequestFailed
            └── BadAnswer

The docstring of an error is its default message.
"""

import re
from collections.abc import Callable
from typing import ClassVar

EXIT_OK = 0
EXIT_SAMPLES_FAILED = 1
EXIT_USAGE = 2
EXIT_SERVICE = 3
EXIT_SAMPLES_HELD = 4
#: The run has paused by itself: it has spent what it may, or too much fails.
EXIT_PAUSED = 5
#: A worker exits so to be started again by its supervisor.
EXIT_RESTART = 75
EXIT_INTERRUPTED = 130

#: Starts the line on stderr in which a worker says why it cannot start.
WORKER_ERROR_MARK = "capflow worker: error: "


class CapflowError(Exception):
    """Capflow could not go on."""

    exit_code: ClassVar[int] = EXIT_SERVICE

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class UserError(CapflowError):
    """The input must be fixed first."""

    exit_code = EXIT_USAGE


class PlanError(UserError):
    """The split plan cannot be used."""


class SettingsError(UserError):
    """A setting cannot be used."""


class WorkflowError(UserError):
    """A domain file cannot be used."""


class ServiceError(CapflowError):
    """A service that Capflow needs cannot be reached."""


class NoProbabilities(ServiceError):
    """The server returns no log-probabilities, which routing needs: name each shard's task in the plan."""


class EngineDead(CapflowError):
    """The engine died; its batches are sent again."""


class NodeFault(CapflowError):
    """This node cannot do what others can, so no sample is to blame."""

    #: Whether `is_over` knows; otherwise a batch must be tried, ever more rarely.
    can_be_checked: ClassVar[bool] = False

    def is_over(self) -> bool:
        """Return whether the node is well again, as far as that can be checked."""
        return True


class MediaAway(NodeFault):
    """The folder of the media is away on this node."""

    can_be_checked = True

    def __init__(self, message: str, is_over: Callable[[], bool]) -> None:
        super().__init__(message)
        self._is_over = is_over

    def is_over(self) -> bool:
        return self._is_over()


class WorkflowMissing(NodeFault):
    """The worker lacks domain files that the run needs."""


class NodeExhausted(NodeFault):
    """The node has no disk, memory or open files left."""


class FailureSurge(NodeFault):
    """Most of the worker's latest samples failed alike."""


class DecodersBroken(NodeFault):
    """The processes that decode videos cannot start on this node."""


class SampleError(CapflowError):
    """This sample cannot be captioned."""

    #: The snake-case name of the class, as stored in `samples.error_kind`.
    kind: ClassVar[str] = "sample_error"
    #: Whether a second try of the sample may help.
    is_retryable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class FatalSampleError(SampleError):
    """This sample cannot be captioned; a second try cannot help."""


class RetryableSampleError(SampleError):
    """This sample was not captioned; a second try may help."""

    is_retryable = True


class BadEntry(FatalSampleError):
    """The annotation entry cannot be used."""


class TextOnly(BadEntry):
    """The entry names no picture and no video."""


class MediaMissing(FatalSampleError):
    """The media file does not exist."""


class MediaOutsideRoot(FatalSampleError):
    """The media path leads out of the dataset's root."""


class MediaUnsupported(FatalSampleError):
    """The file is not a picture or video that can be decoded here."""


class MediaCorrupt(FatalSampleError):
    """The media file is damaged or cut short."""


class MediaTooLarge(FatalSampleError):
    """The media file is larger than the limit."""


class MediaForbidden(FatalSampleError):
    """The remote media may not be fetched."""


class PromptTooLong(FatalSampleError):
    """The prompt does not fit into the model's context."""


class RequestRefused(FatalSampleError):
    """The engine refused the request."""


class AnswerFault(FatalSampleError):
    """The model's answer cannot be used, and asking again with other sampling did not help."""


class AnswerEmpty(AnswerFault):
    """The answer holds no text."""


class AnswerThinking(AnswerFault):
    """The answer holds the model's thinking; give the agent `thinking: true`, or use a model without."""


class AnswerRefusal(AnswerFault):
    """The model refused to answer."""


class AnswerLoop(AnswerFault):
    """The answer repeats itself without end."""


class AnswerCutOff(AnswerFault):
    """The answer breaks off before its end."""


class AnswerEcho(AnswerFault):
    """The answer repeats its prompt."""


class AnswerMojibake(AnswerFault):
    """The answer holds wrongly decoded text."""


class AnswerWrongLanguage(AnswerFault):
    """The answer is written in another language than asked for."""


class AnswerMarkup(AnswerFault):
    """The answer is data or markup where prose was asked for."""


class AnswerInvalidJson(AnswerFault):
    """The answer is not the JSON that its schema asks for."""


class Quarantined(FatalSampleError):
    """Every try of this sample killed its engine or its worker."""


class MediaUnreadable(RetryableSampleError):
    """The media file cannot be read at the moment."""


class RequestTimeout(RetryableSampleError):
    """The engine did not answer within the request's deadline."""


class RequestFailed(RetryableSampleError):
    """The engine failed on this request and goes on."""


class BadAnswer(RetryableSampleError):
    """The model's answer cannot be used."""


#: Kinds of failures that no retry changes before the entry is corrected.
REFUSED_KINDS = (BadEntry.kind, TextOnly.kind)
#: Classes that sort others; no sample fails with them.
_GROUPS = (SampleError, FatalSampleError, RetryableSampleError, AnswerFault)


def failure_kinds(base: type[SampleError] = SampleError) -> list[str]:
    """Return every kind that a failed sample can have."""
    own = [] if base in _GROUPS else [base.kind]
    return own + [kind for part in base.__subclasses__() for kind in failure_kinds(part)]


#: From a URL's user to the last @ before its host, since a password may hold an @ itself.
_PASSWORD = re.compile(r"""(://[^:/@\s"']*:)[^\s"'<>]*@""")


def redacted(text: str) -> str:
    """Replace the password of every URL in the text by `***`."""
    return _PASSWORD.sub(r"\1***@", text)
