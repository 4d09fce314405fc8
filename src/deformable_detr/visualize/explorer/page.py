"""What the controls of the web page do: every event makes a new :class:`Session` from the last one and shows it.

:mod:`.components` lays the controls out; :mod:`.choices` decides what a choice means.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import escape

from deformable_detr.data.images import read_image
from deformable_detr.visualize.explorer import tables
from deformable_detr.visualize.explorer.choices import Choices, at_another_image, at_point, first_choices, on_level
from deformable_detr.visualize.explorer.components import PARTS, START_THRESHOLD, Components
from deformable_detr.visualize.explorer.drawing import draw
from deformable_detr.visualize.explorer.views import Views
from deformable_detr.visualize.pages.page import embed_image

MOST_THUMBNAILS = 48
THUMBNAIL_SIDE = 112
NO_IMAGE = '<div class="empty">Drop an image on the field at the left.</div>'

PRIVATE: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
QUIETLY: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}


@dataclass(frozen=True)
class Session:
    """What one browser tab shows."""

    path: Path | None = None
    choices: Choices | None = None


Change = Callable[..., Session]


class Page:
    """The page for one detector.

    Args:
        views: the detector and its images.
        title: text at the top of the page.
    """

    def __init__(self, views: Views, title: str) -> None:
        self.views = views
        network = views.detector.model
        self.num_levels: int = network.flatten.level_embed.shape[0]  # type: ignore[union-attr]
        num_heads: int = network.decoder.layers[0].cross_attn.num_heads  # type: ignore[index, union-attr]
        num_layers = {"encoder": len(network.encoder.layers), "decoder": len(network.decoder.layers)}  # type: ignore[arg-type, union-attr]
        self.thumbnails = lru_cache(maxsize=2 * MOST_THUMBNAILS)(thumbnail)
        with gr.Blocks(title="Deformable DETR explorer", analytics_enabled=False, fill_width=True) as self.blocks:
            self.session = gr.State(Session())
            self.parts = Components(title, num_levels=self.num_levels, num_heads=num_heads, num_layers=num_layers)
            self._connect_choices()
            self._connect_images()
            self._connect_saving()

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
        self._on_click(parts.stage, self._click_image, QUIETLY)
        self._on_click(parts.queries, self._click_query, QUIETLY)

    def _connect_images(self) -> None:
        """What opens another image; the shapes follow once it is shown."""
        waiting = {**PRIVATE, "show_progress": "minimal", "show_progress_on": [self.parts.stage]}  # a large model takes seconds
        drop = self.parts.drop
        dropped = drop.upload(self._drop, [self.session, drop], [*self._shown(), drop], **waiting)
        started = self.blocks.load(self._start, [self.session], self._shown(), **waiting)
        for opened in (dropped, started, self._on_click(self.parts.strip, self._click_thumbnail, waiting)):
            opened.success(self._shapes, [self.session], [self.parts.journey], **QUIETLY)

    def _connect_saving(self) -> None:
        parts = self.parts
        parts.save_png.click(None, js="explorerSavePng")
        parts.save_svg.click(None, js="explorerSaveSvg")
        saved = parts.save_json.click(self._record, [self.session], [parts.record], **QUIETLY)
        saved.success(None, [parts.record], js="explorerSaveJson")

    def _on_input(self, control: Any, change: Change) -> Any:
        def handle(session: Session, value: Any) -> list[Any]:
            return self._show(change(session, value))

        return control.input(handle, [self.session, control], self._shown(), **QUIETLY)

    def _on_click(self, part: gr.HTML, change: Change, progress: dict[str, Any]) -> Any:
        def handle(session: Session, event: gr.EventData) -> list[Any]:
            return self._show(change(session, event))

        return part.click(handle, [self.session], self._shown(), **progress)

    def _set(self, name: str) -> Change:
        """The effect of a control that sets one of the choices."""

        def change(session: Session, value: Any) -> Session:
            if session.choices is None:
                return session
            value = tuple(sorted(value)) if isinstance(value, list) else value
            return replace(session, choices=replace(session.choices, **{name: value}))

        return change

    def _choose_level(self, session: Session, level: int) -> Session:
        if session.path is None or session.choices is None:
            return session
        return replace(session, choices=on_level(self.views.description(session.path).inside, session.choices, level))

    def _click_image(self, session: Session, event: gr.EventData) -> Session:
        if session.path is None or session.choices is None:
            return session
        return replace(session, choices=at_point(self.views.description(session.path).inside, session.choices, event.x, event.y))

    def _click_query(self, session: Session, event: gr.EventData) -> Session:
        return self._set("query")(self._set("stage")(session, "decoder"), event.index)

    def _click_thumbnail(self, session: Session, event: gr.EventData) -> Session:
        return self._open(session, self.views.images[event.index])

    def _drop(self, session: Session, file: str) -> list[Any]:
        """Show an image that was dropped, and empty the field for the next one."""
        try:
            session = self._open(session, Path(file))
        except gr.Error as error:
            gr.Warning(error.message, title=error.title)
        return [*self._show(session), None]

    def _start(self, session: Session) -> list[Any]:
        """The first image that can be read."""
        for path in self.views.images:
            try:
                return self._show(self._open(session, path))
            except gr.Error as error:
                gr.Warning(error.message, title=error.title)
        return self._show(session)

    def _open(self, session: Session, path: Path) -> Session:
        """Another image.

        Raises:
            gr.Error: it cannot be read; the page shows the message.
        """
        try:
            inside = self.views.description(path).inside
        except (OSError, ValueError) as error:
            message = str(error).replace(str(path), path.name)
            raise gr.Error(str(escape(message)), title="This image cannot be shown", print_exception=False) from error
        if session.choices is None:
            return Session(path, first_choices(inside, START_THRESHOLD))
        return Session(path, at_another_image(inside, session.choices))

    def _show(self, session: Session) -> list[Any]:
        """The values of all components that follow the choices, in the order of :meth:`_shown`."""
        strip = self._strip(session.path)
        if session.path is None or session.choices is None:
            return [session, NO_IMAGE, "", "", "", "", "", strip, *[gr.skip()] * 6]
        inside, choices = self.views.description(session.path).inside, session.choices
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

    def _strip(self, chosen: Path | None) -> str:
        images = self.views.images
        shown = [(path.name, self.thumbnails(path), path == chosen) for path in images[:MOST_THUMBNAILS]]
        return PARTS.thumbnails(shown, len(images))

    def _shapes(self, session: Session) -> str:
        if session.path is None:
            return ""
        description = self.views.description(session.path)
        return PARTS.shapes(tables.journey(description), tables.costs(description))

    def _record(self, session: Session) -> str:
        if session.path is None or session.choices is None:
            raise gr.Error("There is no image yet.", print_exception=False)
        shown = tables.record(self.views.description(session.path).inside, session.choices, session.path.name)
        return json.dumps(shown, indent=1)


def thumbnail(path: Path) -> str | None:
    """The `data:` address of a small version of an image; None where it cannot be read."""
    try:
        return embed_image(read_image(path), longest=THUMBNAIL_SIDE)
    except (OSError, ValueError):
        return None
