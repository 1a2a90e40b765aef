"""data.images: every kind of image file and array decodes to the pixels that it shows."""

import contextlib
import io
import re

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile

from ddgan_jax.config import DataConfig
from ddgan_jax.data import images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 6), np.uint8)
RGB = RNG.integers(0, 256, (6, 6, 3), np.uint8)


def encode(image, kind='png', **options):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def decode(raw, size=6, channels=3, **fields):
  return images.decode(raw, DataConfig(image_size=size, num_channels=channels, **fields))


@pytest.mark.parametrize('kind, options', [
    ('png', {}), ('webp', {'lossless': True}), ('bmp', {}), ('tiff', {}), ('ppm', {}), ('tga', {})])
def test_lossless_formats_decode_exactly(kind, options):
  np.testing.assert_array_equal(decode(encode(RGB, kind, **options)), RGB)


@pytest.mark.parametrize('ending', images.EXTENSIONS)
def test_every_extension_is_decoded(ending, tmp_path):
  smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
  path = tmp_path / f'x{ending}'
  Image.fromarray(smooth).convert({'.pbm': '1', '.pgm': 'L'}.get(ending, 'RGB')).save(path)
  decoded = decode(path.read_bytes(), 16).astype(int)
  assert ending == '.pbm' or np.abs(decoded.mean(-1) - smooth.mean(-1)).max() <= 20


def test_a_jpeg_of_several_pictures_decodes_to_the_first():
  first, second = Image.new('RGB', (6, 6), (255, 0, 0)), Image.new('RGB', (6, 6), (0, 0, 255))
  raw = encode(first, 'mpo', save_all=True, append_images=[second], quality=100)
  assert np.abs(decode(raw).astype(int) - [255, 0, 0]).max() <= 2


def test_jpeg_decodes_almost_exactly():
  smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
  assert np.abs(decode(encode(smooth, 'jpeg', quality=98, subsampling=0), 16).astype(int) - smooth).max() <= 4


def test_channels_are_converted():
  np.testing.assert_array_equal(decode(encode(GREY)), np.repeat(GREY[..., None], 3, 2))
  np.testing.assert_array_equal(decode(encode(GREY), channels=1)[..., 0], GREY)
  luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
  assert np.abs(decode(encode(RGB), channels=1)[..., 0] - luma).max() <= 0.51
  assert decode(encode(GREY), channels=3, stack=3).shape == (6, 6, 1)  # stacked later


def test_transparency_is_blended_over_white():
  alpha = RNG.integers(0, 256, (6, 6), np.uint8)
  blended = RGB * (alpha[..., None] / 255) + 255 - alpha[..., None].astype(float)
  rgba = np.dstack([RGB, alpha])
  assert np.abs(decode(encode(rgba)) - blended).max() <= 1
  assert np.abs(decode(rgba) - blended).max() <= 1  # an array with alpha
  grey_blended = GREY * (alpha / 255) + 255 - alpha.astype(float)
  la = Image.merge('LA', [Image.fromarray(GREY), Image.fromarray(alpha)])
  assert np.abs(decode(encode(la), channels=1)[..., 0] - grey_blended).max() <= 1


def test_palettes_are_looked_up():
  palette = Image.fromarray(GREY % 4, 'P')
  colours = [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]
  palette.putpalette(colours)
  expected = np.array(colours).reshape(4, 3)[GREY % 4]
  np.testing.assert_array_equal(decode(encode(palette)), expected)
  expected[GREY % 4 == 2] = 255  # transparent, so white
  np.testing.assert_array_equal(decode(encode(palette, transparency=2)), expected)
  np.testing.assert_array_equal(decode(encode(palette, 'gif', transparency=2)), expected)


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_sixteen_bits_become_eight(kind):
  deep = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1872
  np.testing.assert_array_equal(decode(encode(deep, kind), channels=1)[..., 0], np.round(deep / 257))


