"""The error tree. Each class carries a name for clients and an HTTP status; `http/app.py` maps it in one place.

DarkroomError                 500 server_error
├── PictureDamaged            500 picture_damaged       a picture's file is not what was written
├── BadRequest                400 bad_request           the body is not what its media type says
├── Unauthorized              401 unauthorized          no key, or an unknown, expired or revoked one
├── Forbidden                 403 permission_denied     a key of another service, or without the scope
├── NotFound                  404 not_found
│   └── ModelNotFound         404 model_not_found
├── TooSlow                   408 request_timeout       the body did not come in time
├── NotFinished (jobs)        409 not_finished          a job that waits or runs was asked for its picture, or deleted
├── TooLarge                  413 too_large
├── UnsupportedMedia          415 unsupported_media_type
├── Invalid                   422 invalid_<field>       every line names field, rule and value
├── HeadersTooLarge           431 headers_too_large     the head of the request has no end within its bound
├── TooMany                   429 too_many_requests     with retry_after seconds
├── Unavailable               503 unavailable           with retry_after seconds
│   ├── ModelUnavailable      503 model_unavailable     the weights are not here; says the command that brings them
│   └── LicenceNotAccepted    503 licence_not_accepted  the operator has to accept the model's licence first
└── Unsupported               500 unsupported_checkpoint  a checkpoint or config that we cannot honour; names the field
"""

from __future__ import annotations

# Names of the Failed events that end a Job, with their HTTP status.
FAILURES = {"engine_error": 500, "not_finite": 500, "worker_died": 500, "shutting_down": 503, "model_unavailable": 503}


class DarkroomError(Exception):
    """The root: a fault of ours, unless a subclass says otherwise. `lines` are fit for the client."""

    name = "server_error"
    status = 500

    def __init__(self, *lines: str, name: str | None = None, retry_after: float | None = None):
        super().__init__("; ".join(lines))
        self.lines = list(lines)
        self.name = name or type(self).name
        self.retry_after = retry_after


class PictureDamaged(DarkroomError):
    name = "picture_damaged"


class BadRequest(DarkroomError):
    name, status = "bad_request", 400


class Unauthorized(DarkroomError):
    name, status = "unauthorized", 401


class Forbidden(DarkroomError):
    name, status = "permission_denied", 403


class NotFound(DarkroomError):
    name, status = "not_found", 404


class ModelNotFound(NotFound):
    name = "model_not_found"


class TooSlow(DarkroomError):
    name, status = "request_timeout", 408


class TooLarge(DarkroomError):
    name, status = "too_large", 413


class UnsupportedMedia(DarkroomError):
    name, status = "unsupported_media_type", 415


class Invalid(DarkroomError):
    name, status = "invalid_request", 422


class HeadersTooLarge(DarkroomError):
    name, status = "headers_too_large", 431


class TooMany(DarkroomError):
    name, status = "too_many_requests", 429
    quotas: tuple = ()  # what is left of the key's limits


class Unavailable(DarkroomError):
    name, status = "unavailable", 503


class ModelUnavailable(Unavailable):
    name = "model_unavailable"


class LicenceNotAccepted(Unavailable):
    name = "licence_not_accepted"


class Unsupported(DarkroomError):
    name, status = "unsupported_checkpoint", 500
