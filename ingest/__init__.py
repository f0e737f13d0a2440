"""Estat Ingest: collects event data at the edge, on the smallest machine one can rent, and loses none of it."""

__version__ = "0.1.0"
