"""Why something was not written, in the operating system's words."""

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def reason(error: BaseException) -> str:
    """That the disk is full, if an error says so in any way; else its first line."""
    cause: BaseException | None = error
    while cause is not None:
        for number in FULL:
            own = isinstance(cause, OSError) and cause.errno == number
            if own or os.strerror(number) in str(cause):
                return os.strerror(number)
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
