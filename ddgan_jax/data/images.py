"""Decodes one image, an encoded file or an array, to uint8 pixels of the size and channels of the networks."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ddgan_jax.config import DataConfig

# Files of a folder or zip with other extensions are ignored (and counted).
EXTENSIONS = (
    '.avif', '.bmp', '.gif', '.j2k', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.pnm', '.ppm',
    '.tga', '.tif', '.tiff', '.webp')
# Pillow's names of these formats. By default it would also try PostScript, for which it runs Ghostscript, and many
# rarely tested formats. TGA has no magic number, so it is last.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF', 'JPEG2000', 'TGA')

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

# Larger files are not read.
MAX_ENCODED_BYTES = 256 * 2**20


class BadImage(ValueError):
  """An unusable image. The message continues a sentence that begins with its name; `hint` is an option that helps."""

  def __init__(self, reason: str, hint: str = ''):
    super().__init__(reason)
    self.hint = hint


def channels(data_config: DataConfig) -> int:
  """C of a single image; stacked images are grey until the pipeline stacks them."""
  return 1 if data_config.stack == 3 else data_config.num_channels


def decode(raw: bytes | np.ndarray, data_config: DataConfig) -> np.ndarray:
  """Decodes, rotates, converts and resizes one image.

  Uses the first frame of an animation, applies the EXIF orientation, composites transparency over white, and reduces 16
  bits to 8 (grey: x / 257, rounded; colour: Pillow drops the lower byte). CMYK, palettes and other modes are converted;
  grey is repeated to RGB, or RGB converted to grey (ITU-R 601 luma), to match data.num_channels. data.resize sets how
  the size is changed.

  Args:
    raw: an encoded image, or [H, W, C] uint8 with C = 1, 3 or 4 (RGB and alpha).
    data_config: uses image_size, num_channels, stack and resize.

  Returns:
    [image_size, image_size, C] uint8.

  Raises:
    BadImage: it is empty, not an image, damaged, or of a size that data.resize does not accept.
  """
  image = _fit(_convert(_open(raw, data_config), 'L' if channels(data_config) == 1 else 'RGB'), data_config)
  return np.asarray(image).reshape(data_config.image_size, data_config.image_size, channels(data_config))


def decode_with_alpha(raw: bytes | np.ndarray, data_config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
  """Like `decode`, but does not composite transparency.

  Returns:
    [image_size, image_size, C] uint8, and the opacity [image_size, image_size, 1] uint8.
  """
  image = _open(raw, data_config)
  if not image.has_transparency_data:
    pixels = decode(raw, data_config)
    return pixels, np.full_like(pixels[..., :1], 255)
  image = image.convert('RGBA')
  colours = image.convert('RGB').convert('L' if channels(data_config) == 1 else 'RGB')  # drops the opacity
  shape = (data_config.image_size, data_config.image_size, -1)
  return tuple(np.asarray(_fit(each, data_config)).reshape(shape) for each in (colours, image.getchannel('A')))


def size(raw: bytes) -> tuple[int, int]:
  """(height, width) of an encoded image after EXIF rotation, read from its header. Raises BadImage."""
  return _upright_size(_open_encoded(raw))


def _upright_size(image: Image.Image) -> tuple[int, int]:
  width, height = image.size
  with contextlib.suppress(Exception):  # broken metadata has no orientation
    # Pillow would decode a whole PNG to look for metadata after the pixels.
    has_metadata = image.format != 'PNG' or 'exif' in image.info
    if has_metadata and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
      return width, height
  return height, width


def read_file(path: str | os.PathLike) -> bytes:
  """Reads an encoded image. Raises BadImage if it is larger than MAX_ENCODED_BYTES; raises OSError."""
  num_bytes = os.path.getsize(path)
  if num_bytes > MAX_ENCODED_BYTES:
    raise BadImage(f'has {num_bytes:,} bytes; the limit is {MAX_ENCODED_BYTES:,}')
  return pathlib.Path(path).read_bytes()


def is_encoded(raw: bytes) -> bool:
  """Whether `raw` has the header of a supported image format."""
  try:
    _open_encoded(raw)
  except BadImage:
    return False
  return True


def _open_encoded(raw: bytes) -> Image.Image:
  """Opens an encoded image of one of `_FORMATS` without decoding its pixels."""
  if not raw:
    raise BadImage('is empty (0 bytes)')
  with _bad_image():
    return Image.open(io.BytesIO(raw), formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
  # Ignores warnings about odd metadata and large images; globally, because `catch_warnings` is not thread-safe.
  warnings.filterwarnings('ignore', module=r'PIL\.')
  Image.init()  # an old Pillow lacks AVIF
  return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _bad_image() -> Iterator[None]:
  """Converts Pillow's exceptions to BadImage."""
  try:
    yield
  except UnidentifiedImageError as e:
    raise BadImage(f'is not an image of a supported format ({", ".join(_formats())})') from e
  except Image.DecompressionBombError as e:
    raise BadImage('has more pixels than Pillow allows', 'a larger PIL.Image.MAX_IMAGE_PIXELS') from e
  except Exception as e:  # each Pillow decoder raises its own; OSError is a truncated file
    raise BadImage(f'is truncated or damaged ({str(e) or type(e).__name__})') from e


