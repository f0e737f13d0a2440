"""Whether the program checks itself while it runs: `DEBUG_CHECKS`, read once, when this is imported.

Owns one constant, which every room may ask before it spends time on what must be true anyway: the balance of the books
at each move, and what holds in each state. Promises False where nobody asked. Never read again.
"""

import os
from typing import Final

from ingest.config.forms import flag


def _asked(text: str) -> bool:
    try:
        return bool(flag().parse(text)) if text else False
    except ValueError:  # `load` reports it
        return False


DEBUG_CHECKS: Final = _asked(os.environ.get("DEBUG_CHECKS", "").strip())
