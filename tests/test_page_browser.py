"""The pages in headless Chromium: that they render, work and can be read."""

import shutil

import pytest

from pd_jax.reports import compare, page
from pd_jax.runs import record
from tests.run_folders import make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs the programs chromium and chromedriver (Debian: chromium-driver)",
    ),
]
PAGES = ("images", "plane", "live", "compare")
SCREENS = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]

# The least contrast (WCAG) of a text's colour to what is behind it, and of which.
CONTRAST = """
const parts = c => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const found = [];
for (const e of document.querySelectorAll("main *")) {
  const own = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
  if (!own || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), isSvg = e.namespaceURI.endsWith("svg");
  const a = light(parts(isSvg ? style.fill : style.color)), b = light(behind(e));
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent]);
}
return found.sort((a, b) => a[0] - b[0])[0];
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A page of each kind, as files."""
    place = tmp_path_factory.mktemp("pages")
    images = make(place / "images")
    plane = make(place / "plane", shape=(2,), config={"ladder.ema": 0.5})
    live = make(place / "live", updates={"teacher": 8}, rows=[], done=False)
    for folder in (images, plane, live):
        (folder / page.FILE).write_text(page.html(record.read(folder)))
    both = place / "compare.html"
    compare.run([str(images), str(plane)], str(both))
    found = {folder.name: folder / page.FILE for folder in (images, plane, live)}
    return found | {"compare": both}


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    # Pages come from disk: whatever else they ask for fails, and shows.
    driver.execute_cdp_cmd("Network.enable", {})
    nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {"offline": True, **nothing}
    )
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, places):
    """Opens a page on a screen of some width, light or dark; returns the browser."""

    def show(name, width=1280, scheme="light"):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1}
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", size | {"mobile": width < 600}
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get_log("browser")
        browser.get(places[name].as_uri())
        return browser

    return show


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_a_page_fits_can_be_read_and_needs_nothing_else(show, name, width, scheme):
    browser = show(name, width, scheme)
    assert not browser.get_log("browser")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
    )
    assert not cut
    ratio, text = browser.execute_script(CONTRAST)
    assert ratio >= 4.5, text
    dark = browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor"
    )
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.naturalWidth).length"
    )
    assert not broken
    fetched = browser.execute_script(
        "return performance.getEntriesByType('resource')"
        ".map(e => e.name).filter(n => !n.startsWith('data:'))"
    )
    assert not fetched


@pytest.mark.parametrize("name", ["images", "plane", "compare"])
def test_the_slider_shows_another_number_of_steps(show, name):
    from selenium.webdriver.common.keys import Keys

    browser = show(name, 390)
    slider = browser.find_element("css selector", "input[type=range]")
    positions = browser.find_elements("css selector", ".position")

    def shown():
        (only,) = [p.get_attribute("data-says") for p in positions if p.is_displayed()]
        assert browser.find_element("css selector", "output").text == only
        assert slider.get_attribute("aria-valuetext") == only
        return only

    assert shown() == "1"
    slider.send_keys(Keys.ARROW_LEFT)
    assert shown() == "2"
    slider.send_keys(Keys.HOME)
    assert shown() == positions[0].get_attribute("data-says")
    slider.send_keys(Keys.END)
    assert shown() == "1"
    browser.execute_script(
        "arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    assert shown() == "2"
    assert not browser.get_log("browser")


def test_in_print_all_are_shown(show):
    browser = show("images")
    media = {"media": "print", "features": []}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    positions = browser.find_elements("css selector", ".position")
    assert len(positions) == 3
    assert all(position.is_displayed() for position in positions)
    assert not browser.find_element("css selector", ".slider").is_displayed()


def test_without_scripts_all_are_shown(show):
    browser = show("images")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        positions = browser.find_elements("css selector", ".position")
        assert len(positions) == 3
        assert all(p.size["height"] > 50 for p in positions)
    finally:
        browser.execute_cdp_cmd(
            "Emulation.setScriptExecutionDisabled", {"value": False}
        )
