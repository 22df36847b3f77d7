"""The page of a store in a real Chromium: from a folder and from a server, with and without scripts."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from sagewheels import bad
from sagewheels.manifest import WheelManifest
from sagewheels.store.directory import DirectoryStore
from sagewheels.store.page import page
from tests.test_store_page import HOSTILE, PROOF, entry

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for all tests, with a profile of its own; it ends with them."""
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for argument in (*QUIET, "--window-size=1200,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    driver = Chrome(options=options, service=ChromeService(executable_path=str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def shown(browser: Chrome) -> Iterator[Chrome]:
    """The browser as it is at first, whatever the test before did to it."""
    browser.get("about:blank")
    for kind in ("performance", "browser"):
        logged(browser, kind)
    yield browser
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@dataclass
class Server:
    """A static server, as anybody has one, and what it was asked for."""

    url: str
    asked: list[str]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    """Serves the store of this test; the folder is `tmp_path / "store"`."""
    asked = list[str]()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "store"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Server(f"http://127.0.0.1:{server.server_port}/index.html", asked)
        server.shutdown()
        thread.join()


def some() -> list[WheelManifest]:
    """Three wheels, the newest of them proven."""
    return [
        entry(proofs=[PROOF], created_at_utc="2026-02-01T00:00:00Z"),
        entry(tag="cp311-cp311-linux_x86_64"),
        entry("cu128torch2.8sm89", archs=["8.9", "9.0"], torch_version="2.8.0", cuda_version="12.8", proofs=[]),
    ]


def put(tmp_path: Path, wheels: list[WheelManifest], known_bad: bad.Marks | None = None) -> str:
    """The page of these wheels in a folder, and its file:// address."""
    place = tmp_path / "store" / "index.html"
    place.parent.mkdir(exist_ok=True)
    place.write_text(page(wheels, DirectoryStore(place.parent), known_bad), encoding="utf-8")
    return place.as_uri()


def names(browser: Chrome) -> list[str]:
    """The rows that are to be seen: their Python, torch and arch."""
    rows = [row for row in browser.find_elements(By.CSS_SELECTOR, ".w") if row.is_displayed()]
    return ["/".join(cell.get_attribute("textContent") or "" for cell in _cells(row)) for row in rows]


def _cells(row: Any) -> list[Any]:
    cells: list[Any] = row.find_elements(By.CSS_SELECTOR, "summary > span > bdi")
    return [cells[at] for at in (1, 2, 4)]


def choose(browser: Chrome, name: str, value: str) -> None:
    Select(browser.find_element(By.NAME, name)).select_by_visible_text(value)


def count(browser: Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "output").text


def fragment(browser: Chrome) -> str:
    return browser.current_url.partition("#")[2]


def logged(browser: Any, kind: str) -> list[dict[str, Any]]:
    """What the browser wrote down since this was asked last."""
    found: list[dict[str, Any]] = browser.get_log(kind)
    return found


def requests(browser: Chrome) -> list[str]:
    """The addresses that were wanted since this was asked last, refused ones included."""
    messages = [json.loads(item["message"])["message"] for item in logged(browser, "performance")]
    sent = [item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("about:")]


def test_filters_and_the_address_that_keeps_them(shown: Chrome, tmp_path: Path) -> None:
    url = put(tmp_path, some())
    shown.get(url)
    assert (count(shown), names(shown)) == ("3 wheels", ["3.12/2.11.0/12.0", "3.11/2.11.0/12.0", "3.12/2.8.0/8.9, 9.0"])
    choose(shown, "torch", "2.11.0")
    assert (count(shown), fragment(shown)) == ("2 of 3", "torch=2.11.0")
    choose(shown, "python", "3.11")
    assert names(shown) == ["3.11/2.11.0/12.0"]
    assert fragment(shown) == "python=3.11&torch=2.11.0"
    shown.find_element(By.NAME, "proven").click()
    assert (count(shown), names(shown)) == ("0 of 3", [])
    shown.find_element(By.CSS_SELECTOR, "[type=reset]").click()
    WebDriverWait(shown, 5).until(lambda one: count(one) == "3 wheels")
    assert fragment(shown) == ""
    shown.get("about:blank")
    shown.get(f"{url}#arch=12.0&proven=1")
    assert (count(shown), names(shown)) == ("1 of 3", ["3.12/2.11.0/12.0"])
    assert shown.find_element(By.NAME, "arch").get_attribute("value") == "12.0"
    shown.get(f"{url}#torch=2.99.0")
    WebDriverWait(shown, 5).until(lambda one: count(one) == "0 of 3")
    assert logged(shown, "browser") == []


def test_proven_only_speaks_of_the_arch_that_is_chosen(shown: Chrome, tmp_path: Path) -> None:
    shown.get(put(tmp_path, [entry(archs=["8.9", "12.0"], proofs=[PROOF])]) + "#arch=12.0&proven=1")
    assert count(shown) == "1 wheel"
    choose(shown, "arch", "8.9")
    assert count(shown) == "0 of 1"


def test_copy(shown: Chrome, tmp_path: Path, served: Server) -> None:
    """From a server, the line holds the address by which the page came."""
    put(tmp_path, some())
    origin = served.url.rpartition("/")[0]
    grant = {"origin": origin, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    shown.execute_cdp_cmd("Browser.grantPermissions", grant)
    shown.get(served.url)
    shown.find_element(By.TAG_NAME, "summary").click()
    wheel = some()[0]
    address = f"{origin}/{wheel.wheel_file.replace('+', '%2B')}#sha256={wheel.wheel_sha256}"
    wanted = [f'pip install "{address}"', f'uv pip install "sageattention @ {address}"', wheel.wheel_sha256]
    for at, line in enumerate(wanted):
        copy_with(shown, at)
        assert clipboard(shown) == line
    shown.execute_script("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    copy_with(shown, 0)
    shown.execute_script("delete navigator.clipboard")
    assert clipboard(shown) == wanted[0]


def copy_with(browser: Chrome, at: int) -> None:
    """Presses the button of the line, and waits until it says that it is done."""
    button = browser.find_elements(By.CSS_SELECTOR, ".w button")[at]
    WebDriverWait(browser, 5).until(lambda _: button.text == "Copy")
    button.click()
    WebDriverWait(browser, 5).until(lambda _: button.text == "Copied")


def clipboard(browser: Chrome) -> str:
    return str(browser.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])"))


def test_with_the_keyboard_alone(shown: Chrome, tmp_path: Path) -> None:
    shown.get(put(tmp_path, some()))
    seen = list[str]()
    for _ in range(12):
        shown.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(str(shown.execute_script("return document.activeElement.tagName")).lower())
        if seen[-1] == "summary":
            break
    assert seen == ["a", "button", *["select"] * 4, "input", "button", "summary"]
    shown.switch_to.active_element.send_keys(Keys.ENTER)
    shown.switch_to.active_element.send_keys(Keys.TAB)
    focused = shown.switch_to.active_element
    assert (focused.text, focused.get_attribute("aria-label")) == ("Copy", "Copy the line for pip")
    ring = shown.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "one sees where one is"
    for control in shown.find_elements(By.CSS_SELECTOR, "select, input, button"):
        assert control.accessible_name


def test_without_scripts(shown: Chrome, tmp_path: Path) -> None:
    shown.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    shown.get(put(tmp_path, some()))
    assert not shown.find_element(By.TAG_NAME, "form").is_displayed()
    assert len(names(shown)) == 3
    line = shown.find_element(By.CSS_SELECTOR, ".w code")
    assert not line.is_displayed()
    shown.find_element(By.TAG_NAME, "summary").click()
    assert line.text.startswith(f'pip install "{(tmp_path / "store").as_uri()}/sageattention-2.2.0%2B')


def test_nothing_of_others_runs(shown: Chrome, tmp_path: Path, served: Server) -> None:
    odd = {**PROOF, "gpu": HOSTILE, "speedup": {HOSTILE: 1.0}}
    evil = [
        one.updated(proofs=[odd], torch_version=HOSTILE, glibc=HOSTILE, hf_wheel_url="javascript:1") for one in some()
    ]
    mark = bad.read({"wheel_sha256": evil[0].wheel_sha256, "arch": "9.0", "reason": HOSTILE})
    put(tmp_path, evil, bad.by_name([mark] if mark else []))
    shown.get(f"{served.url}#torch={'%3Cimg src=x onerror=window.broken=1%3E'.replace(' ', '+')}")
    for summary in shown.find_elements(By.TAG_NAME, "summary")[:3]:
        shown.execute_script("arguments[0].click()", summary)
    assert count(shown) == "0 of 3", "our own script ran"
    assert shown.execute_script("return [typeof window.broken, document.images.length]") == ["undefined", 0]
    assert [url.partition("#")[0] for url in requests(shown)] == [served.url], "the page, and not even an icon"
    assert logged(shown, "browser") == []


def test_who_gets_markup_in_gets_no_script_in(shown: Chrome, tmp_path: Path, served: Server) -> None:
    """The policy holds where the escaping would not: no other script, style, image or request."""
    put(tmp_path, some())
    place = tmp_path / "store" / "index.html"
    more = "<script>window.broken=1</script><img src=/x.png onerror=window.broken=1><style>h1{display:none}</style>"
    more += "<script src=/x.js></script><iframe src=/x.html></iframe><link rel=stylesheet href=/x.css>"
    place.write_text(place.read_text().replace("<header>", f"<header>{more}"))
    shown.get(served.url)
    assert count(shown) == "3 wheels", "our own script ran"
    assert shown.find_element(By.TAG_NAME, "h1").is_displayed()
    assert shown.execute_script("return typeof window.broken") == "undefined"
    assert served.asked == ["/index.html"]
    assert len(logged(shown, "browser")) >= 6, "each of them was refused"


_CONTRAST = """
const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(x => x / 255)
  .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
const behind = one => { for (; one; one = one.parentElement) { const color = getComputedStyle(one).backgroundColor;
  if (color !== "rgba(0, 0, 0, 0)") return color } return "rgb(255, 255, 255)" };
const all = "h1, p, a, code, label, select, button, output, bdi, .tag, dt, th, .head span";
return [...document.querySelectorAll(all)].map(one => {
  const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), one.className || one.tagName] }).sort((x, y) => x[0] - y[0])[0];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_schemes(shown: Chrome, tmp_path: Path, scheme: str) -> None:
    """The lowest contrast of any text is what WCAG asks for, 4.5."""
    mark = bad.read({"wheel_sha256": some()[0].wheel_sha256, "arch": "8.9", "reason": "wrong"})
    feature = {"name": "prefers-color-scheme", "value": scheme}
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    shown.get(put(tmp_path, some(), bad.by_name([mark] if mark else [])))
    shown.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    ground = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    lowest, where = shown.execute_script(_CONTRAST)
    assert lowest >= 4.5, where


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(shown: Chrome, tmp_path: Path, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    shown.get(put(tmp_path, some()))
    shown.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width


def test_thousands_of_wheels(shown: Chrome, tmp_path: Path, everything: bool) -> None:
    number = 10_000 if everything else 500
    odd = {**PROOF, "gpu": HOSTILE}
    shown.get(
        put(
            tmp_path, [entry(tag=f"cp3{at % 4 + 10}-cp3{at % 4 + 10}-linux_{at}", proofs=[odd]) for at in range(number)]
        )
    )
    choose(shown, "python", "3.11")
    assert count(shown) == f"{number // 4} of {number}"
    script = "const t = performance.now(); show(); document.body.offsetHeight; return performance.now() - t"
    assert shown.execute_script(script) < 2_000
    assert shown.execute_script("return typeof window.broken") == "undefined"
