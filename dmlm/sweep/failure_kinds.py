"""Classify exceptions into kinds of failure."""

import errno

from dmlm.engines.base import LostWorker
from dmlm.errors import NotFinite, OutOfMemory, UserError


def failure_kind(error: BaseException | None) -> str:
    """Return the kind of an exception, one of those that `dmlm.results.failures.Failure` lists."""
    if isinstance(error, NotFinite):
        return "not_finite"
    if isinstance(error, OutOfMemory | MemoryError):
        return "out_of_memory"
    if isinstance(error, UserError):
        return "user_error"
    if isinstance(error, LostWorker):
        return "lost_worker"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    return "error"
