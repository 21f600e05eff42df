"""Converts image files that TensorFlow does not decode to PNG, by Pillow.

To PNG, not to JPEG: no pixel changes. EXIF orientation is ignored, as in all other images.
"""

import io
import warnings

import PIL
from PIL import Image

from trainer.data.splits.image_files import CONVERTED

# Pillow warns of odd metadata and of large images, which it reads all the same.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow's modes. The decoder of PNG takes the upper 8 of 16 bits.
_GREY = ("1", "L", "LA", "La")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_32 = ("I", "F")


class ConversionError(Exception):
    """An image that cannot be converted; the text says why."""


def decodable(path: str, encoded: bytes) -> bytes:
    """Returns a file's content, as PNG if its ending is one of `CONVERTED`.

    Transparency is dropped, and all frames but the first.

    Raises:
        ConversionError: if Pillow does not read it, or its values have more than 16 bits.
    """
    if not path.lower().endswith(CONVERTED):
        return encoded
    version = f"Pillow {PIL.__version__}"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return _as_png(image)
    except ConversionError:
        raise
    except Image.UnidentifiedImageError:
        raise ConversionError(f"{version} does not read it: save it as JPEG or PNG") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise ConversionError(f"{version}: {type(error).__name__}: {error}") from None


def _as_png(image: Image.Image) -> bytes:
    if image.mode in _GREY_32:
        lowest, highest = image.getextrema()
        if image.mode == "F" or lowest < 0 or highest >= 2**16:
            raise ConversionError(
                f"has values from {lowest} to {highest}: save it with 8 or 16 bits per channel"
            )
        image = image.convert("I;16")
    elif image.mode not in _GREY_16:
        image = image.convert("L" if image.mode in _GREY else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=None)
    return buffer.getvalue()
