"""`rmtscan site` and `rmtscan serve`: browse all models of a store."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.output import note
from scanner.cli.progress import waiting

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="The store: a folder or any fsspec URL.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    options.register(app, "site", site)
    options.register(app, "serve", serve)


def site(
    store: StoreArgument,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder of the site.", show_default=False)
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that contains other files; they are kept.")
    ] = False,
) -> None:
    """Write the site of a store: static files to browse, compare and drill down into its models, for any static host.

    Writing again updates the folder: only models whose results changed are written. The pages fetch nothing from other hosts, and
    need a server, because browsers do not let a page that was opened as a file read others: see `rmtscan serve`.

    Examples:

        rmtscan site results -o site

        rmtscan site s3://bucket/results -o public
    """
    from scanner.site import write_site
    from scanner.store import open_store

    with waiting(sys.stderr, "reading the store") as say:
        opened = open_store(store)
        written = write_site(opened, output, force=force, progress=lambda text: say(f"writing {text}"))
    again = f", {written.models - written.written} unchanged" if written.written < written.models else ""
    nights = f", {written.nights} nights" if written.nights else ""
    models = "1 model" if written.models == 1 else f"{written.models} models"
    note(f"{written.path}: {models}{again}{nights}, {written.bytes / 1e6:.1f} MB; copy the folder to any static host")


def serve(
    store: StoreArgument,
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0: any free one.")] = 8137,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="How often to look whether the store changed.")
    ] = 5.0,
) -> None:
    """Serve the site of a store to the browsers of this machine, and keep it current until Ctrl-C.

    Models that are committed while it runs appear, and open pages say so. To see the site of another machine, forward the port:
    `ssh -L 8137:127.0.0.1:8137 HOST`.

    Examples:

        rmtscan serve results
    """
    from scanner.site.serving import serve as serve_site
    from scanner.site.writing import Site

    served: list[str] = []

    def ready(address: str, written: Site) -> None:
        served.append(address)
        begin.close()
        models = "1 model" if written.models == 1 else f"{written.models} models"
        note(f"{models} at {address} (Ctrl-C ends)")

    with ExitStack() as begin:  # until the site is written for the first time
        say = begin.enter_context(waiting(sys.stderr, "reading the store"))

        def progress(model: str) -> None:
            if not served:
                say(f"writing {model}")
            elif sys.stderr.isatty():
                note(f"writing {model}")

        serve_site(store, port=port, interval=interval, ready=ready, progress=progress, tell=note)
