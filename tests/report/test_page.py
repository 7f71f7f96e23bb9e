"""The page in headless Chromium: every chart drawn, filters work, no error, no request, hostile text stays text."""

import json

import pytest
from chromium import Page, find_chromium
from example_runs import HOSTILE, write_run

from openrlhf_orz.report.page import write_page
from openrlhf_orz.report.run_data import load_runs

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = Page(tmp_path_factory.mktemp("chromium") / "profile")
    yield page
    page.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A long run, a hostile one, both together, and an old one with damage."""
    folder = tmp_path_factory.mktemp("pages")
    long, hostile = (
        write_run(folder / "long", 1000, prompts=2),
        write_run(folder / "hostile", 12, hostile=True, seed=1),
    )
    old = folder / "old"
    old.mkdir()
    (old / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5, "response_length": 20}\nbroken\n')
    pages = {"long": [long], "hostile": [hostile], "both": [long, hostile], "old": [old]}
    for name, runs in pages.items():
        write_page(load_runs(runs), folder / f"{name}.html")
    return folder


def quiet(browser, path):
    """Nothing was complained about, and nothing but the page itself was asked for."""
    assert browser.console == []
    assert set(browser.requests) <= {path.resolve().as_uri()}


def undrawn(browser):
    return browser.ask("Report.charts.filter((chart) => !chart.drawn).map((chart) => chart.spec.id)")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [(1400, 900, False), (390, 844, True)], ids=["desktop", "phone"])
def test_every_chart_is_drawn(browser, pages, size, dark):
    browser.size(*size)
    browser.dark(dark)
    browser.open(pages / "long.html")
    assert browser.ask("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert undrawn(browser) == []
    # with something on each canvas, not just a canvas
    blank = """Report.charts.filter(({u}) => {
        const canvas = u.ctx.canvas, seen = new Set();
        const data = u.ctx.getImageData(0, 0, canvas.width, canvas.height).data;
        for (let i = 0; i < data.length && seen.size < 2; i += 4)
            if (data[i + 3] > 200) seen.add(data.slice(i, i + 3).join());
        return seen.size < 2;
    }).map((chart) => chart.spec.id)"""
    assert browser.ask(blank) == []
    assert browser.ask("document.documentElement.scrollWidth") <= size[0]
    quiet(browser, pages / "long.html")


def test_smoothing_axis_and_theme(browser, pages):
    browser.size(1400, 900)
    browser.dark(False)
    browser.open(pages / "both.html")
    reward = "Report.charts.find((chart) => chart.spec.id === 'reward').u"
    smooth = browser.ask(f"{reward}.data[2][99]")
    slider = "const s = document.getElementById('smoothing'); s.value = {}; s.dispatchEvent(new Event('input'))"
    browser.ask("{" + slider.format(1) + "}")
    raw = browser.ask(f"{reward}.data[1][99]")
    assert raw is not None and raw != smooth and browser.ask(f"{reward}.data.length") == 3  # two runs over each other
    browser.ask("{const a = document.getElementById('axis'); a.value = 'hours'; a.dispatchEvent(new Event('change'))}")
    assert browser.ask(f"{reward}.data[0].at(-1)") == pytest.approx(1000 * 54 / 3600, rel=1e-6)
    browser.ask("document.getElementById('theme').click()")
    assert browser.ask("document.documentElement.dataset.theme") == "dark" and undrawn(browser) == []
    browser.ask("document.getElementById('theme').click()")
    browser.ask("sessionStorage.clear()")
    quiet(browser, pages / "both.html")


def shown(browser):
    return browser.ask("document.querySelectorAll('.list button:not(.more)').length")


def choose(browser, name, value):
    change = "node.checked = true" if value is True else f"node.value = {json.dumps(value)}"
    event = "input" if name == "text" else "change"
    browser.ask(f"{{const node = document.getElementById('filter-{name}'); {change};"
                f" node.dispatchEvent(new Event('{event}', {{bubbles: true}}))}}")  # fmt: skip


def test_filters_search_sort_and_compare(browser, pages):
    browser.open(pages / "hostile.html")
    rows = browser.ask("Report.rollouts[0].rows")
    assert len(rows) == 12 * 8 + len(HOSTILE) == shown(browser)
    choose(browser, "step", "5")
    assert shown(browser) == 8
    choose(browser, "outcome", "right")
    right = sum(row["step"] == 5 and row["reward"] > 0 for row in rows)
    assert shown(browser) == right
    choose(browser, "outcome", "all"), choose(browser, "step", "all"), choose(browser, "verdict", "no_answer")
    assert shown(browser) == len(HOSTILE)
    choose(browser, "verdict", "all"), choose(browser, "truncated", True)
    assert shown(browser) == len(HOSTILE) and "cut by length" in browser.ask(
        "document.querySelector('.detail').innerText"
    )
    browser.open(pages / "hostile.html")
    choose(browser, "reflection", True)
    assert shown(browser) == sum(row["reflection"] for row in rows) > 10
    choose(browser, "sort", "longest")
    assert "END-OF-LONG" in browser.ask("document.querySelector('.response').textContent")
    browser.open(pages / "hostile.html")
    choose(browser, "text", "שלום")
    browser.wait("document.getElementById('found').textContent.startsWith('1 of')")
    assert browser.ask("document.querySelectorAll('.response mark').length") == 1
    browser.open(pages / "hostile.html")
    choose(browser, "text", "What is 1+3?")
    browser.wait(f"document.getElementById('found').textContent.startsWith('{12 * 4} of')")
    browser.ask("document.getElementById('compare').click()")
    assert browser.ask("document.querySelectorAll('.card').length") == 48  # of 12 steps
    quiet(browser, pages / "hostile.html")


def test_hostile_text_is_text(browser, pages):
    browser.open(pages / "hostile.html")
    choose(browser, "step", "1")
    for place, text in enumerate(HOSTILE.values()):
        browser.ask(f"document.querySelectorAll('.list button')[{place}].click()")
        expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        found = browser.ask("document.querySelector('.response').textContent.toWellFormed()")
        assert found == expected
    assert browser.ask("window.pwned === undefined && document.querySelectorAll('main img, main b b').length === 0")
    quiet(browser, pages / "hostile.html")


def test_an_injected_script_does_not_run(browser, pages):
    """The page's own scripts are the only ones that its policy allows, whatever else gets into it."""
    page = pages / "injected.html"
    injected = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
    page.write_text((pages / "old.html").read_text().replace('<main id="content"', f'{injected}<main id="content"'))
    browser.open(page)
    assert browser.ask("document.scripts[0].textContent") == "window.pwned = 1"
    assert browser.ask("window.pwned === undefined") and undrawn(browser) != []
    assert any("Content Security Policy" in line for line in browser.console)


