"""The tests run with the checks of `DEBUG_CHECKS`; it is set here, before anything of `ingest` is imported."""

import os

os.environ.setdefault("DEBUG_CHECKS", "1")
