"""Decides whose fault a failure is: the sample's, or this node's. The one place that does.

A failure is the node's when other nodes may do what this one cannot: its mount is away, its disk is full, it
lacks domain files, its decoders do not start. A single file that is missing is the sample's.
"""

import errno
from collections.abc import Iterator, Sequence
from functools import partial

from capflow_tasks import errors
from capflow_tasks.media import paths, remote

#: What the operating system says when the node has nothing left, and what helps.
_EXHAUSTED = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "raise the quota, or free space",
    errno.EMFILE: "raise its limit of open files (ulimit -n)",
    errno.ENFILE: "raise its limit of open files (fs.file-max)",
    errno.EAGAIN: "raise its limit of processes (ulimit -u)",
}
#: What it says when a mount does not answer.
_AWAY = {errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ENODEV}


def node_fault(
    error: BaseException, root: str | None = None, media: Sequence[str] = ()
) -> errors.NodeFault | None:
    """Return the node's fault that is behind this error; None when the sample, or the work, is at fault.

    `media` are the sample's paths below its `root`.
    """
    for cause in _causes(error):
        if isinstance(cause, errors.NodeFault):
            return cause
        if isinstance(cause, OSError) and cause.errno in _EXHAUSTED:
            return errors.NodeExhausted(f"{cause.strerror}: {_EXHAUSTED[cause.errno]}")
    if root is None or not isinstance(error, errors.MediaMissing | errors.MediaUnreadable):
        return None
    if remote.is_remote(root) or (media and all(map(remote.is_remote, media))):
        return _server_away(root, media, error)
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in _AWAY:
        return _media_away(root, f"does not answer ({error.__cause__.strerror})")
    if problem := paths.root_problem(root):
        return _media_away(root, problem)
    # Only a path that the system did not find may be back; what a file lacks inside stays lacking.
    is_unfound = isinstance(error, errors.MediaMissing) and isinstance(error.__cause__, OSError)
    if is_unfound and _are_there(root, media):
        return _media_away(root, "was away for a moment")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _media_away(root: str, problem: str) -> errors.MediaAway:
    said = f"the media root {root} {problem} here; mount it on this node"
    return errors.MediaAway(said, lambda: paths.root_problem(root) is None)


def _server_away(root: str, media: Sequence[str], error: errors.SampleError) -> errors.NodeFault | None:
    """Return the fault that nothing answers where remote media should be; None where something did."""
    if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in _AWAY):
        return None
    url = next((each for each in media if remote.is_remote(each)), root)
    return errors.MediaAway(
        f"nothing answers at {url}; check the server, and this node's network", partial(_answers, url)
    )


def _answers(url: str) -> bool:
    return not remote.is_away(url)


def _are_there(root: str, media: Sequence[str]) -> bool:
    """Return whether all files are there, after one was missing."""
    try:
        for relative in media:
            paths.resolve_media(root, relative)
    except errors.SampleError:
        return False
    return True
