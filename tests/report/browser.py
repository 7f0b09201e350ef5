"""A headless Chromium with access to its console, its requests and the drawn charts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One page in one browser, with a profile of its own."""

    def __init__(self, folder: Path) -> None:
        """Skips the test where there is no browser, unless RMTSCAN_REQUIRE_BROWSER says that there must be one."""
        found = next((path for name in _NAMES if (path := shutil.which(name))), None)
        driver = shutil.which("chromedriver")
        if found is None or driver is None:
            message = "chromium and chromedriver are missing: run `make browser`"
            if os.environ.get("RMTSCAN_REQUIRE_BROWSER"):
                pytest.fail(message)
            pytest.skip(message)
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = found
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000"
        )
        for flag in [*flags.split(), f"--user-data-dir={folder / 'profile'}", "about:blank"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(driver, log_output=subprocess.DEVNULL))
        self.driver.set_page_load_timeout(120)

    def open(self, page: Path | str) -> None:
        """Open a file or an address, forgetting what was before."""
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(page if isinstance(page, str) else page.resolve().as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, holds: Callable[[], object], seconds: float = 60.0) -> None:
        """Until something holds; fails when it does not in time."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the page did not get there in time"
            time.sleep(0.1)

    def console(self) -> list[str]:
        """The errors that the page or its security policy complained about; a chart's advice to its author is none."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Every URL that was asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def received(self) -> dict[str, float]:
        """Bytes of the bodies that were fetched over the network since the page was opened, by address."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = {
            event["params"]["requestId"]: event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        found: dict[str, float] = {}
        for event in events:
            if event["method"] == "Network.loadingFinished" and event["params"]["requestId"] in urls:
                url = urls[event["params"]["requestId"]]
                found[url] = found.get(url, 0.0) + event["params"]["encodedDataLength"]
        return found

    def element(self, selector: str) -> Any:
        """Return the first element of a selector, without a script of the page."""
        return self.driver.find_element("css selector", selector)

    def elements(self, selector: str) -> list[Any]:
        """Return all elements of a selector, without a script of the page."""
        return list(self.driver.find_elements("css selector", selector))

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def size(self, width: int, *, dark: bool = False) -> None:
        """Set the width of the window in pixels and the preferred colors; `reset` undoes it."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        colors = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colors]})

    def reset(self) -> None:
        """Undo `size`."""
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def close(self) -> None:
        """End the browser and its driver."""
        self.driver.quit()
