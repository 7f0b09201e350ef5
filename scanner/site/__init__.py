"""A static site of a store: pages to browse, compare and drill down into many models, written to a folder or served on loopback."""

from scanner.site.writing import Site, write_site

__all__ = ["Site", "write_site"]
