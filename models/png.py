"""What a PNG says of itself beside its pixels: bits used, the values of black and white, orientation."""

import zlib

from PIL import ExifTags, Image

from .grey_values import Scale

RANGE_KEYWORD = b"grey values"  # of the text in which `with_chunks` says which values are black and white
SIGNATURE = 8  # bytes at the start of every PNG
END_OF_HEADER = 33  # bytes of the signature and of the chunk IHDR, which comes first


def with_chunks(png: bytes, scale: Scale, orientation: int) -> bytes:
    """A PNG that declares its range and its orientation, so that no reader has to guess them from the content.

    sBIT says how many bits are used; other limits stand in a text that `images.read` knows. Plain 8-bit files stay as
    they are.
    """
    # A range that ends at 2^bits - 1 is said by sBIT, which other readers know; any other only by this project's text.
    bits = int(scale.white).bit_length()
    is_whole_bits = scale.black == 0 and scale.white == 2**bits - 1
    # At 8 bits sBIT would not be read back, so a shallower range needs the text as well.
    is_shallow_byte = bits < scale.container == 8

    added = b""
    if scale.container > 8:
        significant_bits = bits if is_whole_bits else 16
        added += _chunk(b"sBIT", bytes([significant_bits]))
    if is_shallow_byte or not is_whole_bits:
        limits = f"{scale.black:.0f}..{scale.white:.0f}"
        added += _chunk(b"tEXt", RANGE_KEYWORD + b"\0" + limits.encode())
    if orientation != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        # A PNG's EXIF chunk begins after JPEG's marker "Exif".
        added += _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))

    # All of these may stand right behind the header.
    return png[:END_OF_HEADER] + added + png[END_OF_HEADER:]


def _chunk(name: bytes, data: bytes) -> bytes:
    """A chunk in PNG's layout: length of the data, name, data, checksum of name and data; big-endian."""
    length = len(data).to_bytes(4, "big")
    checksum = zlib.crc32(name + data).to_bytes(4, "big")
    return length + name + data + checksum


def read_chunks(content: bytes) -> dict[bytes, bytes]:
    """{name: data} of a PNG, the first chunk of each name; ValueError for a wrong checksum or a missing end."""
    chunks: dict[bytes, bytes] = {}
    start = SIGNATURE
    while b"IEND" not in chunks:
        length = int.from_bytes(content[start : start + 4], "big")
        end = start + 8 + length  # of the data
        name = content[start + 4 : start + 8]
        data = content[start + 8 : end]
        # Pillow does not check all checksums.
        checksum = content[end : end + 4]
        if len(checksum) < 4:
            raise ValueError("the PNG is truncated")
        if zlib.crc32(name + data) != int.from_bytes(checksum, "big"):
            raise ValueError("the PNG is damaged (wrong checksum)")
        # The first of a name counts: `with_chunks` puts its text right behind the header.
        chunks.setdefault(name, data)
        start = end + 4
    return chunks
