"""The laws that measured points follow, and the plots of both for docs/performance.md."""

import io
from pathlib import Path
from typing import Any, Callable, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of its backend
import numpy as np  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402
from PIL import Image  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "plots"


class Law(NamedTuple):
    """`a + b · n`, by least squares of the deviations as shares of what was measured: a small point counts as a large one."""

    a: float
    b: float
    #: The part of the spread of what was measured that the law explains, weighted alike.
    r2: float
    #: The largest deviation, as a share of what was measured.
    off: float

    def at(self, n: Any) -> Any:
        return self.a + self.b * n

    def text(self, unit: str) -> str:
        a, b = (f"{float(f'{abs(value):.3g}'):,g}" for value in self[:2])
        return f"{'−' * (self.a < 0)}{a} {'−' if self.b < 0 else '+'} {b} · n {unit}"


class Curve(NamedTuple):
    """Values above zero, by n."""

    name: str
    points: dict[int, float]
    unit: str

    @property
    def law(self) -> Law:
        n, values = (np.array(list(each), dtype=float) for each in (self.points, self.points.values()))
        b, a = np.polyfit(n, values, 1, w=1 / values)
        deviations = (a + b * n - values) / values
        mean = np.average(values, weights=values**-2)
        spread = (((values - mean) / values) ** 2).sum()
        return Law(float(a), float(b), float(1 - (deviations**2).sum() / spread), float(np.abs(deviations).max()))


def draw(
    axes: Any,
    curves: list[Curve],
    title: str,
    x: str,
    y: str,
    shown: Callable[[Any, Any], Any] = lambda n, value: value,
    is_doubling: bool = True,
) -> None:
    """Points and the lines of their laws. `shown` makes of n and a value what the axis is of. `is_doubling` has every
    doubling be a step on both axes."""
    for curve in curves:
        n = np.array(list(curve.points), dtype=float)
        (marks,) = axes.plot(n, shown(n, np.array(list(curve.points.values()))), "o", markersize=4)
        between = np.geomspace(n[0], n[-1], 200) if is_doubling else n
        law = curve.law
        label = f"{curve.name}\n{law.text(curve.unit)}, R² {law.r2:.3f}"
        axes.plot(between, shown(between, law.at(between)), "-", linewidth=1, color=marks.get_color(), label=label)
    if is_doubling:
        ticks = sorted({n for curve in curves for n in curve.points})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in "25" else "")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=6.5)


def figure(name: str, panels: list[Callable[[Any], None]]) -> None:
    """A file of panels beside each other, each drawn by a function of its axes."""
    made, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), squeeze=False)
    for panel, place in zip(panels, axes[0]):
        panel(place)
    made.tight_layout()
    drawn = io.BytesIO()
    made.savefig(drawn, dpi=100)
    plt.close(made)
    FOLDER.mkdir(exist_ok=True)
    # In few colours and without the library's version: small files, the same for the same points.
    Image.open(drawn).convert("RGB").quantize(64).save(FOLDER / f"scale-{name}.png", optimize=True)
