"""The chat page at /, in a browser."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import wait_for
from serving import KEY, Server

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: make test-tools")


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    """Open the page with the key as a password."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--lang=en-US"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        driver.get(server.url.replace("http://", f"http://me:{KEY}@") + "/")
        yield driver
    finally:
        driver.quit()


def test_a_conversation_in_the_browser(page: Any, server: Server) -> None:
    def run(script: str) -> Any:
        return page.execute_script(f"return {script}")

    def turns(kind: str) -> list[str]:
        return list(run(f"[...document.querySelectorAll('.{kind}')].map(node => node.textContent)"))

    def ask(text: str) -> None:
        page.find_element("id", "ask").send_keys(text + "\n")

    wait_for(lambda: run("$('model').options.length") == 3, 30, "the models")
    assert run("[...$('model').options].map(o => o.value)") == ["red", "blue", "tiny"]
    assert run("$('send').textContent") == "Send"
    page.find_element("id", "language").click()
    assert run("$('send').textContent") == "发送" and run("document.documentElement.lang") == "zh-CN"

    wait_for(lambda: run("document.querySelectorAll('#examples button').length") == 3, 30, "prompts to begin with")
    page.find_elements("css selector", "#examples button")[0].click()
    assert run("$('ask').value") == run("document.querySelector('#examples button').textContent") != ""
    run("($('ask').value = '')")

    run("($('model').value = 'tiny', $('temperature').value = 0, $('tokens').value = 12)")
    ask("<b>你好</b>")
    wait_for(lambda: not run("$('send').disabled") and turns("assistant"), 30, "an answer")
    messages: list[Any] = [{"role": "user", "content": "<b>你好</b>"}]
    expected = server.client().chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)
    assert turns("user") == ["<b>你好</b>"] and turns("assistant") == [expected.choices[0].message.content]

    counted = expected.usage.completion_tokens if expected.usage else 0
    assert [text.partition("，")[0] for text in turns("speed")] == [f"{counted} 个 token"] and not run("$('examples')")

    run("($('tokens').value = 450, $('temperature').value = 2)")  # with the earlier turns, the prompt is too long
    ask("再说一遍" * 60)
    wait_for(lambda: bool(turns("error")), 30, "an error")
    assert "maximum context length" in turns("error")[-1] and len(turns("assistant")) == 1

    page.find_element("id", "new").click()
    assert not turns("user") + turns("assistant") + turns("speed") and run("$('examples') !== null")
    run("($('tokens').value = 400)")
    ask("写一首很长的诗")
    wait_for(lambda: len("".join(turns("assistant"))) > 3 or not run("$('stop').disabled"), 30, "a beginning")
    page.find_element("id", "stop").click()
    wait_for(lambda: not run("$('send').disabled"), 10, "the end")
    wait_for(server.idle, 30, "its slot")

    colour = "getComputedStyle(document.body).backgroundColor"
    before = run(colour)
    page.find_element("id", "theme").click()
    assert run(colour) != before
    assert not [
        entry
        for entry in page.get_log("browser")
        if "favicon" not in entry["message"] and " 400 " not in entry["message"]
    ]
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    place = server.url.removeprefix("http://")
    assert requested and all(place in url for url in requested), requested  # no requests to other hosts
