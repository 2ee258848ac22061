"""`index.html`: one self-contained page that shows the pictures of a batch and how each was made."""

import base64
import dataclasses
import html
import io
from pathlib import Path
from urllib.parse import quote

THUMBNAIL = 320  # pixels, the longer side

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 2rem auto; max-width: 1400px; padding: 0 1rem; }}
h1 {{ font-size: 1.2rem; }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }}
figure {{ margin: 0; border: 1px solid #8884; border-radius: 8px; overflow: hidden; display: flex; flex-direction: column; }}
figure a {{ display: block; background: #8882; text-align: center; }}
img {{ display: block; margin: auto; max-width: 100%; height: auto; }}
figcaption {{ padding: .6rem .8rem; display: flex; flex-direction: column; gap: .4rem; flex: 1; }}
.prompt {{ overflow-wrap: anywhere; flex: 1; }}
.facts {{ color: #777; font-size: .85rem; }}
button {{ font: inherit; font-size: .85rem; align-self: start; cursor: pointer; }}
</style>
</head>
<body>
<h1>{title}</h1>
<main>
{figures}
</main>
<script>
for (const button of document.querySelectorAll("button[data-command]")) {{
  button.addEventListener("click", async () => {{
    const command = button.dataset.command;
    let copied = true;
    try {{
      await navigator.clipboard.writeText(command);
    }} catch {{
      // Pages opened from a file have no clipboard in some browsers.
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = command;
      area.select();
      copied = document.execCommand("copy");
      area.remove();
    }}
    button.textContent = copied ? "Copied" : "Copying is blocked";
    setTimeout(() => {{ button.textContent = "Copy command"; }}, 1500);
  }});
}}
</script>
</body>
</html>
"""

_FIGURE = """<figure>
<a href="{link}"><img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="{prompt}" loading="lazy"></a>
<figcaption><span class="prompt">{prompt}</span><span class="facts">{facts}</span>
<button type="button" data-command="{command}">Copy command</button></figcaption>
</figure>"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture: its path relative to the page, the words it was made from, facts in short, the command that makes it."""

    path: str
    prompt: str
    facts: str
    command: str


def gallery(title: str, folder: Path, pictures: list[Picture]) -> str:
    """The page as HTML for a file in `folder`, with thumbnails in it and links to the pictures beside it."""
    figures = "\n".join(_figure(folder, picture) for picture in pictures)
    return _PAGE.format(title=html.escape(title), figures=figures)


def _figure(folder: Path, picture: Picture) -> str:
    from PIL import Image

    with Image.open(folder / picture.path) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return _FIGURE.format(
        link=html.escape(quote(picture.path)),
        data=base64.b64encode(buffer.getvalue()).decode(),
        width=small.width,
        height=small.height,
        prompt=html.escape(picture.prompt),
        facts=html.escape(picture.facts),
        command=html.escape(picture.command),
    )
