"""Image files of a dataset: where they are, and their sizes."""

import os
from collections.abc import Sequence
from pathlib import Path

from detr_d2.data.formats.records import AnnotatedImage
from detr_d2.data.images import describe_size_difference
from detr_d2.utils.errors import UserError

# Names of image folders beside annotations.
_FOLDERS = ("images", "JPEGImages", "img", "imgs", "photos")


class ImageFinder:
    """Finder of image files by the names that annotations give them, often with folders of another machine."""

    def __init__(self, roots: Sequence[Path], images: Path | None) -> None:
        """Look in ``images`` and below, or if None, in ``roots``, and in image folders in and beside them."""
        if images is not None and not images.is_dir():
            raise UserError(f"The image folder {images} does not exist: correct its path.")
        self.below = (
            [images]
            if images
            else [folder / name for root in roots for folder in (root, root.absolute().parent) for name in _FOLDERS]
        )
        self.roots = list(dict.fromkeys([images] if images else [*roots, *self.below]))
        self._index: dict[str, list[str]] | None = None

    def find_all(self, images: Sequence[AnnotatedImage]) -> list[str]:
        """Return the absolute paths of images. If one is missing or used twice, raise a UserError."""
        paths = [self.find(image.file_names) for image in images]
        missing = [image for image, path in zip(images, paths, strict=True) if path is None]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(paths)} images do not exist, e.g. {missing[0].file_names[0]} of "
                f"{missing[0].source}: give the folder that holds them (--images, or to train "
                "--train-images), or remove them."
            )
        seen: dict[str, AnnotatedImage] = {}
        for image, path in zip(images, paths, strict=True):
            if path in seen:
                both = f"{seen[path].source} and {image.source}"
                raise UserError(f"Image {path} is annotated twice, in {both}: remove one of them.")
            seen[path] = image
        return paths

    def find(self, names: Sequence[str]) -> str | None:
        """Return the path of the first name that exists: with its folders, with fewer of them, or anywhere below."""
        tails = [tail for name in names for tail in _tails(name)]
        for root in self.roots:
            for tail in tails:
                path = os.path.abspath(os.path.join(root, tail))
                if os.path.isfile(path):
                    return path
        for name in names:
            found = self._files_below().get(os.path.basename(name), ())
            if len(found) == 1:
                return found[0]
        return None

    def _files_below(self) -> dict[str, list[str]]:
        if self._index is None:
            self._index = {}
            for root in dict.fromkeys(map(os.path.abspath, self.below)):
                for folder, _, files in os.walk(root):
                    for file in files:
                        self._index.setdefault(file, []).append(os.path.join(folder, file))
        return self._index


def _tails(name: str) -> list[str]:
    """Return a path, and the path without its first folder, without the second, …; ".." only at the start."""
    parts = name.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts)) if ".." not in parts[i + 1 :]]
    return [tail for tail in tails if tail]


def image_root(paths: Sequence[str], images: Path | None) -> str:
    """Return the folder that file names will be relative to: that of the user, or the lowest that holds all images."""
    if images is not None and all(Path(path).is_relative_to(images.absolute()) for path in paths):
        return os.path.abspath(images)
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def check_sizes(images: Sequence[AnnotatedImage], sizes: Sequence[tuple[int, int]]) -> None:
    """Raise a UserError if the (height, width) of files differ from those that were annotated."""
    pairs = zip(images, sizes, strict=True)
    wrong = [(image, size) for image, size in pairs if image.size is not None and image.size != size]
    if wrong:
        image, size = wrong[0]
        difference = describe_size_difference(size, image.size, image.source)
        raise UserError(
            f"{len(wrong)} of {len(images)} images have another size, e.g. {image.file_names[0]} {difference}"
        )
