"""A report as one self-contained HTML file: text, tables and figures, nothing to fetch."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from bitlens._files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .92rem; }
ul.notes { color: #7a4b00; } footer { margin-top: 3rem; color: #777; font-size: .85rem; }
"""


@final
@dataclass(frozen=True)
class Table:
    """Column heads and rows of text."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes; `name` is its file name without ".png"."""

    name: str
    caption: str
    png: bytes


@final
@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then tables, pictures and notes, in this order."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Report:
    """A title, an opening paragraph, sections and a last line."""

    title: str
    opening: str
    sections: tuple[Section, ...]
    footer: str = ""


def to_html(report: Report) -> str:
    """The report as one HTML page with its figures inside; all text is escaped."""
    body = "\n".join(_section(section) for section in report.sections)
    footer = f"<footer>{html.escape(report.footer)}</footer>" if report.footer else ""
    title = html.escape(report.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{html.escape(report.opening)}</p>\n{body}\n{footer}\n</body>\n</html>\n"
    )


def to_text(table: Table) -> str:
    """The table in aligned columns for a terminal."""
    rows = (table.heads, *table.rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.caption, line(table.heads), rule, *(line(row) for row in table.rows)])


def write_report(report: Report, folder: str | Path) -> Path:
    """Write `report.html` and one PNG per figure into `folder`, made if need be; the path of the HTML file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for picture in section.pictures:
            replace_file(folder / f"{picture.name}.png", picture.png)
    path = folder / "report.html"
    replace_file(path, to_html(report).encode())
    return path


def to_png(figure: Figure, *, dots_per_inch: int = 110) -> bytes:
    """The figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
    parts += [_table(table) for table in section.tables]
    parts += [_picture(picture) for picture in section.pictures]
    if section.notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in section.notes)
        parts.append(f'<ul class="notes">{items}</ul>')
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _table(table: Table) -> str:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in table.heads)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table>\n<caption>{html.escape(table.caption)}</caption>\n<tr>{heads}</tr>\n{rows}\n</table>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = html.escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
