"""The README's picture: frames of one clip at ten times the trained length, sampled directly and with the profile.

    python bench/picture.py             # results/tables-tiny-wan/videos -> results/direct_beside_freeloc.png
    python bench/picture.py --model tiny-joint --output other.png

The videos are those that `bench/tables.py --keep-videos` wrote; nothing is generated here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import RESULTS

from freeloc_fx.evaluation.metrics import read_clip
from freeloc_fx.files import save_figure

FRAMES = 801
COUNT = 8
"""Frames of a row, from the first to the last at equal distances."""
ROWS = {"direct": "direct", "profile": "FreeLOC"}
"""Contestant -> what stands beside its row."""
SCALE = 2
"""Pixels of the picture for one of the video, in either direction."""


def draw(model: str, seed: int, output: Path) -> None:
    """Write the picture.

    Args:
        model: "tiny-wan" or "tiny-joint".
        seed: of the clip.
        output: the PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = np.linspace(0, FRAMES - 1, COUNT).round().astype(int)
    figure, axes = plt.subplots(len(ROWS), COUNT, figsize=(COUNT * 1.28, len(ROWS) * 1.42), dpi=100)
    for row, (contestant, label) in zip(axes, ROWS.items(), strict=True):
        video = read_clip(RESULTS / f"tables-{model}" / "videos" / f"{contestant}-{FRAMES}-{seed}.mp4").frames
        for axis, number in zip(row, numbers, strict=True):
            axis.imshow(video[number], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(str(number), fontsize=8, labelpad=2)
            for side in axis.spines.values():
                side.set_visible(False)
        row[0].set_ylabel(label, fontsize=10)
    figure.subplots_adjust(left=0.03, right=0.998, top=0.995, bottom=0.07, wspace=0.03, hspace=0.12)
    save_figure(figure, output)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-wan", choices=("tiny-wan", "tiny-joint"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "direct_beside_freeloc.png")
    args = parser.parse_args()
    draw(args.model, args.seed, args.output)


if __name__ == "__main__":
    main()
