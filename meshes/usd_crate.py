"""A look at the table of contents of a binary USD file before USD trusts it.

A damaged count makes USD take gigabytes for a file of a few kilobytes, so every count in the structural sections must be one that the
section's bytes can hold. Source: the layout of OpenUSD's crate files (bootstrap header, sections TOKENS ... SPECS).
"""

import mmap
import struct
from pathlib import Path

from shared_utils.errors import InvalidInputError

# Integers take at least two bits before LZ4, which shrinks by at most 255.
_MOST_PER_BYTE = 4 * 255
# Section name -> how many 64-bit counts stand at its start.
_COUNTS = {"TOKENS": 1, "STRINGS": 1, "FIELDS": 1, "FIELDSETS": 1, "PATHS": 2, "SPECS": 1}


def check_crate(path: Path) -> None:
    """Raise InvalidInputError if a crate file's sections lie outside the file or claim more than their bytes can hold."""
    with path.open("rb") as file:
        if file.read(8) != b"PXR-USDC":
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if not _sound(data):
                raise InvalidInputError(f"{path}: damaged or cut off (its table of contents contradicts itself)")


def _sound(data: mmap.mmap) -> bool:
    size = len(data)
    try:
        (offset,) = struct.unpack_from("<q", data, 16)
        if not 0 <= offset <= size - 8:
            return False
        (sections,) = struct.unpack_from("<Q", data, offset)
        if sections > 64:
            return False
        for number in range(sections):
            name, start, length = struct.unpack_from("<16sqq", data, offset + 8 + 32 * number)
            if start < 0 or length < 0 or start + length > size:
                return False
            for place in range(_COUNTS.get(name.rstrip(b"\0").decode("latin-1"), 0)):
                (count,) = struct.unpack_from("<Q", data, start + 8 * place)
                if 8 * place + 8 > length or count > _MOST_PER_BYTE * length:
                    return False
    except struct.error:
        return False
    return True
