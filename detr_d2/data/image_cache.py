"""Decoded images kept in memory, for datasets that are small enough."""

import numpy as np

from detr_d2.data.images import read_image


class ImageCache:
    """Reads images, and keeps as many as fit, so that later epochs need not decode them.

    What is kept stays: as every epoch takes each image once, in another order, to give up one for another would gain
    nothing. Files are taken not to change.
    """

    def __init__(self, image_format: str, megabytes: float) -> None:
        """
        Args:
            image_format: as :func:`~detr_d2.data.images.read_image` takes it.
            megabytes: the limit, in units of 10^6 bytes, in this process; 0 keeps nothing.
        """
        self.image_format = image_format
        self.free_bytes = megabytes * 1e6
        self._images: dict[str, np.ndarray] = {}

    def read(self, file_name: str) -> np.ndarray:
        """As ``read_image``; an image that is kept is read-only."""
        if file_name in self._images:
            return self._images[file_name]
        image = read_image(file_name, self.image_format)
        if image.nbytes <= self.free_bytes:
            self.free_bytes -= image.nbytes
            image.flags.writeable = False
            self._images[file_name] = image
        return image

    def __getstate__(self) -> dict:
        # Another process gets the cache empty, instead of many megabytes that it can read itself.
        kept = sum(image.nbytes for image in self._images.values())
        return self.__dict__ | {"_images": {}, "free_bytes": self.free_bytes + kept}
