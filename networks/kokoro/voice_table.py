"""The answer to `--list-voices`."""

import json
from collections.abc import Iterable

from networks.kokoro.config import voice_gender, voice_language


def voice_table(names: Iterable[str], on_disk: set[str], as_json: bool) -> str:
    """Voices with their language and gender, a line each or as one JSON object."""
    rows = []
    for name in names:
        language = voice_language(name)
        rows.append(
            {
                "voice": name,
                "language": language.name if language else "",
                "lang_code": language.code if language else "",
                "gender": voice_gender(name),
                "on_disk": name in on_disk,
            }
        )
    if as_json:
        return json.dumps({"schema": "generation-scripts/voices/1", "voices": rows}) + "\n"
    lines = [
        f"{r['voice']:<16}{r['lang_code']:<4}{r['language']:<22}{r['gender']:<8}{'here' if r['on_disk'] else ''}".rstrip()
        for r in rows
    ]
    return "\n".join(lines) + "\n"
