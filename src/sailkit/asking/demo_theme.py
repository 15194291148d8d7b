"""The colours and fonts of the demo: gradio's variables, set to the palette of the reports."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr

# Role -> colour in light and in dark mode.
_COLORS = {
    "paper": ("#fdfdfb", "#16181b"),
    "panel": ("#f5f5f1", "#1e2125"),
    "ink": ("#1a1c20", "#e7e7e3"),
    "dim": ("#5d626b", "#a2a7af"),
    "line": ("#e2e2dc", "#31353b"),
    "strong": ("#8b8f97", "#7b818a"),
    "accent": ("#1d5a9e", "#86b6ee"),
    "none": ("transparent", "transparent"),
}
# Role -> gradio's variables.
_VARIABLES = {
    "paper": "body_background_fill background_fill_primary input_background_fill input_background_fill_focus "
    "button_primary_text_color button_primary_text_color_hover checkbox_background_color",
    "panel": "background_fill_secondary button_secondary_background_fill_hover",
    "ink": "body_text_color block_title_text_color button_secondary_text_color checkbox_label_text_color "
    "checkbox_label_text_color_selected button_primary_background_fill button_primary_border_color",
    "dim": "body_text_color_subdued block_label_text_color input_placeholder_color block_info_text_color",
    "line": "border_color_primary block_border_color button_secondary_border_color",
    "strong": "input_border_color checkbox_border_color",
    "accent": "color_accent link_text_color link_text_color_hover link_text_color_visited input_border_color_focus "
    "checkbox_background_color_selected checkbox_border_color_selected button_primary_background_fill_hover",
    "none": "block_background_fill button_secondary_background_fill checkbox_label_background_fill "
    "checkbox_label_background_fill_selected",
}


def theme() -> Any:
    """Restrained colours, square corners, and fonts of the system: nothing is loaded from elsewhere."""
    base = gr.themes.Base(
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SF Mono", "Cascadia Code", "DejaVu Sans Mono", "Menlo", "Consolas", "monospace"],
        radius_size="none",
        spacing_size="sm",
    )
    known = inspect.signature(base.set).parameters
    colors = {
        name + suffix: _COLORS[role][is_dark]
        for role, names in _VARIABLES.items()
        for name in names.split()
        for is_dark, suffix in enumerate(("", "_dark"))
        if name + suffix in known
    }
    plain = dict.fromkeys(("block_shadow", "input_shadow", "input_shadow_focus", "checkbox_label_shadow"), "none")
    return base.set(**colors, **plain, block_border_width="0px", button_large_text_size="*text_md")
