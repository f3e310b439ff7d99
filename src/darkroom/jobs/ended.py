"""How a Job ended, and the errors that say so."""

from __future__ import annotations

from dataclasses import dataclass, field

from darkroom.errors import DarkroomError, Unavailable
from darkroom.types import Fault, Job, PictureRow


class JobCancelled(Unavailable):
    """The Job was stopped before its end."""

    name = "cancelled"


class DeadlineExceeded(DarkroomError):
    """The Job could not begin by the time that its client gave it."""

    name, status = "deadline_exceeded", 504


class StorageFull(Unavailable):
    """A picture could not be written down."""

    name = "storage_full"


class NotFinished(DarkroomError):
    """What was asked for needs an ended Job, and this one waits or runs."""

    name, status = "not_finished", 409


@dataclass(frozen=True)
class Ended:
    """A Job with its final status and what it made; `pngs` where they are at hand, else they are in the gallery."""

    job: Job
    pictures: tuple[PictureRow, ...] = ()
    pngs: tuple[bytes, ...] = field(default=(), repr=False)


def error_of(fault: Fault) -> DarkroomError:
    """The error that a client who waited is answered with."""
    error = DarkroomError(fault.message, name=fault.name, retry_after=fault.retry_after)
    error.status = fault.status
    return error


def fault_of(error: Exception) -> Fault:
    """Why a Job failed, for its row; what is no error of ours says nothing of itself but that it was."""
    if isinstance(error, DarkroomError):
        return Fault(error.name, str(error)[:1000], error.status, error.retry_after)
    return Fault("server_error", "the server failed; its log has the reason under the job's id", 500)
