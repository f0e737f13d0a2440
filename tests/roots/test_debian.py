"""Roots are laid out where they can be, and of what is installed."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.roots import debian

ON_DEBIAN = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="there are no packages of Debian here")


def test_another_version_of_debian_and_somebody_else_than_root_are_refused(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(debian.UnfitError, match="not Debian 1"):
        debian.refuse_unfit_machines("1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(debian.UnfitError, match="root"):
        debian.refuse_unfit_machines()


@ON_DEBIAN
def test_packages_come_with_what_they_need_and_without_what_a_slim_image_leaves_out():
    assert debian.closure(["bash"]) >= {"bash", "libc6"}
    assert debian.base() >= {"apt", "bash", "coreutils", "dpkg"}
    files = set(debian.files_of(["bash"]))
    assert "/bin/bash" in files or "/usr/bin/bash" in files
    assert [path for path in files if path.startswith("/usr/share/doc/")] == []
    with pytest.raises(debian.UnfitError, match="no-such-package"):
        debian.closure(["no-such-package"])
