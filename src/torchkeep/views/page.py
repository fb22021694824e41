"""A diagnosis as one page of HTML with everything in it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..core.diagnosis import Diagnosis

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
body { color: #111; background: #fff }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
.verdict { font-size: 1.2rem; border-left: 4px solid #111; padding: .3rem 0 .3rem 1rem }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #ccc }
td { overflow-wrap: anywhere }
code { white-space: nowrap } .figures { font-size: .85rem; color: #444 } ol li { margin: .5rem 0 }
"""


def page(diagnosis: Diagnosis, svg: str) -> str:
    """The whole page; it loads nothing."""
    since = "" if diagnosis.since is None else f", since {diagnosis.unit} {diagnosis.since:g}"
    return framed(
        diagnosis.title,
        [
            f'<p class="verdict">{escape(diagnosis.said)}{escape(since)}</p>',
            f"<figure>{svg}</figure>",
            "<h2>What to try</h2>",
            _list(f"<strong>{escape(one.action)}</strong><br>{escape(one.reason)}" for one in diagnosis.remedies),
            "<h2>What was seen</h2>",
            _findings(diagnosis),
            *(f"<p>{escape(note)}</p>" for note in diagnosis.notes),
        ],
    )


def framed(title: str, parts: Iterable[str]) -> str:
    """Parts of HTML as a page of their own."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def _list(items: Iterable[str]) -> str:
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<ol>{listed}</ol>" if listed else "<p>Nothing: go on like this.</p>"


def _findings(diagnosis: Diagnosis) -> str:
    if not diagnosis.findings:
        return "<p>Nothing out of the ordinary.</p>"
    rows = "".join(
        f"<tr><td>{escape(one.severity)}</td><td><code>{escape(one.code)}</code></td><td>{escape(one.message)}"
        f'<div class="figures">{escape(", ".join(f"{name} {value}" for name, value in one.evidence.items()))}</div>'
        "</td></tr>"
        for one in diagnosis.findings
    )
    return f"<table><tr><th>severity</th><th>code</th><th>what</th></tr>{rows}</table>"
