"""The 8×8 handwritten digits that come with scikit-learn: real data, no network.

1,797 images from the UCI set "Optical Recognition of Handwritten Digits" (E.
Alpaydin and C. Kaynak, 1998; the part written by 13 people kept for testing). Pixels
are counts from 0 to 16.
"""

import numpy as np

from robjax.data.batching import stratified_split

TRAIN_SIZE = 1437


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split of the digits, always shuffled in the same way.

    "train" has 1,437 examples and "test" the other 360, both with every class in
    proportion.

    >>> images, labels = read("test")
    >>> images.shape, int(images.max()), sorted(set(labels.tolist()))
    ((360, 8, 8, 1), 16, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    Args:
      split: "train" or "test".

    Returns:
      uint8 images [N, 8, 8, 1] from 0 to 16, and int32 labels [N].

    Raises:
      ValueError: another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split of digits must be 'train' or 'test', got {split!r}")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.uint8)
    train, test = stratified_split(labels, TRAIN_SIZE, seed=0)
    rows = train if split == "train" else test
    return images[rows], labels[rows].astype(np.int32)