def test_keyboard(browser, pages):
    browser.open(pages / "hostile.html")
    browser.ask("document.getElementById('filter-step').focus()")
    for _ in range(20):
        browser.press("Tab")
        if browser.ask("document.activeElement.parentElement.className") == "list":
            break
    assert browser.ask("document.activeElement.getAttribute('aria-current')") == "true"
    browser.press("ArrowDown")
    assert browser.ask("[...document.querySelectorAll('.list button')].indexOf(document.activeElement)") == 1
    assert browser.ask("document.querySelectorAll('.list [aria-current=true]').length") == 1
    assert browser.ask("document.querySelector('.detail strong').textContent") == "step 1, response 2"
    browser.ask("document.querySelector('#chart-reward .plot').focus()")
    browser.press("ArrowRight")
    first = browser.ask("document.querySelector('#chart-reward .u-legend').innerText")
    browser.press("ArrowRight")
    assert browser.ask("document.querySelector('#chart-reward .u-legend').innerText") != first
    assert browser.ask("document.querySelector('#chart-reward .plot').getAttribute('aria-label')").startswith(
        "Reward:"
    )


def test_a_response_is_read_token_by_token(browser, pages):
    browser.size(1400, 900)
    browser.open(pages / "hostile.html")
    rows = [row for row in browser.ask("Report.rollouts[0].rows") if "pieces" in row]
    choose(browser, "values", True)
    assert shown(browser) == len(rows) >= 24
    row, tokens = rows[0], "[...document.querySelectorAll('.tokens .tok')]"
    assert browser.ask("document.querySelector('.tokens').textContent") == row["response"]
    assert browser.ask(f"{tokens}.length") == len(row["values"])
    # above the middle of 0 to 1 a solid line, below it dots; the farther, the thicker
    looks = browser.ask(
        f"{tokens}.map((t) => [t.classList.contains('above'), parseFloat(t.style.getPropertyValue('--thick'))])"
    )
    assert [above for above, _ in looks] == [value >= 0.5 for value in row["values"]]
    for (_, thick), value in zip(looks, row["values"]):
        assert thick == pytest.approx(4 * min(1, abs(2 * value - 1)), abs=0.051)
    style = f"getComputedStyle({tokens}.find((t) => t.classList.contains('%s'))).borderBottomStyle"
    assert browser.ask(style % "below") == "dotted" and browser.ask(style % "above") == "solid"
    assert browser.ask("[...document.querySelectorAll('.scale .tok')].map((t) => t.textContent)")[:7] == [
        "0", "0.17", "0.33", "0.5", "0.67", "0.83", "1"]  # fmt: skip
    browser.ask("document.querySelector('.tokens').focus()")
    browser.press("ArrowRight"), browser.press("ArrowRight")
    read = browser.ask("document.querySelector('.readout').textContent")
    assert read.startswith(f"token 2 of {len(row['values'])} ") and f"value {row['values'][1]:.4g}" in read
    browser.ask(f"{tokens}[4].dispatchEvent(new MouseEvent('mouseover', {{bubbles: true}}))")
    assert browser.ask("document.querySelector('.readout').textContent").startswith("token 5 of")
    browser.ask("document.getElementById('tint-advantages').click()")
    assert browser.ask("document.activeElement.id") == "tint-advantages"
    signs = browser.ask(f"{tokens}.map((t) => t.classList.contains('above'))")
    assert signs == [advantage >= 0 for advantage in row["advantages"]]
    browser.ask("document.getElementById('tint-none').click()")
    assert browser.ask("document.querySelectorAll('.tok').length") == 0
    assert browser.ask("document.querySelector('.response').textContent") == row["response"]
    quiet(browser, pages / "hostile.html")


