"""`digits`: the built-in digits data set, 1,797 real handwritten digits of 8x8 grey pixels; needs no download.

The images come with scikit-learn (`sklearn.datasets.load_digits`), which copied the test set of
"Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49). Licence: CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/. The only change is the scale of the pixels, 0..16 to 0..255.
Split `test` is every sixth image in scikit-learn's order (index % 6 == 5), `train` the rest.
"""

from __future__ import annotations

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_CITATION = """
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
  note = {CC BY 4.0}
}
"""


class Digits(tfds.core.GeneratorBasedBuilder):
  """TFDS builder `digits`: image [8, 8, 1] uint8 in 0..255, label 0..9; splits train (1,498) and test (299)."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description=__doc__,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(num_classes=10),
        }),
        supervised_keys=('image', 'label'),
        homepage='https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits',
        citation=_CITATION,
        license='CC BY 4.0',
        # Keeps scikit-learn's order on disk, so that every image can be traced back to it.
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    return {'train': self._generate_examples(test=False), 'test': self._generate_examples(test=True)}

  def _generate_examples(self, test: bool):
    """Yields (index in scikit-learn's order, example) of one split."""
    from sklearn import datasets  # slow to import, and only needed once

    digits = datasets.load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for i, (image, label) in enumerate(zip(pixels, digits.target)):
      if (i % 6 == 5) == test:
        # TFDS encodes arrays with TensorFlow but stores encoded files as they are. This avoids TensorFlow, and the
        # feature stays an `Image` that TFDS tools can display.
        png = io.BytesIO()
        Image.fromarray(image).save(png, format='png')
        png.seek(0)
        yield i, {'image': png, 'label': int(label)}
