"""The web page and its server: every event makes a new :class:`Session` from the last one and shows it.

:mod:`.components` lays the controls out; :mod:`.choices` decides what a choice means.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import escape

from deformable_detr.data.images import read_image
from deformable_detr.inference.predictor import Predictor
from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.explorer import tables
from deformable_detr.visualize.explorer.choices import Choices, at_another_image, at_point, first_choices, on_level
from deformable_detr.visualize.explorer.components import PARTS, START_THRESHOLD, Components
from deformable_detr.visualize.explorer.drawing import draw
from deformable_detr.visualize.inside.description import Description, describe
from deformable_detr.visualize.pages.page import embed_image

KEPT = 3
"""Forward passes that stay in memory; one of the full model at 800 pixels takes some hundred megabytes."""

MOST_THUMBNAILS = 48
THUMBNAIL_SIDE = 112
NO_IMAGE = '<div class="empty">Drop an image on the field at the left.</div>'

PRIVATE: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
QUIETLY: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}


@dataclass(frozen=True)
class Session:
    """What one browser tab shows; None in its place: no image yet."""

    path: Path
    choices: Choices


Change = Callable[..., Session]


class Page:
    """The page for one detector.

    Args:
        detector: any.
        images: those that the page offers; others can be dropped on it.
        title: text at the top of the page.
    """

    def __init__(self, detector: Predictor, images: Sequence[Path], title: str) -> None:
        self.detector, self.images = detector, list(images)
        self.description = lru_cache(maxsize=KEPT)(self._describe)
        network = detector.model
        self.num_levels: int = network.flatten.level_embed.shape[0]  # type: ignore[union-attr]
        num_heads: int = network.decoder.layers[0].cross_attn.num_heads  # type: ignore[index, union-attr]
        num_layers = {"encoder": len(network.encoder.layers), "decoder": len(network.decoder.layers)}  # type: ignore[arg-type, union-attr]
        with gr.Blocks(title="Deformable DETR explorer", analytics_enabled=False, fill_width=True) as self.blocks:
            self.session = gr.State(None)
            self.parts = Components(title, num_levels=self.num_levels, num_heads=num_heads, num_layers=num_layers)
            self._connect_choices()
            self._connect_images()
            self._connect_saving()

    def serve(self, host: str, port: int | None, *, open_browser: bool = False) -> str:
        """Start the server in the background and give back the address of the page.

        Args:
            host: the address to listen on; `127.0.0.1` is reached from this machine alone.
            port: None: the first free one from 7860 on.
            open_browser: show the page in the default browser.

        Raises:
            OSError: the port is taken, or the address is not this machine's.
        """
        files = resources.files("deformable_detr.visualize.explorer")
        script, style = (files.joinpath(f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("js", "css"))
        theme = gr.themes.Default(
            primary_hue="sky",
            neutral_hue="slate",
            radius_size="md",
            spacing_size="sm",
            font=["system-ui", "sans-serif"],  # nothing is fetched
            font_mono=["ui-monospace", "monospace"],
        )
        try:
            return self.blocks.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                show_error=True,
                footer_links=[],
                head=f"<script>{script}</script>",
                css=style + _level_colors(self.num_levels),
                theme=theme,
            )[1]
        except OSError as error:
            raise OSError(
                f"cannot listen on port {port or 'from 7860 on'} of {host}; choose others with --port and --host"
            ) from error

    def _describe(self, path: Path) -> Description:
        """The stages of an image's forward pass; what was captured on the way is in `.inside`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not an image.
        """
        return describe(self.detector.model, read_image(path, bit_depth=self.detector.metadata.bit_depth), num_detections=1)

    def _shown(self) -> list[Any]:
        """The components that follow the choices, in the order of the values of :meth:`_show`."""
        parts = self.parts
        return [
            *(self.session, parts.stage, parts.heading, parts.shares, parts.points, parts.boxes, parts.queries, parts.strip),
            *(parts.kind, parts.threshold, parts.decoder_layer, parts.references, parts.encoder_layer, parts.position_level),
        ]

    def _connect_choices(self) -> None:
        """Controls and clicks that change what is looked at in the image."""
        parts = self.parts
        for control, name in (
            *((parts.kind, "stage"), (parts.threshold, "threshold")),
            *((parts.decoder_layer, "decoder_layer"), (parts.encoder_layer, "encoder_layer")),
            *((parts.levels, "levels"), (parts.heads, "heads"), (parts.references, "all_references"), (parts.zoom, "zoom")),
        ):
            self._on_input(control, self._set(name))
        self._on_input(parts.position_level, self._choose_level)
        self._on_click(parts.stage, self._click_image)
        self._on_click(parts.queries, self._click_query)

    def _connect_images(self) -> None:
        """What opens another image; the shapes follow once it is shown."""
        waiting = {**PRIVATE, "show_progress": "minimal", "show_progress_on": [self.parts.stage]}  # a large model takes seconds
        drop = self.parts.drop
        dropped = drop.upload(self._drop, [self.session, drop], [*self._shown(), drop], **waiting)
        started = self.blocks.load(self._start, [self.session], self._shown(), **waiting)
        clicked = self.parts.strip.click(self._click_thumbnail, [self.session], self._shown(), **waiting)
        for opened in (dropped, started, clicked):
            opened.success(self._shapes, [self.session], [self.parts.journey], **QUIETLY)

    def _connect_saving(self) -> None:
        parts = self.parts
        parts.save_png.click(None, js="explorerSavePng")
        parts.save_svg.click(None, js="explorerSaveSvg")
        saved = parts.save_json.click(self._record, [self.session], [parts.record], **QUIETLY)
        saved.success(None, [parts.record], js="explorerSaveJson")

    def _on_input(self, control: Any, change: Change) -> None:
        def handle(session: Session | None, value: Any) -> list[Any]:
            return self._show(session and change(session, value))

        control.input(handle, [self.session, control], self._shown(), **QUIETLY)

    def _on_click(self, part: gr.HTML, change: Change) -> None:
        def handle(session: Session | None, event: gr.EventData) -> list[Any]:
            return self._show(session and change(session, event))

        part.click(handle, [self.session], self._shown(), **QUIETLY)

    def _set(self, name: str) -> Change:
        """The effect of a control that sets one of the choices."""

        def change(session: Session, value: Any) -> Session:
            value = tuple(sorted(value)) if isinstance(value, list) else value
            return replace(session, choices=replace(session.choices, **{name: value}))

        return change

    def _choose_level(self, session: Session, level: int) -> Session:
        return replace(session, choices=on_level(self.description(session.path).inside, session.choices, level))

    def _click_image(self, session: Session, event: gr.EventData) -> Session:
        return replace(session, choices=at_point(self.description(session.path).inside, session.choices, event.x, event.y))

    def _click_query(self, session: Session, event: gr.EventData) -> Session:
        return replace(session, choices=replace(session.choices, stage="decoder", query=event.index))

    def _click_thumbnail(self, session: Session | None, event: gr.EventData) -> list[Any]:
        return self._show(self._open(session, self.images[event.index]))

    def _drop(self, session: Session | None, file: str) -> list[Any]:
        """Show an image that was dropped, and empty the field for the next one."""
        return [*self._show(self._open(session, Path(file))), None]

    def _start(self, session: Session | None) -> list[Any]:
        """The first image that can be read."""
        for path in self.images:
            session = self._open(session, path)
            if session is not None:
                break
        return self._show(session)

    def _open(self, session: Session | None, path: Path) -> Session | None:
        """Another image; where it cannot be read, the page says so and stays as it is."""
        try:
            inside = self.description(path).inside
        except (OSError, ValueError) as error:
            message = str(error).replace(str(path), path.name)
            gr.Warning(str(escape(message)), title="This image cannot be shown")
            return session
        return Session(path, at_another_image(inside, session.choices) if session else first_choices(inside, START_THRESHOLD))

    def _show(self, session: Session | None) -> list[Any]:
        """The values of all components that follow the choices, in the order of :meth:`_shown`."""
        shown = [
            (path.name, thumbnail(path), session is not None and path == session.path) for path in self.images[:MOST_THUMBNAILS]
        ]
        strip = PARTS.thumbnails(shown, len(self.images))
        if session is None:
            return [session, NO_IMAGE, "", "", "", "", "", strip, *[gr.skip()] * 6]
        inside, choices = self.description(session.path).inside, session.choices
        in_decoder = choices.stage == "decoder"
        layer = choices.decoder_layer if in_decoder else None
        return [
            session,
            draw(inside, choices),
            PARTS.heading(tables.title(inside, choices), tables.explanation(inside, choices)),
            PARTS.shares(tables.level_shares(inside, choices), choices.levels),
            PARTS.table(tables.strongest_points(inside, choices), dict.fromkeys(range(4), "number")),
            PARTS.table(tables.refinement(inside, choices.query), dict.fromkeys((2, 4), "number"), layer),
            PARTS.queries(tables.queries(inside), choices.query),
            strip,
            choices.stage,
            *[gr.update(visible=in_decoder)] * 3,
            gr.update(visible=not in_decoder),
            gr.update(visible=not in_decoder, value=inside.level_and_cell(choices.position)[0]),
        ]

    def _shapes(self, session: Session | None) -> str:
        if session is None:
            return ""
        description = self.description(session.path)
        return PARTS.shapes(tables.journey(description), tables.costs(description))

    def _record(self, session: Session | None) -> str:
        if session is None:
            raise gr.Error("There is no image yet.", print_exception=False)
        shown = tables.record(self.description(session.path).inside, session.choices, session.path.name)
        return json.dumps(shown, indent=1)


@lru_cache(maxsize=2 * MOST_THUMBNAILS)
def thumbnail(path: Path) -> str | None:
    """The `data:` address of a small version of an image; None where it cannot be read."""
    try:
        return embed_image(read_image(path), longest=THUMBNAIL_SIDE)
    except (OSError, ValueError):
        return None


def _level_colors(num_levels: int) -> str:
    """Check boxes of the levels in the colours of their points."""
    return "".join(
        f"#levels label:nth-of-type({level + 1}) {{ --checkbox-background-color-selected: {level_color(level)}; "
        f"--checkbox-border-color-selected: {level_color(level)}; border-bottom: 3px solid {level_color(level)}; }}\n"
        for level in range(num_levels)
    )
