"""The page in a browser: Chromium of the machine, driven by Playwright. Screenshots go to build/screenshots."""

import io
import pathlib
import shutil
import time

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests import app_system
from tests.app_server import serving

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = pathlib.Path(__file__).parents[1]
SHOTS = ROOT / "build" / "screenshots"
CAKE, DOG = ROOT / "examples/cake.png", ROOT / "examples/dog.png"
# WebGL on the processor.
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]
WAIT = 60_000  # ms

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("app") / "jobs"


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, 0.2) as address:  # A job takes 5 s, which a reloaded page finds still running.
        yield address


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server, request):
    """Opens the page, or one of its addresses, as a user of their own."""
    contexts = []

    def opened(query="", width=1200, height=1000, address=server):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(address + query)
        page.get_by_role("button", name="Make a mesh").wait_for()
        return page

    yield opened
    for number, context in enumerate(contexts):
        for page in context.pages:
            page.screenshot(path=SHOTS / f"{request.node.name}_{number}.png", full_page=True)
        context.close()


def give(page, *paths):
    page.set_input_files("input[type=file]", paths)
    page.locator("img[alt^='Cut-out']").nth(len(paths) - 1).wait_for()


def make(page):
    page.get_by_role("button", name="Make a mesh").click()


def done(page):
    page.get_by_role("link", name="Download GLB").wait_for()


@pytest.fixture(scope="module")
def finished(browser, server):
    """The address of a result, and the values that the progress bar had on the way."""
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    page.goto(server)
    give(page, CAKE)
    make(page)
    values, until = set(), time.monotonic() + 60
    while not page.get_by_role("link", name="Download GLB").count() and time.monotonic() < until:
        values |= set(page.evaluate("[...document.querySelectorAll('progress')].map(bar => bar.value)"))
        time.sleep(0.1)
    done(page)
    query = "?" + page.url.partition("?")[2]
    page.close()
    return query, values


def colors(page):
    """The pixels of the viewer, once there are others than white; [n 3]."""
    until = time.monotonic() + 60
    while True:
        shot = Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("RGB")
        pixels = np.asarray(shot).reshape(-1, 3).astype(int)
        object_pixels = pixels[pixels.min(1) < 200]
        if len(object_pixels) > 500 or time.monotonic() > until:
            return object_pixels
        time.sleep(0.2)


def test_progress_is_seen_to_move(finished):
    assert len(finished[1]) >= 3


def test_the_mesh_is_seen_in_its_color(visit, finished):
    shown = np.median(colors(visit(finished[0])), axis=0)
    assert shown[2] > shown[0] + 50 and shown[2] > shown[1] + 50, "blue"


