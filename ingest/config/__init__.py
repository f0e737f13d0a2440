"""The settings: one environment, read once, checked as a whole, frozen."""

from ingest.config.checks import DEBUG_CHECKS
from ingest.config.forms import ALL, Rate, format_size, is_private
from ingest.config.settings import (
    ConfigError,
    ConfigErrors,
    Settings,
    differing,
    load,
    overlap,
    shown,
    shown_value,
    warnings,
)
from ingest.config.variables import GROUPS, VARIABLES

__all__ = [
    "ALL",
    "DEBUG_CHECKS",
    "GROUPS",
    "VARIABLES",
    "ConfigError",
    "ConfigErrors",
    "Rate",
    "Settings",
    "differing",
    "format_size",
    "is_private",
    "load",
    "overlap",
    "shown",
    "shown_value",
    "warnings",
]
