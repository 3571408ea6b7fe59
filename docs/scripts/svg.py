"""Draw an SVG in a light and a dark version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

SANS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Theme:
    """The colours of a drawing."""

    name: str
    text: str
    soft: str
    line: str
    card: str
    panel: str
    accent: str
    code: str


LIGHT = Theme("light", "#1f2328", "#59636e", "#b6bec8", "#ffffff", "#f3f5f8", "#3f51b5", "#eef0f8")
DARK = Theme("dark", "#e6edf3", "#9aa4af", "#4a535e", "#1a2029", "#12171e", "#9fa8ff", "#222a37")


@dataclass
class Drawing:
    """Shapes on a transparent ground; write it once its height is known."""

    theme: Theme
    width: int
    title: str
    height: int = 0
    parts: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = "", stroke: str = ""
    ) -> None:
        colour = fill or self.theme.card
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{colour}" '
            f'stroke="{stroke or self.theme.line}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        colour: str = "",
        bold: bool = False,
        mono: bool = False,
        middle: bool = False,
    ) -> None:
        anchor = ' text-anchor="middle"' if middle else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-family={quoteattr(MONO if mono else SANS)} '
            f'font-size="{size}" fill="{colour or self.theme.text}" xml:space="preserve"'
            f"{anchor}{weight}>{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through ``points`` with a head at its end."""
        path = " L".join(f"{x} {y}" for x, y in points)
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{self.theme.soft}" stroke-width="1.5" '
            'marker-end="url(#head)"/>'
        )

    def image(
        self, x: float, y: float, width: float, height: float, url: str, *, crisp: bool = False
    ) -> None:
        style = ' style="image-rendering: pixelated"' if crisp else ""
        self.parts.append(
            f'<image x="{x}" y="{y}" width="{width}" height="{height}" href="{url}"{style}/>'
        )

    def svg(self) -> str:
        head = (
            f'<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" '
            f'fill="{self.theme.soft}"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<defs>{head}</defs>",
                *self.parts,
                "</svg>\n",
            ]
        )


def write(draw: Callable[[Theme], Drawing], folder: Path, name: str) -> None:
    """Write ``<name>-light.svg`` and ``<name>-dark.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in (LIGHT, DARK):
        (folder / f"{name}-{theme.name}.svg").write_text(draw(theme).svg(), encoding="utf-8")
