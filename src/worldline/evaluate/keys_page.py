"""Keys asked for against keys read back from the frames, as tables of the page."""

from __future__ import annotations

from worldline.evaluate.figures import KEYED, Rows, key_counts
from worldline.evaluate.metrics.keys import KEY_AXES

NAMES = {"turn": ("left", "none", "right"), "forward": ("back", "none", "ahead"), "strafe": ("left", "none", "right")}


def key_tables(rows: Rows) -> str:
    """A table an axis: share read of every key held, of the model and, small, of the replay; nothing without episodes."""
    model, replay = ([s for s in rows.get(r, {}).values() if KEYED(s)] for r in ("model", "replay"))
    if not model:
        return ""
    shown, ceiling = key_counts(model), key_counts(replay)
    tables = []
    for a, axis in enumerate(KEY_AXES):
        if (shown[a].sum(axis=1) > 0).sum() < 2:
            continue  # one key alone tells nothing
        heads = "".join(f"<th>{name}</th>" for name in NAMES[axis])
        body = []
        for asked, name in enumerate(NAMES[axis]):
            n, of = int(shown[a, asked].sum()), max(1, int(ceiling[a, asked].sum()))
            cells = [
                f"<td>{100 * shown[a, asked, k] / max(1, n):.0f} %<small>{100 * ceiling[a, asked, k] / of:.0f} %</small></td>"
                for k in range(3)
            ]
            body.append(f"<tr><th>{name}</th>{''.join(cells)}<td>{n}</td></tr>" if n else "")
        tables.append(
            f"<div><div class='table'><table><thead><tr><th>{axis}</th>{heads}<th>frames</th></tr></thead><tbody>{''.join(body)}"
            "</tbody></table></div></div>"
        )
    note = (
        "<p><small>Rows: the key held; columns: what the inverse-dynamics model reads from the frames; small: from the "
        "replay. S1, S2, S7.</small></p>"
    )
    return f"<h2>Keys read back</h2><div class='plots'>{''.join(tables)}</div>{note}" if tables else ""
