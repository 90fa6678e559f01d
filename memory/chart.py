"""Curves as a picture, an SVG written by hand, for light pages and dark ones."""
import math
from xml.sax.saxutils import escape

COLOURS = (("#0072b2", "#56b4e9"), ("#d55e00", "#e69f00"))  # on light, on dark; for the colour-blind too (Okabe & Ito)
WIDTH, HEIGHT = 300, 180  # of a panel, in pixels
LEFT, TOP, STEP = 60, 100, 390  # where the first panel begins, and from one to the next


def ticks(most):
    """Round numbers from 0 to `most`, a handful of them, as floats."""
    unit = 10 ** math.floor(math.log10(most / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if most / (unit * factor) <= 6)
    return [step * i for i in range(int(most / step) + 1)]


def panel(heading, curves, left, most, across):
    """The SVG elements of a panel, as a list. curves: lists of points (x, share). most: where the x axis ends; across:
    what it counts."""
    def x(value):
        return round(left + WIDTH * value / most, 1)

    def y(share):
        return round(TOP + HEIGHT * (1 - share), 1)

    parts = [f'<text class="heading" x="{left}" y="{TOP - 14}">{escape(heading)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts += [f'<path class="grid" d="M{left} {y(share)}h{WIDTH}"/>',
                  f'<text x="{left - 8}" y="{y(share) + 4}" text-anchor="end">{share:.0%}</text>']
    parts += [f'<text x="{x(at)}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{at:g}</text>' for at in ticks(most)]
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">{escape(across)}</text>')
    for i, points in reversed(list(enumerate(curves))):  # the first on top
        line = " ".join(f"{x(at)},{y(share)}" for at, share in points)
        end, share = points[-1]
        parts += [f'<polyline class="line{i}" points="{line}"/>',
                  f'<circle class="dot{i}" cx="{x(end)}" cy="{y(share)}" r="4"/>']
    return parts


def style():
    """The style sheet: text, lines and background for light pages, and other colours for dark ones."""
    def rules(ink, faint, page, colours):
        return (f"svg{{background:{page}}}text{{fill:{ink}}}.grid{{stroke:{faint}}}" + "".join(
            f".line{i}{{stroke:{colour}}}.dot{i}{{fill:{colour}}}" for i, colour in enumerate(colours)))

    light, dark = zip(*COLOURS)
    return ("text{font:13px system-ui,sans-serif}.heading{font-weight:600}polyline{fill:none;stroke-width:2.5;"
            "stroke-linejoin:round}" + rules("#24292f", "#d8dee4", "#ffffff", light)
            + f"@media(prefers-color-scheme:dark){{{rules('#d1d7e0', '#30363d', '#0d1117', dark)}}}")


def chart(title, names, panels, across):
    """The picture, as the text of an SVG file: panels side by side, each with the same one or two curves.

    title: for those who cannot see it. names: what the legend calls the curves. panels: {heading: a list of points
    (x, share of 1) for each curve}, with some x above 0. across: what x counts.
    """
    most = max(x for curves in panels.values() for points in curves for x, _ in points)
    parts = [f'<circle class="dot{i}" cx="{LEFT + 5}" cy="{24 + 22 * i}" r="5"/>'
             f'<text x="{LEFT + 18}" y="{28 + 22 * i}">{escape(name)}</text>' for i, name in enumerate(names)]
    for i, (heading, curves) in enumerate(panels.items()):
        parts += panel(heading, curves, LEFT + STEP * i, most, across)
    width, height = STEP * len(panels), TOP + HEIGHT + 52
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">', f"<title>{escape(title)}</title>", f"<style>{style()}</style>", *parts, "</svg>\n"])
