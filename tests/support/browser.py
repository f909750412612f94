"""A real browser: Debian's Chromium without a window, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.needs import need_command

LIMIT_MS = 30_000
DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextmanager
def browser() -> Iterator[Browser]:
    """Start the browser for the length of a scope."""
    chromium = need_command("chromium", "chromium")
    with sync_playwright() as playwright:
        # Root cannot use the sandbox, and /dev/shm is small in containers.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        # The context's limit is for actions; what is expected has one of its own, of 5 seconds.
        expect.set_options(timeout=LIMIT_MS)
        started = playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def page(
    started: Browser,
    url: str,
    *,
    phone: bool = False,
    scheme: Literal["light", "dark"] = "light",
    expected: str | None = None,
) -> Iterator[Page]:
    """Open a page in a profile of its own; an error in its script, or its console, fails.

    :param scheme: of colours, which the user prefers.
    :param expected: what may stand in the console nevertheless.
    """
    context = started.new_context(
        viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
        is_mobile=phone,
        has_touch=phone,
        color_scheme=scheme,
    )
    context.set_default_timeout(LIMIT_MS)
    try:
        opened = context.new_page()
        wrong: list[str] = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        # A page with an endless picture is never loaded.
        opened.goto(url, wait_until="domcontentloaded")
        yield opened
        wrong = [line for line in wrong if expected is None or expected not in line]
        assert not wrong, wrong
    finally:
        context.close()
