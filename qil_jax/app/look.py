"""How the page looks: fonts of the system, since none are fetched, and colours that can be read."""

import gradio as gr
from gradio import themes

CSS = """
.gradio-container { max-width: 1400px !important; margin: 0 auto !important; }
#viewer { width: 100%; } /* gradio's block has automatic margins, with which it may shrink to its content */
iframe.viewer { display: block; width: 100%; height: 75vh; min-height: 520px; border: 0; }
#viewer .waiting { display: grid; place-items: center; min-height: 420px; border-radius: 8px;
  border: 1px dashed var(--border-color-primary); color: var(--body-text-color-subdued); }
#files .empty { min-height: 64px; }
#files .label-clear-button { display: none; }
#record .json-node { --text-color: #9a3412; --string-color: #9a3412; --number-color: #155e75; --bracket-color: #334155;
  --square-bracket-color: #9f1239; --punctuation-color: #475569; --line-number-color: #475569; }
.dark #record .json-node { --text-color: #fdba74; --string-color: #fdba74; --number-color: #67e8f9;
  --bracket-color: #cbd5e1; --square-bracket-color: #fda4af; --punctuation-color: #94a3b8;
  --line-number-color: #94a3b8; }
"""
WAITING = '<div class="waiting">The layers will appear here.</div>'
"""What stands in the viewer's place before there are layers."""
MENDED = """() => {
  const mend = () => {
    document.querySelectorAll(".gallery-item:not([aria-label])").forEach(
      (item) => item.setAttribute("aria-label", "Example " + ([...item.parentNode.children].indexOf(item) + 1)));
    document.querySelectorAll(".empty[aria-label], button[aria-label^='Drop']").forEach(
      (part) => part.removeAttribute("aria-label"));
  };
  mend();
  new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
}"""
"""What gradio's components lack for screen readers: names of examples, and no names that hide what is to be read."""


def theme() -> gr.Theme:
    """The default theme of gradio, with darker text on light ground and lighter text on dark ground."""
    look = themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=[themes.Font("system-ui"), themes.Font("sans-serif")],
        font_mono=[themes.Font("ui-monospace"), themes.Font("monospace")],
    )
    return look.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        link_text_color_dark="*secondary_300",
        link_text_color_visited_dark="*secondary_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
