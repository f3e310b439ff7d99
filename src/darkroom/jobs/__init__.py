"""Use cases of a Job: take it, carry it out, watch it, stop it, find it, clear it away. Only here does a Job change its status."""

from darkroom.jobs.ended import Ended, JobCancelled, NotFinished
from darkroom.jobs.jobs import Asked, Jobs, Taken
from darkroom.jobs.runs import Runs
from darkroom.jobs.watches import News, Watches

__all__ = ["Asked", "Ended", "JobCancelled", "Jobs", "News", "NotFinished", "Runs", "Taken", "Watches"]
