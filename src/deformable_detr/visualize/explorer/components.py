"""The components of the web page: controls at the left, the drawing, panels at the right.

:mod:`.page` connects them with what they do; the scripts here tell it where a click was.
"""

from typing import Any

import gradio as gr

from deformable_detr.visualize.pages.page import macros

START_THRESHOLD = 0.3
PARTS = macros("explorer.html")
STAGES = [("queries (decoder)", "decoder"), ("positions (encoder)", "encoder")]
LOOKING = '<div class="empty">Looking …</div>'

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


class Components:
    """All components, made inside an open `gr.Blocks`; `num_layers` are those of `encoder` and `decoder`."""

    def __init__(self, title: str, *, num_levels: int, num_heads: int, num_layers: dict[str, int]) -> None:
        gr.HTML(PARTS.title(title))
        with gr.Row(equal_height=False):
            with gr.Column(scale=0, min_width=232, elem_id="controls"):
                self._controls(num_layers, range(num_levels), range(num_heads))
                self._ways()
            with gr.Column(scale=6, min_width=440):
                self.stage = gr.HTML(LOOKING, apply_default_css=False, elem_id="stage", js_on_load=STAGE_EVENTS)
                gr.HTML(apply_default_css=False, value=PARTS.legend(num_levels))
                self.strip = gr.HTML(apply_default_css=False, elem_id="strip", js_on_load=BUTTON_EVENTS)
            with gr.Column(scale=5, min_width=400):
                self._panels()

    def _controls(self, layers: dict[str, int], levels: range, heads: range) -> None:
        self.drop = gr.File(label="Drop an image, or click", height=46, elem_id="drop", file_types=["image"])
        self.kind = gr.Radio(
            STAGES, value="decoder", label="Look at", info="Then click in the image.", elem_classes="chips", elem_id="kind"
        )
        self.threshold = gr.Slider(0, 1, START_THRESHOLD, step=0.01, label="Score threshold", buttons=[], elem_id="threshold")
        last = layers["decoder"]
        self.decoder_layer = gr.Slider(
            0, last, last, step=1, label="Decoder layer", info="0: before the first", buttons=[], elem_id="decoder-layer"
        )
        chips: dict[str, Any] = {"elem_classes": "chips"}
        self.encoder_layer = gr.Radio(
            list(range(1, layers["encoder"] + 1)), value=layers["encoder"], label="Encoder layer", visible=False, **chips
        )
        self.position_level = gr.Radio(
            list(levels),
            value=min(1, len(levels) - 1),
            label="Position on level",
            visible=False,
            elem_id="position-level",
            **chips,
        )
        self.levels = gr.CheckboxGroup(list(levels), value=list(levels), label="Points on levels", elem_id="levels", **chips)
        self.heads = gr.CheckboxGroup(list(heads), value=list(heads), label="Points of heads", elem_id="heads", **chips)

    def _ways(self) -> None:
        """How the drawing is shown, and how it is saved."""
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
            with gr.Tab("Sampling points"):
                gr.HTML('<h3 class="panel">Attention weight per level</h3>')
                self.shares = gr.HTML(apply_default_css=False, elem_id="shares")
                gr.HTML('<h3 class="panel">The largest attention weights</h3>')
                self.points = gr.HTML(apply_default_css=False, elem_id="points")
            with gr.Tab("Box per layer"):
                gr.HTML('<p class="quiet">The query\'s box and class after each decoder layer.</p>')
                self.boxes = gr.HTML(apply_default_css=False, elem_id="boxes")
            with gr.Tab("Queries"):
                gr.HTML('<p class="quiet">All queries by their score in the last layer: click one.</p>')
                self.queries = gr.HTML(apply_default_css=False, elem_id="queries", js_on_load=BUTTON_EVENTS)
            with gr.Tab("Shapes"):
                self.journey = gr.HTML(apply_default_css=False, elem_id="journey")
