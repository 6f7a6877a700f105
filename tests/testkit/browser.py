"""A page as a real browser lays it out, for the tests of the reports."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

# Put into a copy of the page, whose own policy allows no scripts: writes what the browser laid out into the DOM.
PROBE = """<script>addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const size = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const found = {
    svg: [...document.querySelectorAll("figure svg")].map(size),
    img: [...document.querySelectorAll("img")].map(e => [e.naturalWidth, ...size(e)]),
    bars: [...document.querySelectorAll(".bar i")].map(size),
    page: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  };
  document.body.dataset.found = JSON.stringify(found);
});</script>"""


def browse(chromium: str, page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """The DOM after loading, and the browser's console."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={profile}",
        "--window-size=1200,900", *options, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def probed(page: Path, target: Path) -> Path:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    target.write_text(text.replace("</body>", PROBE + "</body>"))
    return target


def laid_out(chromium: str, page: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    """The DOM, and the sizes that `PROBE` found, of a page that says nothing, fetches nothing and is not too wide."""
    dom, console = browse(chromium, probed(page, folder / "probed.html"), folder / "profile")
    assert console == ""
    found = json.loads(html.unescape(re.search(r'data-found="([^"]+)"', dom)[1]))  # type: ignore[index]
    assert found["fetched"] == []
    assert found["page"][0] <= found["page"][1], "the page scrolls sideways"
    return dom, found


def check_alone(text: str) -> None:
    """Raise if a page is not one file that asks for no other and runs nothing but the script that its policy names."""
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    references = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert [r[:40] for r in references if not r.startswith(("data:", "#"))] == []


def words(text: str) -> str:
    """The page's text without markup."""
    text = re.sub(r"<(style|script|svg)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())
