"""The one family of errors that a user can act on; anything else that is raised is a bug."""


class ScannerError(Exception):
    """What was wrong, with what, and what to do, in one line: the command line prints it and exits with 1."""


class CheckpointError(ScannerError):
    """A reference that leads to no readable checkpoint, or a checkpoint whose files contradict themselves."""


class GatedError(CheckpointError):
    """A repository whose terms the user has to accept first, or that needs a token."""


class MissingError(CheckpointError):
    """A repository, a revision or a file that is not there, or not for this user."""


class RateLimitedError(CheckpointError):
    """A server that wants fewer requests: the same again later succeeds."""


class StoreError(ScannerError):
    """A store that cannot be read or written, or a question it cannot answer."""


class QueryError(StoreError):
    """An unknown query, parameter or column, or SQL that is not one SELECT statement."""
