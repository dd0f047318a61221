import cv2
import numpy as np
import pytest

from detr_d2.data.videos import VideoReader
from detr_d2.utils.errors import UserError


@pytest.fixture
def clip(tmp_path):
    """Write a video of six frames, each brighter than the one before."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, dtype=np.uint8))
    writer.release()
    return tmp_path / "clip.avi"


def test_a_file_has_every_frame(clip):
    assert [round(x.mean() / 40) for x in VideoReader(clip)] == [0, 1, 2, 3, 4, 5]


def test_a_stream_has_the_newest_frames_up_to_the_last(clip):
    """Each at most once, in order; how many depends on the speed."""
    found = [round(x.mean() / 40) for x in VideoReader(clip, is_live=True)]
    assert found[-1] == 5
    assert found == sorted(set(found))


def test_a_stream_can_be_left_early(clip):
    reader = VideoReader(clip, is_live=True)
    frames = iter(reader)
    assert next(frames).shape == (48, 64, 3)
    frames.close()
    assert not reader._capture.isOpened()


@pytest.mark.parametrize("source", ["97", "nowhere.mp4"])
def test_a_stream_that_is_not_there(source):
    with pytest.raises(UserError, match=f"Camera or stream {source} can't be opened"):
        VideoReader(source, is_live=True)
