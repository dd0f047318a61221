"""Colors and axes, the same in every image and plot."""

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

Color = tuple[float, float, float]

# Distinguishable with every kind of color vision, in an order that keeps neighbors apart (Okabe and Ito, 2008). Without
# their black and yellow, which vanish in photographs and on white paper.
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
# (gray, share) to mix into a hue, one after the other where there are more classes than hues.
_MIXES = ((0.0, 0.0), (1.0, 0.5), (0.0, 0.45))
GRAY = "0.35"
PALETTE: tuple[Color, ...] = tuple(
    tuple(x * (1 - share) + gray * share for x in to_rgb(hue)) for gray, share in _MIXES for hue in _HUES
)


def palette_color(index: int) -> Color:
    """Return red, green and blue in [0, 1] of a class, a run or a point, counted from 0; the colors repeat."""
    return PALETTE[index % len(PALETTE)]


def style_axes(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Set the title and the labels of axes, and draw a light grid behind the lines."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=8, color=GRAY)
    axes.set_ylabel(y, fontsize=8, color=GRAY)
    axes.tick_params(labelsize=8, color="0.7", labelcolor=GRAY)
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.8")
    axes.set_axisbelow(True)
