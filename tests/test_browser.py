"Pages and the explorer's stage in a headless browser: what a hand, a keyboard and a finger do."
import time

import numpy as np
import pytest
from pages import EVIL, headless

from sail_nbdev.config import LocalizerSettings
from sail_nbdev.core import Event, package_file
from sail_nbdev.export import html_page, mask_points, player_fragment, player_html, write_events
from sail_nbdev.masks import event_masks

HOUR = 3600.
PLAYER = "window.p = [...players.values()][0]"


def many_events(n=240, seed=0):
    "Events of an hour, some of a second and some of minutes."
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0, HOUR - 300, n))
    lengths = np.exp(rng.normal(2, 1, n)).clip(.5, 280)
    return [Event(s, s + d, f"Step {i}, a cook {'cuts an onion' if i % 8 == 0 else 'stirs'}.",
                  (s + d / 2) / HOUR, d / HOUR) for i, (s, d) in enumerate(zip(starts, lengths))]


EVENTS = many_events()


@pytest.fixture(scope="module")
def browser():
    with headless() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A page of an hour with a video that is not there, and one of nested events."
    folder = tmp_path_factory.mktemp("pages")
    curves = event_masks(EVENTS, LocalizerSettings(), n_frames=mask_points(EVENTS))
    hour = player_fragment({"truth": EVENTS[::2], "sail": EVENTS}, HOUR, "hour.mp4", curves=curves)
    (folder/"hour.html").write_text(html_page("hour", hour), encoding="utf-8")
    nested = [Event(0, 100, "long"), Event(40, 60, "middle"), Event(49, 51, "short"), Event(70, 80, EVIL)]
    (folder/"nested.html").write_text(player_html({"sail": nested}, None, 100.), encoding="utf-8")
    return folder


PROBLEMS = []


@pytest.fixture(autouse=True)
def no_problems():
    "No script of a page failed, and no caption ran."
    yield
    found = PROBLEMS.copy()
    PROBLEMS.clear()
    assert found == []


def watched(page):
    "The page, whose errors and dialogs are problems."
    page.on("pageerror", lambda error: PROBLEMS.append(str(error)))
    page.on("dialog", lambda dialog: PROBLEMS.append(dialog.message))
    return page


def open_page(browser, path, width=1200, **options):
    page = watched(browser.new_context(viewport={"width": width, "height": 900}, **options).new_page())
    page.goto(path.as_uri())
    page.evaluate(PLAYER)
    return page


@pytest.fixture(scope="module")
def one_hour(browser, files):
    return open_page(browser, files/"hour.html")


@pytest.fixture
def hour(one_hour):
    "The page of an hour, as if it had just been opened."
    one_hour.fill(".sv-search", "")
    one_hour.evaluate("p.timeline.look(0, 3600), p.seek(0), p.touched = -1e9, document.activeElement.blur()")
    return one_hour


def wait(page, condition):
    "Until it is true. Playwright's own way needs `eval`, which the page forbids."
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def view(page):
    return page.evaluate("[p.timeline.from, p.timeline.to]")


def place(page, t, name="sail"):
    "Where the first lane of a row is at second t, on the screen."
    return page.evaluate("""([t, name]) => {
        const box = p.timeline.canvas.getBoundingClientRect(), row = p.rows.find(r => r.name === name);
        return [box.x + p.timeline.x(t), box.y + row.top + 5];}""", [t, name])


def test_hundreds_of_events_are_few_tab_stops(hour):
    stops = "[...p.box.querySelectorAll('*')].filter(e => e.tabIndex >= 0 && e.checkVisibility()).length"
    assert hour.evaluate(stops) <= 9
    assert hour.evaluate("document.querySelectorAll('.sv-time *').length") < 6      # nothing for each event


def test_wheel_zooms_where_the_pointer_is(hour):
    x, y = place(hour, 900)
    hour.mouse.move(x, y)
    hour.mouse.wheel(0, -800)
    wait(hour, "p.timeline.span < 1500")
    assert hour.evaluate("x => p.timeline.t(x - p.timeline.canvas.getBoundingClientRect().x)", x) == \
        pytest.approx(900, abs=8)
    start = view(hour)[0]
    hour.mouse.down()
    hour.mouse.move(x - 200, y, steps=4)
    hour.mouse.up()
    assert view(hour)[0] > start + 50 and hour.evaluate("p.now") == 0   # a drag moves the view


def test_keys_zoom_and_move(hour):
    hour.focus(".sv-time")
    hour.keyboard.press("+")
    assert view(hour) == pytest.approx([0, HOUR / 1.6])
    hour.keyboard.press("]")
    assert view(hour)[0] == pytest.approx(HOUR / 1.6 / 4)
    hour.keyboard.press("0")
    assert view(hour) == [0, HOUR]
    hour.keyboard.press("Shift+ArrowRight")
    hour.keyboard.press("ArrowRight")
    assert hour.evaluate("p.now") == 6
    hour.keyboard.press("n")
    assert hour.evaluate("p.now") == pytest.approx(next(e.start for e in EVENTS if e.start > 6.05), abs=.002)
    hour.keyboard.press("z")
    assert view(hour)[1] - view(hour)[0] < 900


