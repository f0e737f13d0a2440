"""What `make manifests` runs: deploy/kubernetes against the schemas of Kubernetes, an old one and the newest.

Owns the versions. Strict: a field that no schema has is an error. It ends with 1 if an object is none that a version
takes, or if a slip that is put into one goes unnoticed.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import kubernetes_validate
import yaml

MANIFESTS = Path(__file__).parent.parent / "deploy" / "kubernetes"
OLDEST = "1.27"
"""The first that keeps the volumes of a StatefulSet as it is told, without a feature gate."""


def main() -> int:
    newest = kubernetes_validate.latest_version()
    wrong = 0
    for path in sorted(MANIFESTS.glob("*.yaml")):
        for entry in yaml.safe_load_all(path.read_text()):
            name = f"{path.name}: {entry['kind']} {entry['metadata']['name']}"
            slips = with_a_slip(entry)
            for version in (OLDEST, newest):
                told = complaint(entry, version)
                if not told and not complaint(slips, version):
                    told = "a slip in it is not noticed"
                wrong += bool(told)
                print(f"{name:60} {version:8} {told or 'ok'}")  # noqa: T201 - this is what it is run for
    return 1 if wrong else 0


def with_a_slip(entry: dict[str, object]) -> dict[str, object]:
    """With a field that nobody knows beside its own."""
    slips = copy.deepcopy(entry)
    inner = slips.get("spec", slips)
    assert isinstance(inner, dict)
    inner["replicaz"] = 2
    return slips


def complaint(entry: dict[str, object], version: str) -> str:
    try:
        kubernetes_validate.validate(entry, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


if __name__ == "__main__":
    sys.exit(main())