def test_sixteen_bit_grey_with_a_transparent_value():
  file = io.BytesIO()
  Image.fromarray(np.array([[1000, 65_535], [0, 1000]], np.uint16)).save(file, 'png', transparency=1000)
  assert decode(file.getvalue(), 2, 1)[..., 0].tolist() == [[255, 255], [0, 255]]


def test_cmyk_and_bitmaps_are_converted():
  ink = Image.new('CMYK', (6, 6), (0, 255, 255, 0))  # no cyan: red
  assert np.abs(decode(encode(ink, 'jpeg', quality=100)).astype(int) - [255, 0, 0]).max() <= 2
  bits = Image.fromarray(GREY > 127)
  np.testing.assert_array_equal(decode(encode(bits), channels=1)[..., 0], (GREY > 127) * 255)


@pytest.mark.parametrize('kind, options', [('gif', {}), ('webp', {'lossless': True}), ('png', {})])
def test_an_animation_decodes_to_its_first_frame(kind, options):
  first, second = Image.new('RGB', (6, 6), (255, 0, 0)), Image.new('RGB', (6, 6), (0, 0, 255))
  raw = encode(first, kind, save_all=True, append_images=[second], duration=100, **options)
  assert Image.open(io.BytesIO(raw)).n_frames == 2
  np.testing.assert_array_equal(decode(raw), np.full((6, 6, 3), [255, 0, 0]))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_turns_the_image_upright(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  upright = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8) * 20
  # What a camera stores, from the definition in EXIF 2.32, 4.6.4 A: where row 0 and column 0 of the file are.
  stored = {
      1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
      6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1)}[orientation]
  raw = encode(np.ascontiguousarray(stored), 'png', exif=exif)
  np.testing.assert_array_equal(decode(raw, 3, 1)[..., 0], upright)


# Sizes


def test_crop_takes_the_centre_of_the_longer_side():
  wide = RNG.integers(0, 256, (4, 8, 3), np.uint8)
  np.testing.assert_array_equal(decode(encode(wide), 4, resize='crop'), wide[:, 2:6])
  tall = wide.transpose(1, 0, 2)
  np.testing.assert_array_equal(decode(encode(tall), 4, resize='cover'), tall[2:6])


def test_crop_shrinks_without_aliasing():
  checkers = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
  # Taking every fourth pixel would give 0 or 255 throughout.
  assert np.abs(decode(encode(checkers), 8, resize='crop')[1:-1, 1:-1].astype(int) - 127.5).max() < 8


def test_cover_enlarges_but_crop_refuses_to():
  steps = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[None], 20, 0)  # [20, 25]
  large = decode(encode(steps), 80, channels=1, resize='cover')[..., 0].astype(int)
  # Enlarged four times: a slope of 2.5 per pixel, from the middle 20 columns.
  assert np.abs(np.diff(large[40, 2:-2]) - 2.5).max() <= 1 and abs(large[40].mean() - steps[0].mean()) < 7
  with pytest.raises(images.BadImage, match="is 20x25, which data.resize='crop' cannot make 80x80") as error:
    decode(encode(steps), 80, resize='crop')
  assert 'resize=pad' in error.value.hint and 'resize=cover' in error.value.hint


def test_a_panorama_is_cropped_before_it_is_enlarged():
  stripe = np.zeros((1, 60_000), np.uint8)
  stripe[:, 29_900:30_100] = 200
  assert (decode(encode(stripe), 64, channels=1, resize='cover') == 200).all()


def test_pad_centres_on_black():
  padded = decode(encode(RGB), 10, resize='pad')
  np.testing.assert_array_equal(padded[2:8, 2:8], RGB)
  assert padded.sum(dtype=int) == RGB.sum(dtype=int)


