"""Models of a store as arguments of verbs: their names, or parts of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scanner.errors import AmbiguousError, QueryError

if TYPE_CHECKING:
    from scanner.store import Store


def stored_reference(url: str, text: str) -> str:
    """Return the name of the scanned model that a reference means, if it can be no other reference; else the reference.

    A path, a URL and a name with a slash, as on the Hub, stay what they are.

    Raises:
        AmbiguousError: several names have this part.
    """
    from scanner.errors import StoreError
    from scanner.store import open_store

    if "/" in text:
        return text
    try:
        return whole_name(open_store(url), text)
    except AmbiguousError:
        raise
    except StoreError:  # there is no store yet
        return text


def whole_name(store: Store, text: str) -> str:
    """Return the name of the model that is meant; what is no name of a model, such as a path, an id or a URL, is left as it is.

    Raises:
        AmbiguousError: several names have this part.
        StoreError: the store cannot be read.
    """
    if "://" in text or os.path.exists(text):  # noqa: PTH110 (a URL is not a path)
        return text
    try:
        return store.find_model(text)
    except AmbiguousError:
        raise
    except QueryError:  # the verb knows other ways to name a model, and says what is wrong
        return text
