"""The report of a comparison: one page that needs no network, images, and tables."""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import ConfigError
from ..files import write_text_whole
from ..plain import finite
from ..results import RunResult
from .drawing import Styles, as_plotly, save_images
from .figures import Figure, figures_of
from .methods import read_method
from .store import read_grid
from .summary import (
    Row,
    asked_density,
    head_of,
    metric_of,
    read_cells,
    rows_of,
    words_of,
    write_tables,
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem; }
table { border-collapse: collapse; font-size: 13px; } .wide { overflow-x: auto; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left; }
.best { font-weight: 700; } .second { text-decoration: underline; } .note { color: #555; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
"""

_SCRIPT = """
window.errors = [];
window.addEventListener("error", event => window.errors.push(event.message));
function draw() {
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const all = Object.entries(specs).map(([id, spec]) =>
    Plotly.newPlot(id, spec.data, spec.layout, {responsive: true, displaylogo: false}));
  Promise.all(all).catch(error => window.errors.push(String(error))).finally(() => {
    document.documentElement.dataset.errors = window.errors.join("; ");
    document.documentElement.dataset.drawn = document.querySelectorAll("figure .main-svg").length > 0
      ? document.querySelectorAll("figure .js-plotly-plot").length : 0;
  });
}
window.addEventListener("load", draw);
"""


def write_report(folder: Path, metric: str | None = None, density: float | None = None) -> Path:
    """Write ``report.html``, ``figures/`` and the tables of the comparison in ``folder``; returns the page.

    Args:
        metric: of tables and figures; None takes the metric that models were chosen by.
        density: of the figures that show single runs; None takes the one nearest to 0.1.

    Raises:
        ConfigError: the folder holds no comparison, or nothing of it is finished, or there is no such metric or
            density.
    """
    if not (folder / "grid.json").is_file():
        raise ConfigError(
            f"'{folder}' is no comparison; allowed is a folder that 'recbole-dsl compare' has made."
        )
    cells = {key: result for key, result in read_cells(folder).items() if result.test_result}
    if not cells:
        raise ConfigError(f"'{folder}' has no finished cell; allowed is a comparison that has one.")
    metric = metric_of(cells, metric)
    shown = _density(cells, density)
    grid = read_grid(folder)
    rows = rows_of(cells, grid["methods"], metric)
    write_tables(folder, rows)
    methods = [row.method for row in rows] + [result.method for result in cells.values()]
    styles = Styles(list(dict.fromkeys(methods)))  # learning is drawn of those without the metric, too
    sections: dict[tuple[str, str], list[Figure]] = {}
    for dataset, model in dict.fromkeys((row.dataset, row.model) for row in rows):
        own = {k: r for k, r in cells.items() if (r.dataset, r.model) == (dataset, model)}
        mine = [row for row in rows if (row.dataset, row.model) == (dataset, model)]
        sections[dataset, model] = figures_of(mine, own, shown)
    _save_images(folder / "figures", sections, styles)
    page = folder / "report.html"
    write_text_whole(page, _page(folder, grid, rows, cells, sections, styles))
    return page


def _density(cells: Mapping[str, RunResult], density: float | None) -> float:
    known = sorted({d for key, result in cells.items() if (d := asked_density(key, result)) is not None})
    if density is not None and density not in known:
        raise ConfigError(
            f"density={density:g} is in no cell; allowed are {', '.join(f'{d:g}' for d in known)}."
        )
    return density or min(known, key=lambda d: abs(d - 0.1), default=1.0)


def _save_images(folder: Path, sections: Mapping[tuple[str, str], Sequence[Figure]], styles: Styles) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print("No PNG and SVG figures: matplotlib is not installed (pip install 'recbole-dsl[report]').")
        return
    folder.mkdir(exist_ok=True)
    for (dataset, model), figures in sections.items():
        for figure in figures:
            save_images(figure, styles, folder, f"{dataset}-{model.replace(':', '.')}-{figure.key}")


def _page(
    folder: Path,
    grid: Mapping[str, Any],
    rows: Sequence[Row],
    cells: Mapping[str, RunResult],
    sections: Mapping[tuple[str, str], Sequence[Figure]],
    styles: Styles,
) -> str:
    from plotly.offline import get_plotlyjs

    specs: dict[str, Any] = {}
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_text(folder.name)}</title><style>{_STYLE}</style>",
        f"<script>{get_plotlyjs()}</script><script>{_SCRIPT}</script></head><body>",
        f"<h1>{_text(folder.resolve().name)}</h1>",
        _what_was_run(grid, cells),
        "<h2>Results</h2>",
        _note(rows),
        _table(rows, cells),
    ]
    for (dataset, model), figures in sections.items():
        parts.append(f"<h2>{_text(model)} on {_text(dataset)}</h2>")
        for figure in figures:
            name = f"f{len(specs)}"
            specs[name] = as_plotly(figure, styles)
            parts.append(
                f"<figure><figcaption>{_text(figure.title)}</figcaption><div id='{name}'></div></figure>"
            )
    parts += [_unfinished(folder), _json("figures", specs), "</body></html>"]
    return "\n".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value))


def _json(name: str, content: object) -> str:
    """Data for the page's script, in which nothing can end the element; null for what is not finite, a gap."""
    text = json.dumps(finite(content, lambda gap: None), allow_nan=False).replace("<", "\\u003c")
    return f"<script type='application/json' id='{name}'>{text}</script>"


def _machine(told: Mapping[str, Any]) -> str:
    """Processor, threads and versions of a run."""
    commit, threads = told.get("commit") or "no checkout", told["threads"]
    return (
        f"{told.get('processor')}, {threads} thread{'' if threads == 1 else 's'}, torch {told['torch']}, "
        f"RecBole {told['recbole']}, recbole_dsl {told['recbole_dsl']} ({commit})"
    )


def _what_was_run(grid: Mapping[str, Any], cells: Mapping[str, RunResult]) -> str:
    machines = dict.fromkeys(_machine(result.environment) for result in cells.values())
    told = [
        f"<p>{len(cells)} finished cells. Run on: {_text('; '.join(machines))}.</p>",
        "<h2>Methods</h2><ul>",
    ]
    for name in grid["methods"]:
        try:
            about = read_method(name).about
        except ConfigError:  # a method file of one's own that is elsewhere now
            about = "A method file of one's own."
        told.append(f"<li><b>{_text(Path(name).stem)}</b>: {_text(about)}</li>")
    settings = ", ".join(
        f"{key}={value}" for key, value in sorted(grid["settings"].items()) if key != "data_path"
    )
    told.append(f"</ul><p>Settings of all cells: {_text(settings or 'the defaults')}.</p>")
    how = grid["tuned"].get("how")
    if isinstance(how, str):
        tuned = f"Tuned: {how}."
    elif how:
        space = ", ".join(f"{name} {values}" for name, values in how["space"].items())
        tuned = (
            f"Tuned: {how['trials']} trials for every method ({space}) at density {how['density']:g} with seed "
            f"{how['seed']}, chosen by {how['metric']} on validation."
        )
    else:
        tuned = "Nothing was tuned" + (", but settings were given by method." if grid["tuned"] else ".")
    chosen = grid["tuned"].get("chosen")
    told.append(f"<p>{_text(tuned)}</p>")
    if chosen:
        told.append(f"<p class='note'>Chosen: {_text(json.dumps(chosen))}</p>")
    return "\n".join(told)


def _note(rows: Sequence[Row]) -> str:
    seeds = ", ".join(str(n) for n in sorted({len(row.scores) for row in rows}))
    return (
        f"<p class='note'>Test metric: mean ± sample standard deviation over seeds ({seeds}). Of the methods "
        "at one density the best is bold, the second best underlined. p: two-sided paired t-test over seeds "
        "against dense, and against narrow at the same density; with few seeds it finds large differences "
        "only. Training MACs, MACs per user and bytes are the three costs of the paper, seconds and peak bytes "
        "of the process ours. Methods that start from a dense model are charged for it. Each seed links to "
        "its JSON.</p>"
    )


def _table(rows: Sequence[Row], cells: Mapping[str, RunResult]) -> str:
    head = "".join(f"<th>{_text(word)}</th>" for word in head_of(rows))
    lines = []
    for row in rows:
        words = [_text(word) for word in words_of(row)]
        kind = {1: "best", 2: "second"}.get(row.place or 0)
        if kind:
            words[4] = f"<span class='{kind}'>{words[4]}</span>"
        links = [
            f"<a href='cells/{quote(key)}.json'>{result.seed}</a>"
            for key, result in cells.items()
            if (result.dataset, result.model, result.method, asked_density(key, result))
            == (row.dataset, row.model, row.method, row.density)
        ]
        words[-1] = " ".join(links)
        lines.append("<tr>" + "".join(f"<td>{word}</td>" for word in words) + "</tr>")
    return (
        f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _unfinished(folder: Path) -> str:
    told = []
    for state in ("failed", "cancelled"):
        for path in sorted((folder / state).glob("*.json")):
            try:
                error = json.loads(path.read_text(encoding="utf-8"))["error"]
            except (OSError, ValueError, KeyError, TypeError):
                error = "its note cannot be read"
            told.append(f"<li><b>{_text(path.stem)}</b> {state}: {_text(error)}</li>")
    return f"<h2>Not finished</h2><ul>{''.join(told)}</ul>" if told else ""
