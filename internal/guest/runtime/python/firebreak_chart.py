"""What a figure of matplotlib shows, as data, in the form E2B's clients know.

    firebreak_chart.of(figure)      # after it was drawn; None: nothing to say

Only what matplotlib makes public is looked at, and nothing is imported that the
figure did not import before. An axes with several kinds of plots, or one that is
not known here, has type "unknown" and no elements: the picture remains.
"""

import re
import sys

MAX_POINTS = 20_000  # of a figure; the picture shows more
UNIT = re.compile(r"\((.+?)\)|\[(.+?)\]")


class TooMany(Exception):
    pass


def of(figure):
    axes = [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    points = Points()
    try:
        if len(axes) > 1:
            return {"type": "superchart", "title": figure.get_suptitle() or None, "elements": [chart(ax, points) for ax in axes]}
        return chart(axes[0], points) if axes else None
    except TooMany:
        return None


class Points:
    """Counts what is told, so that one figure says no more than a message holds."""

    def __init__(self):
        self.left = MAX_POINTS

    def take(self, values):
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        self.left -= len(values)
        if self.left < 0:
            raise TooMany
        return values


class Axis:
    """One of the two axes of a plot: its scale, and what its numbers mean."""

    def __init__(self, axis):
        self.axis = axis
        kind = type(axis.get_major_formatter())
        locator = type(axis.get_major_locator()).__module__
        self.dates = locator == "matplotlib.dates"
        self.periods = getattr(axis, "freq", None) if locator.startswith("pandas.") else None
        self.labels = [label.get_text() for label in axis.get_ticklabels()]
        at = axis.get_ticklocs()
        at = at.tolist() if hasattr(at, "tolist") else list(at)
        # Labels that somebody gave, rather than the numbers they stand at.
        named = kind.__name__ in ("StrCategoryFormatter", "FixedFormatter", "FuncFormatter") and axis.get_scale() == "linear"
        self.names = list(zip(at, self.labels)) if named and not self.dates else []
        self.ticks = [self.value(v) for v in at]

    def scale(self):
        if self.dates or self.periods is not None:
            return "datetime"
        if any(label and not number(label) for _, label in self.names):
            return "categorical"
        return self.axis.get_scale()

    def label(self):
        return self.axis.get_label_text() or None

    def unit(self):
        found = UNIT.search(self.axis.get_label_text())
        return (found.group(1) or found.group(2)) if found else None

    def value(self, v):
        """Return what a position means: a date, or the number itself."""
        if isinstance(v, (int, float)) and not isinstance(v, bool):
            if v - v != 0:
                return None  # JSON has neither NaN nor infinity
            if self.dates:
                return sys.modules["matplotlib.dates"].num2date(v).replace(tzinfo=None).isoformat()
            if self.periods is not None:
                return sys.modules["pandas"].Period(ordinal=int(v), freq=self.periods).start_time.isoformat()
            return v
        if v is None or isinstance(v, (str, bool)):
            return v
        v = getattr(v, "start_time", v)  # of a Period
        return v.isoformat() if hasattr(v, "isoformat") else str(v)

    def name(self, v):
        """Return the label of what stands at v: that of the nearest tick that has one."""
        if not self.names:
            v = self.value(v)
            return v if isinstance(v, str) else "%.6g" % v if v is not None else ""
        return min(self.names, key=lambda tick: abs(tick[0] - v))[1]


def number(text):
    try:
        float(text.replace("\u2212", "-"))  # matplotlib's minus
    except ValueError:
        return False
    return True


def chart(ax, points):
    for kind in (pie, bar, box, scatter, line):
        told = kind(ax, points)
        if told is not None:
            return dict(told, title=ax.get_title() or None)
    return {"type": "unknown", "title": ax.get_title() or None, "elements": []}


def called(artist, what, at):
    """Return the label of an artist; matplotlib's own begin with an underscore."""
    label = str(artist.get_label() or "")
    return "%s %d" % (what, at) if not label or label.startswith("_") else label


def planar(kind, x, y, elements):
    return {"type": kind, "x_label": x.label(), "y_label": y.label(), "x_unit": x.unit(), "y_unit": y.unit(), "elements": elements}


def pointed(kind, x, y, elements):
    return dict(planar(kind, x, y, elements), x_ticks=x.ticks, x_tick_labels=x.labels, x_scale=x.scale(),
                y_ticks=y.ticks, y_tick_labels=y.labels, y_scale=y.scale())


def classes(artists):
    return {type(artist).__name__ for artist in artists}


def lines_of(ax):
    """Return the lines that are data: axhline and its like cross the plot at a height."""
    return [l for l in ax.lines if all(l.get_transform().contains_branch_seperately(ax.transData))]


def pie(ax, points):
    if classes(ax.patches) != {"Wedge"} or lines_of(ax) or ax.collections:
        return None
    return {"type": "pie", "elements": [{"label": str(w.get_label() or ""), "angle": round(abs(w.theta2 - w.theta1), 6), "radius": w.r} for w in ax.patches]}


def bar(ax, points):
    """Bars, with their error bars, and nothing else."""
    groups = [c for c in ax.containers if type(c).__name__ == "BarContainer"]
    own = {id(b) for g in groups for b in g}
    for c in ax.containers:
        if type(c).__name__ == "ErrorbarContainer":
            data, caps, bars = c.lines
            own.update(id(a) for a in (data, *caps, *bars))
    if not groups or any(id(a) not in own for a in (*ax.patches, *lines_of(ax), *ax.collections)):
        return None
    x, y = Axis(ax.xaxis), Axis(ax.yaxis)
    elements = []
    for at, group in enumerate(groups):
        upright = getattr(group, "orientation", None) != "horizontal"
        for b in points.take(group):
            if upright:
                name, value = x.name(b.get_x() + b.get_width() / 2), y.value(float(b.get_height()))
            else:
                name, value = y.name(b.get_y() + b.get_height() / 2), x.value(float(b.get_width()))
            elements.append({"label": name, "group": called(group, "Group", at), "value": value})
    if not upright:
        x, y = y, x  # x is what the bars stand for
    return planar("bar", x, y, elements)


def scatter(ax, points):
    if classes(ax.collections) != {"PathCollection"} or lines_of(ax) or ax.patches:
        return None
    x, y = Axis(ax.xaxis), Axis(ax.yaxis)
    return pointed("scatter", x, y, [{"label": called(c, "Scatter", at), "points": pairs(x, y, points.take(c.get_offsets()))} for at, c in enumerate(ax.collections)])


def line(ax, points):
    """Lines; what is drawn behind them, as bands and filled areas, is left out."""
    lines = lines_of(ax)
    if not lines or ax.containers or classes(ax.collections) - {"PolyCollection", "FillBetweenPolyCollection"}:
        return None
    x, y = Axis(ax.xaxis), Axis(ax.yaxis)
    return pointed("line", x, y, [{"label": called(l, "Line", at), "points": pairs(x, y, zip(points.take(l.get_xdata()), points.take(l.get_ydata())))}
                                  for at, l in enumerate(lines)])


def pairs(x, y, values):
    return [[x.value(a), y.value(b)] for a, b in values]


def box(ax, points):
    """Box plots, whose boxes are patches or closed lines: known by their shape alone."""
    if ax.collections or ax.containers or classes(ax.patches) - {"PathPatch"}:
        return None
    lines = lines_of(ax)
    closed = [l for l in lines if len(l.get_xdata()) >= 5 and ends_meet(l)]
    shapes = [p.get_path().vertices.T.tolist() for p in ax.patches] + [plain(l) for l in closed]
    rest = [l for l in lines if l not in closed]
    if not shapes or len(rest) < 3 * len(shapes):
        return None
    for upright in (True, False):
        boxes = [Box(*shape) if upright else Box(*shape[::-1]) for shape in shapes]
        if all(place(boxes, l, upright) for l in rest) and all(b.whole() for b in boxes):
            x, y = Axis(ax.xaxis), Axis(ax.yaxis)
            if not upright:
                x, y = y, x  # x is what the boxes stand for
            return planar("box_and_whisker", x, y, [b.told(x, points) for b in boxes])
    return None


def plain(l):
    return [l.get_xdata(orig=False).tolist(), l.get_ydata(orig=False).tolist()]


def ends_meet(l):
    across, along = plain(l)
    return across[0] == across[-1] and along[0] == along[-1]


def place(boxes, l, upright):
    """Give a line to the box it belongs to; False if there is none."""
    across, along = plain(l) if upright else plain(l)[::-1]
    for b in boxes:
        if all(b.left <= a <= b.right for a in across):
            return b.take(across, along, l.get_linestyle() in ("None", "none", " ", ""))
    return False


class Box:
    """A box and what belongs to it; its values grow along, it stands across."""

    def __init__(self, across, along):
        self.left, self.right, self.corners = min(across), max(across), along
        self.whiskers = []  # where one begins, which is at the box, and ends
        self.flat, self.marks = [], []

    def take(self, across, along, marks):
        if marks:  # outliers, or a mean
            self.marks += along
        elif len(along) != 2:
            return False
        elif across[0] == across[1]:
            self.whiskers.append(along)
            return along[0] in self.corners
        elif along[0] == along[1]:  # a cap, the median or a mean
            self.flat.append(along[0])
        return True

    def median(self):
        """Return where the median is: it is drawn after the two caps, if those are there, and before a mean."""
        return self.flat[2 if len(self.flat) > 2 else 0]

    def whole(self):
        return len(self.whiskers) == 2 and bool(self.flat)

    def told(self, axis, points):
        (low, least), (high, most) = self.whiskers  # drawn in this order
        outliers = [m for m in points.take(self.marks) if m < least or m > most]
        return {"label": axis.name((self.left + self.right) / 2), "min": least, "first_quartile": low, "median": self.median(),
                "third_quartile": high, "max": most, "outliers": outliers}
