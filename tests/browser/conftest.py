# SPDX-License-Identifier: Apache-2.0
"""A real browser: the Chromium that the system provides, driven by playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from ensemblekit.paths import runs_dir

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser; root may not use Chromium's own sandbox.

    Not for the session: as long as playwright runs, no other test can run an event loop of its own.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH (Debian: `apt install chromium`)")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the pages are kept: `runs/browser/`."""
    folder = runs_dir() / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
