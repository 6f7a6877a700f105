"""Compares a bundle's outputs with the original network's, on windows of pictures that neither was fitted to.

    python examples/facenet/compare_outputs.py runs/onet/bundle onet PICTURES

PICTURES is a folder. Without it, generated scenes are used, which hold no faces: there both should find none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from face_crops import SUFFIXES, THRESHOLD, to_input, windows
from mtcnn_networks import SHAPES, face_network, proposal_network
from PIL import Image

from mtlc.runtime.session import Session
from mtlc.zoo.scenes import render

COUNT = 1000
SCENES = 100


def compare(bundle: Path, network: str, pixels: np.ndarray) -> dict[str, float]:
    """Differences over windows (n, S, S, 3): the share that is taken for a face, or for none, as before, in %, and the
    mean distance of the other outputs, in % of a window's side.
    """
    inputs = to_input(pixels)
    with torch.no_grad():
        before = {task: value.numpy() for task, value in face_network(network)(inputs).items()}
    with Session(bundle) as session:
        after = session.run({"image": inputs.numpy()})
    same = (before["face"][:, 1] >= THRESHOLD) == (after["face"][:, 1] >= THRESHOLD)
    rest = {task: float(100 * np.abs(before[task] - after[task]).mean()) for task in before if task != "face"}
    return {"faces": float(100 * (before["face"][:, 1] >= THRESHOLD).mean()), "same": float(100 * same.mean()), **rest}


def main() -> None:
    if len(sys.argv) not in (3, 4) or sys.argv[2] not in SHAPES:
        sys.exit(f"give a bundle, one of {', '.join(SHAPES)}, and a folder of pictures or nothing")
    bundle, network = Path(sys.argv[1]), sys.argv[2]
    size, generator = SHAPES[network].size, np.random.default_rng(1)
    if len(sys.argv) > 3:
        paths = sorted(path for path in Path(sys.argv[3]).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            sys.exit(f"{sys.argv[3]}: no pictures there")
        pixels = windows(paths, COUNT, proposal_network(), face_network(network), generator)
    else:
        images = render(SCENES, 64, 2, 0)["image"]
        pixels = np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in images])
    for name, value in compare(bundle, network, pixels).items():
        print(f"{name:10} {value:7.2f} %")


if __name__ == "__main__":
    main()
