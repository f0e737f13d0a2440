"""The bill of materials of a release: what runs beside our own code, as CycloneDX.

    .venv/bin/python deploy/sbom.py dist      # writes dist/estat_ingest-VERSION.cdx.json

Owns that document. Promises exactly the packages of `requirements.lock`, each with the hashes that pip is
held to, its licenses as the package states them, and which of the others it wants. Names no registry: the lock does not
know from where a package comes. A package for another system or Python is in it too, as optional, with its condition.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement

from ingest import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cyclonedx.model.license import License

ROOT = Path(__file__).resolve().parent.parent
NAME = "estat-ingest"
SPDX = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}
"""Those that a package may state by a classifier alone."""


@dataclass(frozen=True)
class Locked:
    """A line of the lock file."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def locked(text: str) -> Iterator[Locked]:
    """Yield the packages of a lock file, in its order."""
    for entry in re.findall(r"(?m)^\S.*(?:\n .*)*", text):
        requirement = Requirement(entry.partition(" \\")[0])
        (specifier,) = requirement.specifier
        marker = str(requirement.marker or "")
        yield Locked(requirement.name, specifier.version, marker, tuple(re.findall(r"--hash=sha256:(\w+)", entry)))


def licenses(package: metadata.PackageMetadata) -> list[License]:
    """Return the expression that a package states; without one what its old field or its classifiers say."""
    factory = LicenseFactory()
    if expression := package.get("License-Expression"):
        return [factory.make_from_string(expression)]
    stated = factory.make_from_string(package.get("License") or "")
    if getattr(stated, "id", None) or getattr(stated, "value", None):
        return [stated]
    classified = [text for text in package.get_all("Classifier") or [] if text.startswith("License ::")]
    return [factory.make_from_string(SPDX.get(text, text.rpartition(" :: ")[2])) for text in classified] or [stated]


def component(package: Locked) -> Component:
    """Return one package; without its licenses if it is not meant for this system, because it is not installed here."""
    url = PackageURL("pypi", name=package.name, version=package.version)
    hashes = [HashTypeFactory().from_composite_str(f"sha256:{value}") for value in package.hashes]
    lies = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(str(url)),
        hashes=hashes,
        comment="as requirements.lock has it",
    )
    found = Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(url),
        purl=url,
        external_references=[lies],
        scope=ComponentScope.OPTIONAL if package.marker else ComponentScope.REQUIRED,
        properties=[Property(name="python:marker", value=package.marker)] if package.marker else (),
    )
    try:
        installed = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        if not package.marker:
            raise
        return found
    if installed.version != package.version:
        raise SystemExit(f"{package.name} is installed as {installed.version}, locked as {package.version}")
    found.licenses = licenses(installed.metadata)
    return found


def wants(name: str, known: dict[str, Component]) -> list[Component]:
    """Return which of the locked packages one asks for by itself, on this system."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []
    return [
        known[canonical(needed.name)]
        for needed in requirements
        if canonical(needed.name) in known and (needed.marker is None or needed.marker.evaluate({"extra": ""}))
    ]


def canonical(name: str) -> str:
    """Return a name as the lock writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(lock: str) -> Bom:
    """Return the whole document; the same for the same lock and version, but for its time."""
    ours = Component(
        name=NAME,
        version=__version__,
        type=ComponentType.APPLICATION,
        bom_ref=NAME,
        purl=PackageURL("pypi", name=NAME, version=__version__),
        licenses=[LicenseFactory().make_from_string("MIT")],
    )
    known = {package.name: component(package) for package in locked(lock)}
    found = Bom(components=known.values(), serial_number=uuid5(NAMESPACE_URL, f"{NAME} {__version__}\n{lock}"))
    found.metadata.component = ours
    epoch = environ.get("SOURCE_DATE_EPOCH")
    found.metadata.timestamp = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    found.register_dependency(ours, [known[name] for name in direct() if name in known])
    for name, package in known.items():
        found.register_dependency(package, wants(name, known))
    return found


def direct() -> list[str]:
    """Return what pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [canonical(Requirement(text).name) for text in project["dependencies"]]


def main() -> None:
    """Write it into the folder that the only argument names."""
    (folder,) = map(Path, sys.argv[1:])
    document = bill((ROOT / "requirements.lock").read_text())
    text = make_outputter(document, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    (folder / f"{NAME.replace('-', '_')}-{__version__}.cdx.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
