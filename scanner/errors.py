"""Errors that a user can act on; every other exception is a bug.

A message is one line: what was wrong, with what, and what to do. It names an argument in backticks (`store`); the command line
prints the flag of that argument instead (--store).
"""

from __future__ import annotations


class ScannerError(Exception):
    """Base class of all errors that a user can act on; the command line prints the message and exits with status 1."""


class ConfigError(ScannerError):
    """An argument with a value that is not accepted.

    Args:
        argument: name of the argument, as in the signature or the configuration.
        problem: the rest of the message, as in "must be at least 1, got 0".
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument, self.problem = argument, problem

    def __str__(self) -> str:
        return f"`{self.argument}` {self.problem}"


class CheckpointError(ScannerError):
    """A reference without a readable checkpoint, or a checkpoint whose files contradict each other."""


class GatedError(CheckpointError):
    """A repository whose terms the user has to accept first, or that requires a token."""


class MissingError(CheckpointError):
    """A repository, revision or file that does not exist, or that this user cannot see."""


class RateLimitedError(CheckpointError):
    """A server that limits the rate of requests: the same request succeeds later."""


class ChangedError(CheckpointError):
    """A file that is not the one that was hashed: it was replaced, cut short, written to or removed while it was in use."""


class StoreError(ScannerError):
    """A store that cannot be read or written, or a query that it cannot answer."""


class StoreWarning(UserWarning):
    """A part of a store that is left out of the answer, because it is damaged."""


class QueryError(StoreError):
    """An unknown query, parameter or column, or SQL that is not one SELECT statement."""


class AmbiguousError(QueryError):
    """A part of a name that several models have."""
