"""What a matcher says of predictions that are not numbers."""

import numpy as np


def check_matched_finite(cost: np.ndarray, matches: np.ndarray) -> None:
    """Refuse matches (L, B, T) whose cost (L, B, Q, T) is not finite.

    Raises:
        FloatingPointError: says where the first of them is, and how many there are.
    """
    layer, image, obj = np.nonzero(matches >= 0)
    matched = cost[layer, image, matches[layer, image, obj], obj]
    bad = np.flatnonzero(~np.isfinite(matched))
    if len(bad):
        first = bad[0]
        raise FloatingPointError(
            f"The matching cost is {matched[first]} for object {obj[first]} of image {image[first]} of the batch "
            f"after decoder layer {layer[first]} ({len(bad)} of {len(matched)} matched pairs are not finite): "
            "the model's predictions contain NaN or infinity."
        )
