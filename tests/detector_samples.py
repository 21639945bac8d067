"""A detector small enough for a test, and pictures that any detector learns first."""

from pathlib import Path

import numpy as np
import torch
from transformers import DetrImageProcessorPil, YolosConfig, YolosForObjectDetection

from llarva.episodes.records import encode_image
from llarva.traces.detection_data import LabelledPicture
from llarva.traces.detection_model import DetectorSize

SMALL = DetectorSize(64, (4, 8, 12, 16), (1, 1, 1, 1), 16, 2, 2, 4, 2)


def square_picture(seed: int, size: int = 64) -> LabelledPicture:
    """A white square on noise: what any detector learns first."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    x, y = rng.integers(4, size - 22, 2)
    image[y : y + 18, x : x + 18] = 255
    box = np.array([[x, y, x + 18, y + 18]], np.float32)
    return LabelledPicture(encode_image(image), box, np.array([x + 9, y + 9], np.float32), "square")


def save_cups_and_grippers(folder: Path) -> Path:
    """A detector of another family with two classes."""
    config = YolosConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         image_size=[64, 64], patch_size=16, num_detection_tokens=5,
                         id2label={0: "cup", 1: "gripper"}, label2id={"cup": 0, "gripper": 1})  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        YolosForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
