"""Save a picture of a sweep's report: python bench/picture.py multirun/… docs/report.png (needs make test-tools)."""

import base64
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.browser import Browser, missing

WIDTH, HEIGHT = 1280, 1390
"""Size in pixels: the top of the page, the first row of charts and part of the second."""


def main(folder: str, target: str) -> None:
    """Render the report in ``folder`` to the PNG file ``target``."""
    if reason := missing():
        sys.exit(reason)
    browser = Browser()
    try:
        browser.open((Path(folder) / "report.html").resolve())
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 0.75}
        found = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        Path(target).parent.mkdir(exist_ok=True)
        Path(target).write_bytes(base64.b64decode(found["data"]))
    finally:
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
