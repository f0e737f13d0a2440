"""Estat Ingest: collects event data at the edge, on the smallest machine one can rent, and loses none of it."""

from importlib.metadata import version

__version__ = version("estat-ingest")
