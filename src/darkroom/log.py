"""The log: a line an event on standard error, of gateway and worker alike. Standard output is for what a command was asked for."""

from __future__ import annotations

import logging
import sys

from darkroom.imports import without

with without("rich"):  # whose traces show every local variable: prompts, keys and pictures
    import structlog


def to_stderr(level: str) -> None:
    """Write what is at least this grave: `debug`, `info`, `warning` or `error`; of libraries, warnings and worse."""
    least = logging.getLevelNamesMapping()[level.upper()]
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper("iso"), renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(least),
    )  # fmt: skip
    logging.basicConfig(level=max(least, logging.WARNING), stream=sys.stderr)