def size_problem(height: int, width: int, data_config: DataConfig) -> tuple[str, str]:
  """Why data.resize does not accept images of this size, and what to use; ('', '') if it accepts them."""
  size = data_config.image_size
  accepts = {
      'none': height == width == size, 'crop': min(height, width) >= size, 'pad': max(height, width) <= size,
      'cover': True}
  if accepts.pop(data_config.resize):
    return '', ''
  names = {
      'crop': 'shrink, then crop the centre', 'pad': 'centre on black', 'cover': 'crop, and enlarge smaller images'}
  hints = [f'--config.data.resize={name} ({names[name]})' for name in names if accepts.get(name)]
  if height == width:
    hints.insert(0, f'--config.data.image_size={height}')
  return (f'is {height}x{width}, which data.resize={data_config.resize!r} cannot make {size}x{size} (data.image_size)',
          ' or '.join(hints))


def _check_size(height: int, width: int, data_config: DataConfig) -> None:
  problem, hint = size_problem(height, width, data_config)
  if problem:
    raise BadImage(problem, hint)


def _open(raw: bytes | np.ndarray, data_config: DataConfig) -> Image.Image:
  if isinstance(raw, np.ndarray):
    return Image.fromarray(raw[..., 0] if raw.shape[-1] == 1 else raw)
  image = _open_encoded(raw)
  _check_size(*_upright_size(image), data_config)  # before decoding, which may need gigabytes
  with _bad_image():
    image.load()
  with contextlib.suppress(Exception):  # broken metadata has no orientation
    ImageOps.exif_transpose(image, in_place=True)
  return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
  if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM'):
    pixels = np.asarray(image).astype(np.int64)
    transparent = image.info.get('transparency')
    if transparent is not None:
      pixels = np.where(pixels == transparent, 65_535, pixels)
    image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
  elif image.mode in ('I', 'F'):
    raise BadImage(f'has {"32-bit" if image.mode == "I" else "floating point"} pixels; use 8 or 16 bits')
  try:
    if image.has_transparency_data:
      image = image.convert('RGBA')
      image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert(mode)
  except ValueError as e:
    raise BadImage(f'has the colour mode {image.mode}, which cannot be converted to {mode}') from e


def _fit(image: Image.Image, data_config: DataConfig) -> Image.Image:
  size = data_config.image_size
  width, height = image.size
  _check_size(height, width, data_config)
  if (width, height) == (size, size):
    return image
  if data_config.resize == 'pad':
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    return canvas
  shorter = min(width, height)
  if shorter == size:
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
  # Resizes only the centre; enlarging a whole panorama would need gigabytes.
  left, top = (width - shorter) / 2, (height - shorter) / 2
  filter_ = Image.Resampling.LANCZOS if size < shorter else Image.Resampling.BICUBIC
  return image.resize((size, size), filter_, box=(left, top, left + shorter, top + shorter))
