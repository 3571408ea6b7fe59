#!/usr/bin/env bash
# Pillow 11.3.0: the transparent colour (tRNS) of a PNG file counts only at 8 bits per channel.
#
# Expected: a pixel of the colour that tRNS names is transparent at every bit depth, as the PNG
# specification says and browsers show it.
# Observed: at 1, 2, 4 and 16 bits the colour is kept at the file's depth in `info`, while the pixels
# are 8 bits: convert("RGBA") leaves the pixel opaque. At 8 bits it works.
#
# Ends with 0 while Pillow behaves so, otherwise with 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet Pillow==11.3.0
"$folder/env/bin/python" - <<'PYTHON'
import io, struct, zlib
from PIL import Image, __version__


def png(depth, row, transparent):
    def chunk(kind, data):
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    header = struct.pack("!IIBBBBB", 1, 1, depth, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"tRNS", struct.pack("!H", transparent)), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


print("Pillow", __version__)
alpha = {}
for depth, row, transparent in (1, b"\x80", 1), (2, b"\xc0", 3), (4, b"\xf0", 15), (8, b"\xc8", 200), (16, b"\x9c\x40", 40000):
    image = Image.open(io.BytesIO(png(depth, row, transparent))).convert("RGBA")
    alpha[depth] = image.getpixel((0, 0))[3]
    print(f"grey, {depth} bits, tRNS {transparent}: alpha {alpha[depth]}, expected 0")
raise SystemExit(alpha != {1: 255, 2: 255, 4: 255, 8: 0, 16: 255})
PYTHON
