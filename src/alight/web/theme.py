"""The look of the page: the report's colours in a light and a dark theme, with system fonts."""

from pathlib import Path
from typing import Any

PAGE_STYLE = Path(__file__).with_name("page.css")
SANS = ("-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")

DAY = {
    "body_background_fill": "#fcfbf8",
    "body_text_color": "#1c1c1a",
    "body_text_color_subdued": "#6a6862",
    "background_fill_primary": "#fcfbf8",
    "background_fill_secondary": "#f5f3ed",
    "block_background_fill": "#fcfbf8",
    "block_border_color": "#e2dfd6",
    "block_label_background_fill": "#fcfbf8",
    "block_label_text_color": "#6a6862",
    "block_title_text_color": "#1c1c1a",
    "block_info_text_color": "#6a6862",
    "border_color_primary": "#e2dfd6",
    "border_color_accent": "#2b5c8a",
    "input_background_fill": "#ffffff",
    "input_border_color": "#cfcbc0",
    "input_border_color_focus": "#2b5c8a",
    "input_placeholder_color": "#8a877f",
    "button_primary_background_fill": "#2b5c8a",
    "button_primary_background_fill_hover": "#234b72",
    "button_primary_text_color": "#ffffff",
    "button_secondary_background_fill": "#f0ede5",
    "button_secondary_background_fill_hover": "#e6e2d8",
    "button_secondary_text_color": "#1c1c1a",
    "color_accent": "#2b5c8a",
    "color_accent_soft": "#e4ebf2",
    "slider_color": "#2b5c8a",
    "link_text_color": "#2b5c8a",
    "checkbox_background_color_selected": "#2b5c8a",
    "checkbox_border_color_selected": "#2b5c8a",
    "checkbox_label_background_fill": "#f5f3ed",
    "checkbox_label_background_fill_selected": "#e4ebf2",
    "checkbox_label_text_color": "#1c1c1a",
    "checkbox_label_text_color_selected": "#1c1c1a",
    "loader_color": "#2b5c8a",
    "table_even_background_fill": "#fcfbf8",
    "table_odd_background_fill": "#f5f3ed",
}
NIGHT = {
    "body_background_fill": "#151618",
    "body_text_color": "#e6e4de",
    "body_text_color_subdued": "#9b9991",
    "background_fill_primary": "#151618",
    "background_fill_secondary": "#1c1e21",
    "block_background_fill": "#151618",
    "block_border_color": "#2e3034",
    "block_label_background_fill": "#151618",
    "block_label_text_color": "#9b9991",
    "block_title_text_color": "#e6e4de",
    "block_info_text_color": "#9b9991",
    "border_color_primary": "#2e3034",
    "border_color_accent": "#86b4de",
    "input_background_fill": "#1c1e21",
    "input_border_color": "#3c3f45",
    "input_border_color_focus": "#86b4de",
    "input_placeholder_color": "#77756e",
    "button_primary_background_fill": "#86b4de",
    "button_primary_background_fill_hover": "#9dc3e6",
    "button_primary_text_color": "#10151a",
    "button_secondary_background_fill": "#26282c",
    "button_secondary_background_fill_hover": "#303338",
    "button_secondary_text_color": "#e6e4de",
    "color_accent_soft": "#22303d",
    "slider_color": "#86b4de",
    "link_text_color": "#86b4de",
    "checkbox_background_color_selected": "#86b4de",
    "checkbox_border_color_selected": "#86b4de",
    "checkbox_label_background_fill": "#1c1e21",
    "checkbox_label_background_fill_selected": "#22303d",
    "checkbox_label_text_color": "#e6e4de",
    "checkbox_label_text_color_selected": "#e6e4de",
    "loader_color": "#86b4de",
    "table_even_background_fill": "#151618",
    "table_odd_background_fill": "#1c1e21",
}
PLAIN = {
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_border_width": "0px",
    "block_title_text_weight": "600",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "layout_gap": "18px",
}


def page_style() -> dict[str, Any]:
    """Arguments for mounting the page: a theme of these colours, and the style sheet of this package's fragments."""
    import gradio as gr
    from gradio.themes.utils.fonts import Font

    fonts, mono = ([Font(name) for name in names] for names in (SANS, MONO))  # none is downloaded
    theme = gr.themes.Base(font=fonts, font_mono=mono, radius_size="sm", text_size="md")
    known_at_night = {f"{name}_dark": colour for name, colour in NIGHT.items()}
    theme.set(**DAY, **PLAIN, **known_at_night)
    return {"theme": theme, "css_paths": [PAGE_STYLE]}
