"""The lease of one result: whoever writes or removes its committed files keeps all others waiting.

The files of a result have fixed names, and the row that commits them holds their checksums. Two processes that write them at the
same time would leave files of one and the row of the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from scanner.store.files import StoreFiles
from scanner.store.lease import Lease, LeaseHeldError, lease

LENGTH = timedelta(minutes=2)
"""Time after which others go on if the holder was killed on another machine; its result is then written again as a whole."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


@contextmanager
def changing(files: StoreFiles, result: str) -> Iterator[Lease]:
    """Wait until no other process changes a result, and keep the others waiting until the block ends.

    What is known of the result has to be looked up again inside the block.

    Args:
        files: the store.
        result: id of a scan or comparison.

    Raises:
        StoreError: the store cannot be read or written.
    """
    pause = _FIRST_PAUSE
    with ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(lease(files, f"result-{result}", doing="changed", length=LENGTH))
                break
            except LeaseHeldError:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        yield held