@pytest.mark.parametrize('shape, size, resize, reason, hint', [
    ((6, 6), 8, 'none', "is 6x6, which data.resize='none' cannot make 8x8", 'image_size=6 or .*pad.*cover'),
    ((9, 9), 8, 'none', 'is 9x9, which', 'data.image_size=9 or .*resize=crop .shrink, then crop'),
    ((6, 9), 8, 'none', 'is 6x9, which', 'resize=cover'),
    ((6, 9), 8, 'crop', 'is 6x9, which', 'resize=cover'),
    ((9, 9), 8, 'pad', "data.resize='pad' cannot make 8x8", 'resize=crop'),
    ((6, 9), 8, 'pad', 'cannot make 8x8', 'resize=cover'),
])
def test_sizes_that_a_resize_rule_cannot_make_are_refused(shape, size, resize, reason, hint):
  with pytest.raises(images.BadImage, match=reason) as error:
    decode(encode(np.zeros(shape, np.uint8)), size, resize=resize)
  assert re.search(hint, error.value.hint)


# Files that are not images


@pytest.mark.parametrize('raw, reason', [
    (b'', r'is empty \(0 bytes\)'),
    (b'These are notes, not pixels.', 'is not an image'),
    (encode(RGB)[:60], 'is truncated or damaged'),
    (encode(np.tile(RGB, (20, 20, 1)), 'jpeg')[:1500], 'is truncated or damaged'),
    (encode(np.tile(RGB, (20, 20, 1)), 'webp')[:1500], 'is'),
    (encode(Image.fromarray(RNG.random((6, 6), np.float32)), 'tiff'), 'has floating point pixels'),
    (encode(Image.fromarray(np.array([[70_000] * 6] * 6, np.int32)), 'tiff'), 'has 32-bit pixels'),
])
def test_files_that_are_not_images_are_refused(raw, reason):
  with pytest.raises(images.BadImage, match=reason):
    decode(raw, resize='cover')


UNSUPPORTED = r'is not an image of a supported format \(JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM,.* TGA\)$'


@pytest.mark.parametrize('raw', [
    *(encode(RGB, kind) for kind in ('eps', 'pcx', 'ico', 'dds', 'sgi', 'im')),
    b'8BPS\0\1' + bytes(6) + b'\0\3\0\0\0\6\0\0\0\6\0\10\0\3' + bytes(200),  # Photoshop
    b'SIMPLE  =                    T'.ljust(80) + bytes(2800),  # FITS
    b'\xd7\xcd\xc6\x9a' + bytes(200),  # Windows metafile
    b'%PDF-1.7\n' + bytes(200)])
def test_unsupported_formats_are_refused_and_run_nothing(raw, monkeypatch):
  calls = []
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **kwargs: calls.append(args))
  with pytest.raises(images.BadImage, match=UNSUPPORTED):
    decode(raw)
  with pytest.raises(images.BadImage, match=UNSUPPORTED):
    images.size(raw)
  assert not images.is_encoded(raw) and not calls


def test_an_image_of_a_wrong_size_is_refused_before_it_is_decoded(monkeypatch):
  monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  for raw in (encode(np.zeros((9, 7, 3), np.uint8), 'png'), encode(np.zeros((7, 9, 3), np.uint8), 'jpeg', exif=exif)):
    assert images.size(raw) == (9, 7)
    with pytest.raises(images.BadImage, match='is 9x7, which .* cannot make 6x6'):
      decode(raw)


def test_damaged_images_raise_no_other_error():
  # Truncated or overwritten anywhere, an image decodes or raises BadImage, and nothing else.
  for kind in ('png', 'jpeg', 'gif', 'webp', 'tiff', 'bmp', 'tga', 'jpeg2000', 'avif'):
    undamaged = encode(RGB, kind)
    for _ in range(100):
      raw = bytearray(undamaged)
      if RNG.random() < 0.5:
        raw = raw[:RNG.integers(len(raw))]
      for _ in range(RNG.integers(4)):
        if raw:
          raw[RNG.integers(len(raw))] = RNG.integers(256)
      with contextlib.suppress(images.BadImage):
        assert decode(bytes(raw), resize='cover').shape == (6, 6, 3)


def test_a_decompression_bomb_is_refused(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
  with pytest.raises(images.BadImage, match='more pixels than Pillow allows'):
    decode(encode(RGB))
