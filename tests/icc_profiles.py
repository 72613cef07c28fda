"""Colour profiles, built as ICC 2.4 has them, and pictures with them as viewers show them."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms

WHITE = (0.9642, 1.0, 0.8249)
"""XYZ of D50, to which all is adapted."""
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
"""XYZ of the primaries of sRGB, a column each."""
ADOBE = {"r": (0.6097, 0.3111, 0.0195), "g": (0.2053, 0.6257, 0.0609), "b": (0.1492, 0.0632, 0.7446)}
"""Primaries of Adobe RGB (1998), from its specification."""
P3 = {"r": (0.5151, 0.2412, -0.0011), "g": (0.2920, 0.6922, 0.0419), "b": (0.1571, 0.0666, 0.7841)}
"""Primaries of Display P3."""
GAMMA = struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
"""A curve of exponent 2.2."""


def linear(values: np.ndarray) -> np.ndarray:
    """Light of values of sRGB in [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


LIKE_SRGB = struct.pack(">I", 1024) + np.rint(65535 * linear(np.linspace(0, 1, 1024))).astype(">u2").tobytes()
"""The curve of sRGB, which Display P3 has too."""


def profile_of(
    primaries: dict[str, tuple[float, float, float]], space: str = "RGB ", name: str = "wide", curve: bytes = GAMMA
) -> bytes:
    """The profile of a screen: XYZ of its primaries under D50, or none for a grey one, and the curve of all."""
    tags = {"wtpt": xyz(WHITE)} | {f"{c}XYZ": xyz(values) for c, values in primaries.items()}
    return packed(tags | {f"{c}TRC": b"curv\0\0\0\0" + curve for c in primaries or "k"}, b"mntr", space, b"XYZ ", name)


def cmyk_profile(name: str = "inks", points: int = 9) -> bytes:
    """The profile of inks that let (1 - ink)(1 - black) of the light of sRGB pass, as a table of 8 bits in Lab."""
    inks = np.stack(np.meshgrid(*[np.linspace(0, 1, points)] * 4, indexing="ij"), axis=-1)
    light = linear((1 - inks[..., :3]) * (1 - inks[..., 3:])) @ SRGB.T / WHITE
    f = np.where(light > 216 / 24389, np.cbrt(light), (24389 / 27 * light + 16) / 116)
    lab = np.stack(
        [(116 * f[..., 1] - 16) * 2.55, 500 * (f[..., 0] - f[..., 1]) + 128, 200 * (f[..., 1] - f[..., 2]) + 128]
    )
    table = np.rint(np.moveaxis(lab, 0, -1)).clip(0, 255).astype(np.uint8).tobytes()
    same = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([4, 3, points, 0]) + b"".join(map(fixed, np.eye(3).ravel()))
    return packed({"wtpt": xyz(WHITE), "A2B0": head + 4 * same + table + 3 * same}, b"prtr", "CMYK", b"Lab ", name)


def packed(tags: dict[str, bytes], kind: bytes, space: str, between: bytes, name: str) -> bytes:
    """A profile of its tags, with a name."""
    said = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79)
    tags = {"desc": said, "cprt": b"text\0\0\0\0none\0", **tags}
    start, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        table += key.encode() + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI", start + len(data), b"lcms", 0x02400000) + kind + space.encode() + between
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(fixed, WHITE)) + bytes(48)
    return head + table + data


def fixed(number: float) -> bytes:
    """A number as 16.16 bits."""
    return struct.pack(">i", round(number * 65536))


def xyz(values: tuple[float, float, float]) -> bytes:
    """The content of a tag of a colour."""
    return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))


def convert(image: Image.Image, profile: bytes | None, *, back: bool = False) -> Image.Image:
    """A picture in sRGB, or back in its profile, by littlecms; as it is without one."""
    if not profile:
        return image.convert("RGBA")
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    ways = (srgb, own) if back else (own, srgb)
    found = ImageCms.profileToProfile(image, *ways, outputMode="RGBA" if image.mode == "RGBA" else "RGB")
    assert found is not None
    return found.convert("RGBA")
