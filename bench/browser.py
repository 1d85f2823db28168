"""Headless Chromium for pages saved as files: the URLs requested, the console messages, and how a page is displayed."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

SECONDS = 60


def missing() -> str | None:
    """Which required programs are missing, as the reason to skip a test."""
    missing_programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{', '.join(missing_programs)} not installed: make test-tools" if missing_programs else None


class Browser:
    """One browser window that is used for all pages."""

    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(str(shutil.which("chromedriver")))
        self.driver = webdriver.Chrome(options=options, service=service)

    def open(self, page: Path) -> None:
        """Open ``page`` and wait until it has loaded completely."""
        self.set_display()
        self.requests(), self.console_messages()  # discard the entries of the previous page
        self.driver.get(page.as_uri())
        began = time.monotonic()
        while not self.run("return document.documentElement.dataset.ready"):
            assert time.monotonic() - began < SECONDS, self.console_messages()
            time.sleep(0.05)

    def set_display(self, width: int = 1280, dark: bool = False) -> None:
        """Set the width of the window in pixels and the color scheme (light or dark)."""
        mode = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [mode]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what ``script`` returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """Text of every matching element."""
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector))

    def click(self, selector: str) -> None:
        """Click the element, which must be visible."""
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def requests(self) -> list[str]:
        """URLs requested since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def console_messages(self) -> list[str]:
        """Console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        """Close the browser and its driver."""
        self.driver.quit()
