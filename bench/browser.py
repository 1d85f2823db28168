"""Headless Chromium on a page from a file: what it asked the network for, what it complained of, how it looks."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

SECONDS = 60


def missing() -> str | None:
    """What a test would skip for."""
    wanted = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{', '.join(wanted)} not installed: make test-tools" if wanted else None


class Browser:
    """One window for all pages."""

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
        """Show ``page``, and wait until it is whole."""
        self.look()
        self.asked(), self.complaints()  # of the page before
        self.driver.get(page.as_uri())
        began = time.monotonic()
        while not self.run("return document.documentElement.dataset.ready"):
            assert time.monotonic() - began < SECONDS, self.complaints()
            time.sleep(0.05)

    def look(self, width: int = 1280, dark: bool = False) -> None:
        """From now on, through a window of ``width`` pixels, by day or by night."""
        mode = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [mode]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments: Any) -> Any:
        """What ``script`` returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """The text of each element."""
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector))

    def click(self, selector: str) -> None:
        """As a person does: on what can be seen."""
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def asked(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the console says since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        """End the browser and its driver."""
        self.driver.quit()
