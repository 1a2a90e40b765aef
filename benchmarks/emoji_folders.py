"""Sorts the emoji of npm's emoji-datasource packages into nine class folders, for `configs/emoji.py`.

    npm pack emoji-datasource-google emoji-datasource-twitter
    for file in emoji-datasource-*.tgz; do mkdir -p ${file%.tgz} && tar xzf $file -C ${file%.tgz}; done
    python benchmarks/emoji_folders.py emoji-datasource-*/package --out emoji

Copies the 64x64 PNG files of each style, without the variants of skin tone, to `OUT/CLASS/STYLE_CODE.png`. Google's
images (Noto) are under the Apache licence 2.0, Twitter's (Twemoji) under CC BY 4.0.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys

CLASSES = {
    'Smileys & Emotion': 'smileys', 'People & Body': 'people', 'Animals & Nature': 'animals', 'Food & Drink': 'food',
    'Travel & Places': 'travel', 'Activities': 'activities', 'Objects': 'objects', 'Symbols': 'symbols',
    'Flags': 'flags'}


def sort(package: pathlib.Path, out: pathlib.Path) -> int:
  """Copies the images of an unpacked package; returns their number."""
  emoji = json.loads((package / 'emoji.json').read_text())
  [images] = sorted((package / 'img').glob('*/64'))
  copied = 0
  for entry in emoji:
    folder = CLASSES.get(entry['category'])  # None for the parts of other emoji
    source = images / entry['image']
    if folder and source.exists():
      (out / folder).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(source, out / folder / f'{images.parent.name}_{source.name}')
      copied += 1
  return copied


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('packages', nargs='+', type=pathlib.Path, help='folders with emoji.json and img')
  parser.add_argument('--out', type=pathlib.Path, required=True, help='folder to create')
  args = parser.parse_args(argv)
  for package in args.packages:
    if not (package / 'emoji.json').is_file():
      sys.exit(f'Error: {package} has no emoji.json; use the folder `package` of an unpacked emoji-datasource package')
    print(f'{package}: {sort(package, args.out):,} images')


if __name__ == '__main__':
  main()
