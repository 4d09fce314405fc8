"""The web page around the drawing: gradio components, and what each of them changes.

Every event makes a new :class:`Session` from the last and shows it; what the choices mean is decided in :mod:`.choices`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.explorer import markup, tables
from deformable_detr.visualize.explorer.choices import Choices, at_another_picture, at_point, first_choices, on_level
from deformable_detr.visualize.explorer.drawing import draw
from deformable_detr.visualize.explorer.views import Views

MOST_THUMBNAILS = 48
START_THRESHOLD = 0.3
STAGES = [("queries (decoder)", "decoder"), ("positions (encoder)", "encoder")]
LOOKING = '<div class="empty">Looking …</div>'
NO_PICTURE = '<div class="empty">Drop a picture on the field at the left.</div>'

STAGE_EVENTS = """
element.addEventListener("click", (event) => {
  const place = explorerPoint(element, event);
  if (place) trigger("click", place);
});
"""
BUTTON_EVENTS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-index]");
  if (button) trigger("click", { index: Number(button.dataset.index) });
});
"""


@dataclass(frozen=True)
class Session:
    """What one browser tab shows."""

    path: Path | None = None
    choices: Choices | None = None


Change = Callable[..., Session]


class Page:
    """The page for one detector.

    Args:
        views: the detector and its pictures.
        title: what stands at the top.
    """

    def __init__(self, views: Views, title: str) -> None:
        self.views = views
        network = views.detector.model
        self.num_levels: int = network.flatten.level_embed.shape[0]  # type: ignore[union-attr]
        self.num_heads: int = network.decoder.layers[0].cross_attn.num_heads  # type: ignore[index, union-attr]
        self.num_layers = {"encoder": len(network.encoder.layers), "decoder": len(network.decoder.layers)}  # type: ignore[arg-type, union-attr]
        self.thumbnails = lru_cache(maxsize=2 * MOST_THUMBNAILS)(markup.thumbnail)
        with gr.Blocks(title="Deformable DETR explorer", analytics_enabled=False, fill_width=True) as self.blocks:
            self.session = gr.State(Session())
            gr.HTML(f'<div id="top"><h1>Deformable DETR explorer</h1><span>{markup.escape(title)}</span></div>')
            with gr.Row(equal_height=False):
                with gr.Column(scale=0, min_width=232, elem_id="controls"):
                    self._controls()
                with gr.Column(scale=6, min_width=440):
                    self.stage = gr.HTML(LOOKING, apply_default_css=False, elem_id="stage", js_on_load=STAGE_EVENTS)
                    gr.HTML(apply_default_css=False, value=markup.legend_html(self.num_levels))
                    self.strip = gr.HTML(apply_default_css=False, elem_id="strip", js_on_load=BUTTON_EVENTS)
                with gr.Column(scale=5, min_width=400):
                    self._panels()
            self._events()

    def _controls(self) -> None:
        layers, levels, heads = self.num_layers, range(self.num_levels), range(self.num_heads)
        self.drop = gr.File(label="Drop a picture, or click", height=46, elem_id="drop", file_types=["image"])
        self.kind = gr.Radio(
            STAGES, value="decoder", label="Look at", info="Then click in the picture.", elem_classes="chips", elem_id="kind"
        )
        self.threshold = gr.Slider(0, 1, START_THRESHOLD, step=0.01, label="Score threshold", buttons=[], elem_id="threshold")
        self.decoder_layer = gr.Slider(
            *(0, layers["decoder"], layers["decoder"]),
            **{"step": 1, "label": "Decoder layer", "buttons": [], "info": "0: before the first"},
            elem_id="decoder-layer",
        )
        self.encoder_layer = gr.Radio(
            [(str(layer), layer) for layer in range(1, layers["encoder"] + 1)],
            value=layers["encoder"],
            label="Encoder layer",
            visible=False,
            elem_classes="chips",
        )
        self.position_level = gr.Radio(
            [(str(level), level) for level in levels],
            value=min(1, self.num_levels - 1),
            label="Position on level",
            visible=False,
            elem_classes="chips",
            elem_id="position-level",
        )
        self.levels = gr.CheckboxGroup(
            [(str(level), level) for level in levels],
            value=list(levels),
            label="Points on levels",
            elem_classes="chips",
            elem_id="levels",
        )
        self.heads = gr.CheckboxGroup(
            [(str(head), head) for head in heads], value=list(heads), label="Points of heads", elem_classes="chips", elem_id="heads"
        )
        with gr.Row(elem_id="ways"):
            self.zoom = gr.Checkbox(False, label="zoom in", elem_id="zoom", min_width=90)
            self.references = gr.Checkbox(False, label="all queries", elem_id="references", min_width=100)
        with gr.Row(elem_id="save"):
            self.save_png, self.save_svg, self.save_json = (
                gr.Button(kind, size="sm", elem_id=f"save-{kind.lower()}") for kind in ("PNG", "SVG", "JSON")
            )
        self.record = gr.Textbox(visible=False)

    def _panels(self) -> None:
        self.heading = gr.HTML(apply_default_css=False, elem_id="heading")
        with gr.Tabs(elem_id="panels"):
            with gr.Tab("Where it looks"):
                gr.HTML('<h3 class="panel">Share of the attention on each level</h3>')
                self.shares = gr.HTML(apply_default_css=False, elem_id="shares")
                gr.HTML('<h3 class="panel">The heaviest points</h3>')
                self.points = gr.HTML(apply_default_css=False, elem_id="points")
            with gr.Tab("Box by box"):
                gr.HTML('<p class="quiet">What each decoder layer makes of the query\'s box and class.</p>')
                self.boxes = gr.HTML(apply_default_css=False, elem_id="boxes")
            with gr.Tab("Queries"):
                gr.HTML('<p class="quiet">All queries by their score in the last layer: click one.</p>')
                self.queries = gr.HTML(apply_default_css=False, elem_id="queries", js_on_load=BUTTON_EVENTS)
            with gr.Tab("Shapes"):
                self.journey = gr.HTML(apply_default_css=False, elem_id="journey")

    def _events(self) -> None:
        """Connect every control with what it changes."""
        shown = [
            *(self.session, self.stage, self.heading, self.shares, self.points, self.boxes, self.queries, self.strip),
            *(self.kind, self.threshold, self.decoder_layer, self.references, self.encoder_layer, self.position_level),
        ]
        private: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
        quietly = {**private, "show_progress": "hidden"}
        waiting = {**private, "show_progress": "minimal", "show_progress_on": [self.stage]}  # a large network takes seconds

        def on_input(control: Any, change: Change) -> Any:
            def handle(session: Session, value: Any) -> list[Any]:
                return self._show(change(session, value))

            return control.input(handle, [self.session, control], shown, **quietly)

        def on_click(part: gr.HTML, change: Change, progress: dict[str, Any] = quietly) -> Any:
            def handle(session: Session, event: gr.EventData) -> list[Any]:
                return self._show(change(session, event))

            return part.click(handle, [self.session], shown, **progress)

        on_input(self.kind, self._set("stage"))
        on_input(self.threshold, self._set("threshold"))
        on_input(self.decoder_layer, self._set("decoder_layer"))
        on_input(self.encoder_layer, self._set("encoder_layer"))
        on_input(self.levels, self._set("levels"))
        on_input(self.heads, self._set("heads"))
        on_input(self.references, self._set("all_references"))
        on_input(self.zoom, self._set("zoom"))
        on_input(self.position_level, self._choose_level)
        on_click(self.stage, self._click_picture)
        on_click(self.queries, self._click_query)
        dropped = self.drop.upload(self._drop, [self.session, self.drop], [*shown, self.drop], **waiting)
        started = self.blocks.load(self._start, [self.session], shown, **waiting)
        for opened in (dropped, started, on_click(self.strip, self._click_thumbnail, waiting)):
            opened.success(self._shapes, [self.session], [self.journey], **quietly)
        self.save_png.click(None, js="explorerSavePng")
        self.save_svg.click(None, js="explorerSaveSvg")
        saved = self.save_json.click(self._record, [self.session], [self.record], **quietly)
        saved.success(None, [self.record], js="explorerSaveJson")

    def _set(self, name: str) -> Change:
        """What a control does that stands for one of the choices."""

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

    def _click_picture(self, session: Session, event: gr.EventData) -> Session:
        if session.path is None or session.choices is None:
            return session
        return replace(session, choices=at_point(self.views.description(session.path).inside, session.choices, event.x, event.y))

    def _click_query(self, session: Session, event: gr.EventData) -> Session:
        return self._set("query")(self._set("stage")(session, "decoder"), event.index)

    def _click_thumbnail(self, session: Session, event: gr.EventData) -> Session:
        return self._open(session, self.views.pictures[event.index])

    def _drop(self, session: Session, file: str) -> list[Any]:
        """Show a picture that was dropped, and empty the field for the next one."""
        try:
            session = self._open(session, Path(file))
        except gr.Error as error:
            gr.Warning(error.message, title=error.title)
        return [*self._show(session), None]

    def _start(self, session: Session) -> list[Any]:
        """The first picture that can be read."""
        for path in self.views.pictures:
            try:
                return self._show(self._open(session, path))
            except gr.Error as error:
                gr.Warning(error.message, title=error.title)
        return self._show(session)

    def _open(self, session: Session, path: Path) -> Session:
        """Another picture.

        Raises:
            gr.Error: it cannot be read; the page shows the message.
        """
        try:
            inside = self.views.description(path).inside
        except (OSError, ValueError) as error:
            message = str(error).replace(str(path), path.name)
            raise gr.Error(markup.escape(message), title="This picture cannot be shown", print_exception=False) from error
        if session.choices is None:
            return Session(path, first_choices(inside, START_THRESHOLD))
        return Session(path, at_another_picture(inside, session.choices))

    def _show(self, session: Session) -> list[Any]:
        """The values of all components that follow the choices, in the order of `shown` above."""
        strip = self._strip(session.path)
        if session.path is None or session.choices is None:
            return [session, NO_PICTURE, "", "", "", "", "", strip, *[gr.skip()] * 6]
        inside, choices = self.views.description(session.path).inside, session.choices
        in_decoder = choices.stage == "decoder"
        layer = choices.decoder_layer if in_decoder else None
        return [
            session,
            draw(inside, choices),
            markup.heading_html(tables.title(inside, choices), tables.explanation(inside, choices)),
            markup.shares_html(tables.level_shares(inside, choices), choices.levels),
            markup.table_html(tables.strongest_points(inside, choices), classes=dict.fromkeys(range(4), "number")),
            markup.table_html(tables.refinement(inside, choices.query), classes=dict.fromkeys((2, 4), "number"), marked=layer),
            markup.queries_html(tables.queries(inside), choices.query),
            strip,
            choices.stage,
            *[gr.update(visible=in_decoder)] * 3,
            gr.update(visible=not in_decoder),
            gr.update(visible=not in_decoder, value=inside.level_and_cell(choices.position)[0]),
        ]

    def _strip(self, chosen: Path | None) -> str:
        pictures = self.views.pictures
        shown = [(path.name, self.thumbnails(path), path == chosen) for path in pictures[:MOST_THUMBNAILS]]
        return markup.thumbnails_html(shown, len(pictures))

    def _shapes(self, session: Session) -> str:
        if session.path is None:
            return ""
        description = self.views.description(session.path)
        journey = markup.table_html(tables.journey(description), classes={2: "shape"})
        costs = markup.table_html(tables.costs(description), classes=dict.fromkeys((1, 2, 3), "number"))
        return (
            f'<div class="scrolling"><h3 class="panel">The journey of the picture</h3>{journey}'
            f'<h3 class="panel">What the parts cost</h3>{costs}</div>'
        )

    def _record(self, session: Session) -> str:
        if session.path is None or session.choices is None:
            raise gr.Error("There is no picture yet.", print_exception=False)
        shown = tables.record(self.views.description(session.path).inside, session.choices, session.path.name)
        return json.dumps(shown, indent=1)


def serve(page: Page, host: str, port: int | None, *, open_browser: bool = False) -> str:
    """Start the server in the background and give back the address of the page.

    Args:
        page: what is served.
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
        return page.blocks.launch(
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
            css=style + _level_colors(page.num_levels),
            theme=theme,
        )[1]
    except OSError as error:
        raise OSError(f"cannot listen on port {port or 'from 7860 on'} of {host}; choose others with --port and --host") from error


def _level_colors(num_levels: int) -> str:
    """The check boxes of the levels in the colours of their points."""
    return "".join(
        f"#levels label:nth-of-type({level + 1}) {{ --checkbox-background-color-selected: {level_color(level)}; "
        f"--checkbox-border-color-selected: {level_color(level)}; border-bottom: 3px solid {level_color(level)}; }}\n"
        for level in range(num_levels)
    )