def test_reflection_and_what_stood_before_are_marked(browser, pages):
    browser.open(pages / "hostile.html")
    marks = browser.ask("""(() => {
        const pieces = ['a', ' b', ' c', ' d', ' Wa', 'it,', ' b', ' c', ' d', ' Wa', 'x'], n = pieces.map(() => 0.25);
        const view = Report.tokenView({pieces, values: n, advantages: n}, 'values', {values: [0, 1]}, ' c');
        return [...view.querySelectorAll('.tokens .tok')].map((t) => t.className.replace('tok below', '').trim());
    })()""")
    assert marks == ["", "", "found", "", "reflects", "reflects", "repeats", "repeats found", "repeats", "repeats",
                     ""]  # fmt: skip


def test_configurations_are_compared(browser, pages):
    browser.open(pages / "both.html")
    rows = browser.ask("[...document.querySelectorAll('.flags tbody tr')].map((row) => row.innerText)")
    assert rows == ["--actor.adam.lr\t1e-06\t2e-06"]
    choose_all = (
        "{const s = document.getElementById('config-show'); s.value = 'all'; s.dispatchEvent(new Event('change'))}"
    )
    browser.ask(choose_all)
    assert browser.ask("document.querySelectorAll('.flags tbody tr').length") == 5


def test_what_is_missing_is_said(browser, pages):
    browser.open(pages / "old.html")
    assert {"format", "phases", "reflection", "eval-accuracy", "faults"} <= set(undrawn(browser))
    notes = browser.ask("document.getElementById('notes').innerText")
    assert "metrics.jsonl: 1 line is damaged" in notes and "config.json is not there" in notes
    assert "Not recorded" in browser.ask("document.getElementById('chart-phases').innerText")
    assert "no rollout files" in browser.ask("document.getElementById('left-out').innerText")
    quiet(browser, pages / "old.html")