def test_the_map_moves_the_view(hour):
    hour.evaluate("p.timeline.look(0, 360)")
    box = hour.locator(".sv-map").bounding_box()
    hour.mouse.click(box["x"] + box["width"] * .75, box["y"] + 10)
    start, end = view(hour)
    assert (start + end) / 2 == pytest.approx(.75 * HOUR, abs=5) and end - start == pytest.approx(360)


def test_one_clock(hour):
    hour.evaluate("p.seek(1500)")
    assert hour.text_content(".sv-clock") == "0:25:00 / 1:00:00"
    assert hour.get_attribute(".sv-time", "aria-valuetext").startswith("0:25:00")
    times = hour.locator("[data-row=sail] .sv-when").all_text_contents()
    assert all(t.count(":") == 4 for t in times)


def test_the_transcript_follows(hour):
    e = EVENTS[150]
    hour.evaluate("t => p.seek(t)", e.start + .01)
    item = hour.locator("[data-row=sail] .sv-event").nth(150)
    assert "on" in item.get_attribute("class")
    inside = """e => {
        const a = e.getBoundingClientRect(), b = p.list.getBoundingClientRect();
        return a.top >= b.top && a.bottom <= b.bottom;}"""
    assert item.evaluate(inside)
    hour.evaluate("p.touched = performance.now(), p.seek(5)")               # a hand is on it: it stays
    assert item.evaluate(inside)


def test_search_and_jump(hour):
    hour.keyboard.press("/")
    hour.keyboard.type("ONION")
    assert hour.text_content(".sv-count") == "30 of 240"
    assert hour.evaluate("p.matches.length") == 30 and hour.evaluate("p.timeline.found.size") == 60
    hour.keyboard.press("Enter")
    first = next(e for e in EVENTS if "onion" in e.caption and e.start > .05)
    assert hour.evaluate("p.now") == pytest.approx(first.start, abs=.002)
    hour.keyboard.press("ArrowDown")                                         # into the list, and on in it
    hour.keyboard.press("ArrowDown")
    hour.keyboard.press("Enter")
    second = [e for e in EVENTS if "onion" in e.caption][1]
    assert hour.evaluate("p.now") == pytest.approx(second.start, abs=.002)
    assert hour.evaluate("document.querySelectorAll('.sv-event[tabindex=\"0\"]').length") == 1


def test_another_row_is_read(hour):
    hour.select_option(".sv-pick", "truth")
    assert hour.locator("[data-row=truth]").is_visible() and not hour.locator("[data-row=sail]").is_visible()
    e = EVENTS[1]
    hour.evaluate("e => p.timeline.zoomTo(p.rows[1].events[e])", 1)
    lane = hour.evaluate("p.rows[1].events[1].lane * p.rows[1].lane")
    x, y = place(hour, (e.start + e.end) / 2)
    hour.mouse.click(x, y + lane)                                            # its row opens, it is chosen
    assert hour.locator("[data-row=sail]").is_visible()
    assert hour.text_content(".sv-event[aria-selected=true] .sv-caption") == e.caption


def test_captions_are_tracks(hour):
    wait(hour, "p.video.textTracks[1].cues?.length === 240")
    assert hour.evaluate("[...p.video.textTracks].map(t => t.mode)") == ["disabled", "showing"]


def test_a_hundred_changes_are_one_drawing(hour):
    drawn = hour.evaluate("""async () => {
        let n = 0;
        const draw = p.timeline.draw;
        p.timeline.draw = function () { n += 1; draw.call(this); };
        for (let i = 0; i < 100; i++) p.timeline.setTime(i);
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        delete p.timeline.draw;
        return n;}""")
    assert drawn == 1


def test_the_shortest_event_is_under_the_pointer(browser, files):
    page = open_page(browser, files/"nested.html")
    found = """([t, lane]) => {
        const [row] = p.rows;
        return p.timeline.at(p.timeline.x(t), row.top + lane * row.lane + 5)?.text || null;}"""
    assert [page.evaluate(found, [50, lane]) for lane in range(3)] == ["long", "middle", "short"]
    assert page.evaluate(found, [53, 2]) is None                             # true length: nothing beside it
    page.evaluate("for (const e of p.rows[0].events) e.lane = 0")        # as if there were no room for lanes
    assert [page.evaluate(found, [t, 0]) for t in (50, 45, 20)] == ["short", "middle", "long"]


def test_markup_in_captions_stays_text(browser, files):
    page = open_page(browser, files/"nested.html")
    page.mouse.move(*place(page, 75))
    page.evaluate("p.timeline.hover(p.timeline.x(75), p.rows[0].top + p.rows[0].lane + 5)")
    assert page.text_content(".sv-tip span") == EVIL
    assert page.locator("[onclick], img").count() == 0


