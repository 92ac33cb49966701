"""Images of a foreground on a background: what is where, and which background it is.

The generated sets of `robjax.data.backgrounds` and the released ones of
`robjax.data.released` have this one form.
"""

from typing import NamedTuple

import numpy as np

from robjax.data.dataset import Dataset, from_arrays
from robjax.samples import is_concrete


class Scenes(NamedTuple):
    """N labelled images with a mask of the foreground and a category of background.

    Attributes:
      images: uint8 [N, H, W, 3].
      labels: int32 [N] class of the foreground, in 0..num_classes − 1.
      masks: [N, H, W] 1 on the foreground and 0 on the background; bool, or float32 in
        [0, 1] if soft; None where a release has none.
      backgrounds: int32 [N] category of the background, in 0..num_backgrounds − 1; −1
        where there is no background; None where a release does not say.
      num_classes: of foregrounds.
      num_backgrounds: of categories; 0 where a release does not say.
      name: where they come from, for people.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    backgrounds: np.ndarray | None
    num_classes: int
    num_backgrounds: int
    name: str

    @property
    def groups(self) -> np.ndarray:
        """int32 [N]: label · num_backgrounds + background, as in Waterbirds.

        Raises:
          ValueError: some image has no category of background.
        """
        if self.backgrounds is None or (self.backgrounds < 0).any():
            raise ValueError(
                f"scenes must know the background of every image to have groups, "
                f"{self.name} does not"
            )
        return (self.labels * self.num_backgrounds + self.backgrounds).astype(np.int32)

    def dataset(self) -> Dataset:
        """The images and labels for training and evaluation, with groups if known."""
        known = self.backgrounds is not None and (self.backgrounds >= 0).all()
        return from_arrays(
            self.images,
            self.labels,
            num_classes=self.num_classes,
            groups=self.groups if known else None,
            num_groups=self.num_classes * self.num_backgrounds if known else None,
            name=self.name,
        )

    def take(self, rows: np.ndarray) -> "Scenes":
        """The scenes of some rows, in their order."""
        return self._replace(
            images=self.images[rows],
            labels=self.labels[rows],
            masks=None if self.masks is None else self.masks[rows],
            backgrounds=None if self.backgrounds is None else self.backgrounds[rows],
        )

    def __repr__(self) -> str:
        """The name and the sizes, not the arrays."""
        if not is_concrete(self.images):
            return "Scenes(traced)"
        count, height, width, _ = self.images.shape
        masks = "masks" if self.masks is not None else "no masks"
        kinds = f"{self.num_classes} classes on {self.num_backgrounds} backgrounds"
        return (
            f"Scenes({self.name}: {count} images {height}×{width} in {kinds}, {masks})"
        )
