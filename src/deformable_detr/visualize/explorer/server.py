"""Serve the page at an address of this machine, with its theme, style and script."""

from importlib import resources

import gradio as gr

from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.explorer.page import Page


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
    """Check boxes of the levels in the colours of their points."""
    return "".join(
        f"#levels label:nth-of-type({level + 1}) {{ --checkbox-background-color-selected: {level_color(level)}; "
        f"--checkbox-border-color-selected: {level_color(level)}; border-bottom: 3px solid {level_color(level)}; }}\n"
        for level in range(num_levels)
    )
