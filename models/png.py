"""What a PNG says of itself beside its pixels: bits used, the values of black and white, orientation."""

import zlib

from PIL import Image

from . import raster
from .raster import Scale


def with_chunks(png: bytes, scale: Scale, orientation: int) -> bytes:
    """A PNG that declares its range and its orientation, so that no reader has to guess them from the content.

    sBIT says how many bits are used; other limits stand in a text that `images.read` knows. Plain 8-bit files stay as
    they are.
    """
    chunks = []
    # A range that ends at 2^bits - 1 is said by sBIT, which other readers know; any other only by this project's text.
    # At 8 bits sBIT would not be read back, so a shallower range needs the text as well.
    bits = int(scale.white).bit_length()
    whole_bits = scale.black == 0 and scale.white == 2**bits - 1
    if scale.container > 8:
        chunks.append((b"sBIT", bytes([bits if whole_bits else 16])))
    if not whole_bits or bits < scale.container == 8:
        text = f"{scale.black:.0f}..{scale.white:.0f}".encode()
        chunks.append((b"tEXt", raster.RANGE_KEYWORD + b"\0" + text))
    if orientation != 1:
        # A PNG's EXIF chunk begins after JPEG's marker "Exif".
        exif = Image.Exif()
        exif[raster.TIFF_ORIENTATION] = orientation
        chunks.append((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    end_of_header = 33  # signature and IHDR, behind which all of these may stand
    added = b"".join(_chunk(name, data) for name, data in chunks)
    return png[:end_of_header] + added + png[end_of_header:]


def _chunk(name: bytes, data: bytes) -> bytes:
    """A chunk in PNG's layout: length of the data, name, data, checksum of name and data; big-endian."""
    checksum = zlib.crc32(name + data)
    return len(data).to_bytes(4, "big") + name + data + checksum.to_bytes(4, "big")