def holes(page, shading):
    """The fraction of white in the middle of the viewer, when it has changed to a shading."""
    page.get_by_role("radio", name=shading).click()
    page.wait_for_timeout(3000)
    shot = np.asarray(Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("RGB"))
    rows, columns = (slice(size * 2 // 5, size * 3 // 5) for size in shot.shape[:2])
    return (shot[rows, columns].min(-1) > 250).mean()


def test_the_mesh_is_seen_by_its_normals_and_as_a_wireframe(visit, finished):
    page = visit(finished[0])
    colors(page)
    assert holes(page, "Normals") == 0 and colors(page).std(0).min() > 20, "all directions"
    assert holes(page, "Wireframe") > 0.2
    assert holes(page, "Texture") == 0


def test_the_views_turn(visit, finished):
    page = visit(finished[0])
    slider, shown = page.get_by_role("slider", name="Turn the object"), page.locator("img[alt^='View ']:visible")
    seen = []
    for value in (0, 9, 31):
        slider.evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')) }", str(value))
        shown.wait_for()
        seen.append(shown.get_attribute("alt"))
        red = np.asarray(Image.open(io.BytesIO(shown.screenshot())).convert("RGB"))
        assert abs(red[len(red) // 2, red.shape[1] // 2, 0] - 255 * value / 31) < 6
    assert seen == ["View 0", "View 9", "View 31"]


def test_the_slider_turns_with_the_keyboard(visit, finished):
    page = visit(finished[0])
    page.get_by_role("slider", name="Turn the object").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator("img[alt^='View ']:visible").get_attribute("alt") == "View 4"
    assert page.locator("img[alt^='Normals ']:visible").get_attribute("alt") == "Normals 4"


@pytest.mark.parametrize("name", ["GLB", "STL", "PLY"])
def test_downloads_open(visit, finished, tmp_path, name):
    page = visit(finished[0])
    with page.expect_download() as started:
        page.get_by_role("link", name=f"Download {name}").click()
    started.value.save_as(tmp_path / f"mesh.{name.lower()}")
    mesh = trimesh.load_mesh(tmp_path / f"mesh.{name.lower()}")
    assert mesh.volume / mesh.extents.prod() == pytest.approx(np.pi / 6, rel=0.02), "a ball"


def test_a_reload_during_a_job_shows_it_again(visit):
    page = visit()
    give(page, CAKE)
    make(page)
    page.wait_for_url("**/?job=*")
    page.reload()
    page.locator("progress").wait_for()
    done(page)


def test_two_users_at_once(visit):
    pages = [visit(), visit()]
    for page, picture in zip(pages, (CAKE, DOG), strict=True):
        give(page, picture)
        make(page)
    for page in pages:
        done(page)
    assert pages[0].url != pages[1].url


def test_a_job_is_stopped_within_five_seconds(visit, folder):
    page = visit()
    give(page, CAKE)
    before = set(folder.iterdir())
    page.get_by_text("Options").click()
    page.get_by_label("Seed").fill(str(app_system.SLOW))
    make(page)
    page.locator("li[aria-current]", has_text="Draw 8 views").wait_for()
    start = time.monotonic()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Cancelled").wait_for()
    assert time.monotonic() - start < 5
    assert set(folder.iterdir()) == before


def test_several_pictures_have_directions(visit):
    page = visit()
    give(page, CAKE, DOG)
    page.get_by_label("Direction of picture 2").wait_for()
    assert not page.get_by_label("Direction of picture 3").is_visible()
    make(page)
    done(page)


def test_a_mesh_that_is_called_a_picture_is_refused_in_a_sentence(visit, tmp_path):
    (tmp_path / "mesh.png").write_bytes(b"glTF\x02\x00\x00\x00" + bytes(100))
    page = visit()
    page.set_input_files("input[type=file]", [tmp_path / "mesh.png"])
    said = page.get_by_text("picture 1 is not a picture, or is damaged")
    said.wait_for()
    assert page.get_by_text("mesh.png").count() == 0


def test_an_example_is_a_click_away(visit):
    page = visit()
    page.get_by_role("button", name="Example: dog").click()
    page.locator("img[alt^='Cut-out']").wait_for()


def test_recent_results_are_listed(visit):
    page = visit()
    give(page, CAKE)
    make(page)
    done(page)
    name = page.url.partition("job=")[2]
    page.get_by_text("Recent results of this browser").click()
    page.get_by_role("link", name=name).wait_for()


def test_the_page_fits_a_phone(visit, finished):
    page = visit(finished[0], width=375, height=812)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.get_by_role("button", name="Make a mesh").bounding_box()["width"] > 200


def test_every_control_has_a_name(visit, finished):
    page = visit(finished[0])
    done(page)
    page.get_by_text("Options").click()
    page.get_by_label("Seed").wait_for()
    named = """() => [...document.querySelectorAll('input, button, select, textarea, img, progress')].filter(
      one => one.checkVisibility() && !(one.ariaLabel || one.alt || one.title || one.innerText?.trim()
        || one.labels?.length || one.closest('button')?.ariaLabel || one.closest('label')?.innerText.trim()
        || one.getAttribute('aria-labelledby'))).map(one => one.outerHTML.slice(0, 200))"""
    assert page.evaluate(named) == []


def test_a_mesh_is_made_with_the_keyboard_alone(visit):
    page = visit()
    give(page, CAKE)
    page.get_by_role("button", name="Make a mesh").focus()
    page.keyboard.press("Enter")
    done(page)


def test_nothing_is_loaded_from_elsewhere(visit, server, browser, finished):
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(WAIT)
    page.goto(server + finished[0])
    page.locator("canvas").wait_for()
    colors(page)
    page.close()
    assert len(asked) > 50
    assert not [url for url in asked if not url.startswith((server, "data:", f"blob:{server}"))]
    assert not [url for url in asked if "/tmp/" in url or "uploads" in url], "paths of the machine"


def test_a_token_lets_a_browser_in(visit, tmp_path):
    with serving(tmp_path / "jobs", 0.0, "secret") as address:
        page = visit("?token=secret", address=address)
        assert "secret" not in page.url
        give(page, CAKE)