def test_a_phone(browser, files):
    page = open_page(browser, files/"hour.html", width=390, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    x, y = place(page, 1800)
    touch = page.context.new_cdp_session(page)
    def fingers(kind, apart):
        points = [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}] if apart else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    fingers("touchStart", 20)
    for apart in (40, 60, 80): fingers("touchMove", apart)
    fingers("touchEnd", 0)
    start, end = view(page)
    assert end - start == pytest.approx(HOUR / 4, rel=.1) and start < 1800 < end
    assert page.evaluate("p.now") == 0                                       # a pinch is no click


def test_dark(browser, files):
    page = open_page(browser, files/"hour.html", color_scheme="dark")
    assert page.evaluate("p.timeline.ink.ink").strip() == "#e6e8ea"
    page.emulate_media(color_scheme="light")
    wait(page, "p.timeline.ink.ink.trim() === '#1d2329'")


def test_a_video_plays(browser, made_demo, tmp_path):
    vid = "val_0001"
    events = [Event(0, 1, "First."), Event(1, 8, "Second.")]
    write_events({vid: events}, tmp_path/"v.html", {vid: 8.},
                 {vid: made_demo[0]/"world"/"videos"/f"{vid}.mp4"})
    page = open_page(browser, tmp_path/"v.html")
    if not page.evaluate("p.video.canPlayType('video/mp4; codecs=\"avc1.64001e\"')"):
        pytest.skip("this Chromium cannot play H.264")
    page.locator(".sv-event").nth(1).click()                                 # jumps and plays
    wait(page, "p.video.currentTime > 1.2")
    assert page.get_attribute(".sv-event:nth-child(2)", "class") == "sv-event on"
    page.keyboard.press("Space")
    assert page.evaluate("p.video.paused")


# -- the explorer's stage

MODEL = """async ([source, scene, css]) => {
    document.head.append(Object.assign(document.createElement('style'), {textContent: css}));
    const module = await import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})));
    const hear = {};
    window.sent = [];
    window.model = {values: {scene}, get: name => model.values[name], send: m => sent.push(m),
                    on: (name, f) => { hear[name] = f; },
                    set: (name, v) => { model.values[name] = v; hear['change:' + name](); }};
    const el = document.body.appendChild(document.createElement('div'));
    window.stop = module.default.render({model, el});}"""


@pytest.fixture
def stage(browser):
    def row(name, color, *events): return dict(name=name, color=color, moves=name == "sail", events=events)
    def event(start, end, text, mask=None): return dict(start=start, end=end, text=text, mask=mask)
    rows = [row("truth", "#2a9d5c", event(0, 30, "true")),
            row("sail", "#3b7dd8", event(10, 30, EVIL, "10 30 0 100 0"), event(60, 90, "b"))]
    scene = dict(video="v", type=None, duration=100, frames=40, rows=rows, chosen=[1, 0])
    page = watched(browser.new_page(viewport={"width": 1000, "height": 700}))
    source = package_file("timeline.js") + package_file("explorer.js")
    page.evaluate(MODEL, [source, scene, package_file("player.css") + package_file("explorer.css")])
    yield page
    page.close()


def bar(page, t, row):
    "Where second t of a row lies on the screen: the strip of pixels is found in the scene's own order."
    box = page.locator(".sv-canvas").bounding_box()
    return box["x"] + t / 100 * box["width"], box["y"] + 24 + 16 + row * (22 + 6 + 16) + 8


def test_a_click_picks_an_event(stage):
    assert stage.text_content(".sv-clock") == "0:10 / 1:40"                  # that of the chosen event
    stage.mouse.click(*bar(stage, 75, 1))
    assert stage.evaluate("sent") == [{"pick": ["sail", 1]}]
    assert stage.text_content(".sv-clock") == "1:00 / 1:40"


def test_the_chosen_event_is_dragged(stage):
    for start, end, wanted in ((20, 40, [30, 50]), (50, 60, [30, 60])):      # all of it, then its end
        stage.mouse.move(*bar(stage, start, 1))
        stage.mouse.down()
        stage.mouse.move(*bar(stage, end, 1), steps=5)
        stage.mouse.up()
        assert stage.evaluate("sent.at(-1).move") == pytest.approx(wanted, abs=.3)
    stage.mouse.click(*bar(stage, 15, 0))                                    # a true event cannot be moved
    count = stage.evaluate("sent.length")
    stage.mouse.move(*bar(stage, 15, 0))
    stage.mouse.down()
    stage.mouse.move(*bar(stage, 40, 0), steps=3)
    stage.mouse.up()
    assert stage.evaluate("sent.length") == count


def test_the_stage_follows_the_model(stage):
    stage.evaluate("model.set('scene', {...model.get('scene'), chosen: [1, 1]})")
    assert stage.text_content(".sv-clock") == "1:00 / 1:40"
    stage.mouse.move(*bar(stage, 15, 1))
    assert stage.text_content(".sv-tip span") == EVIL and stage.locator("[onclick], img").count() == 0
