"""What do ranks that share a clip's tokens exchange, and how large does the fast part grow? Counted, and checked.

    python bench/parallel.py                 # 1, 2 and 4 gloo processes on this machine, then the tables on paper
    python bench/parallel.py --processes 1,2

The bytes that a layer exchanges under Ulysses follow from the sizes alone. A small Wan is run on 1, 2 and 4 processes
over gloo, every collective's bytes are taken down, and the run fails where they are not exactly those counted. The
tables then say, for Wan 1.3B and 14B at 832x480 and 1280x720 in bfloat16, what a rank sends a layer, what it would
fetch were frames shared out instead (a halo: the keys and values that its frames see elsewhere), how long that takes
over the links named in `LINKS`, and what a rank holds in a denoising step. Nothing here was timed
between GPUs. Writes results/parallel.json and parallel.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import save, save_table

from freeloc_fx import Profile, transform
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.evaluation.cost import TRAINED, make_spec, wan_rope
from freeloc_fx.evaluation.sharing import exchanged_bytes, halo_bytes, rank_memory
from freeloc_fx.generation.parallel import an_accelerator
from freeloc_fx.generation.without_weights import without_weights
from freeloc_fx.planning.plan import Plan, PlannedSite

MODELS = {"wan-1.3b": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, "wan-14b": {}}
"""Configurations of WanTransformer3DModel, beside its own defaults."""
LINKS = {"NVLink, 450 GB/s": 450e9, "between nodes, 50 GB/s": 50e9}
"""Bytes a second that a rank sends one way: NVLink 4 of one GPU, and one 400 Gb/s adapter for each GPU."""
RANKS = (2, 4, 8, 16, 32, 64)
EXTENSIONS = (4, 10, 40)
SIZES = {"832x480": (30, 52), "1280x720": (45, 80)}
"""Tokens of a latent frame."""
WAYS: dict[str, dict[str, Any]] = {
    "ulysses": {},
    "ulysses, offload": {"offload": True},
    "ulysses, offload, feed-forward in chunks": {"offload": True, "feed_forward_chunks": 8},
    "ulysses, fsdp": {"share_weights": True},
    "ulysses, fsdp, feed-forward in chunks": {"share_weights": True, "feed_forward_chunks": 8},
}
"""Arguments of `rank_memory`."""
SMALL = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2}
FRAMES = 13


class Watch:
    """A backend for torch.compile that runs graphs as they are and takes down what their collectives send to others.

    Args:
        rank: whose sending it is.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.sent = rank, 0
        self.operator = torch.ops._c10d_functional.all_to_all_single.default

    def __call__(self, module: Any, _: Any) -> Any:
        for node in module.graph.nodes:
            if node.target is self.operator:
                node.target = self.send
        module.recompile()
        return module.forward

    def send(self, flat: torch.Tensor, received: list[int], sizes: list[int], group: str) -> Any:
        """The collective, its bytes taken down."""
        assert flat.numel() == sum(sizes)
        self.sent += (flat.numel() - sizes[self.rank]) * flat.element_size()
        return self.operator(flat, received, sizes, group)


def _rank(rank: int, count: int, folder: str) -> None:
    """One process of the run that is watched; leaves its bytes in a file."""
    from diffusers import ContextParallelConfig, WanTransformer3DModel

    torch.set_num_threads(1)
    if count > 1:
        store = dist.FileStore(f"{folder}/store", count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=300))
    torch.manual_seed(0)
    cls: Any = WanTransformer3DModel
    model = cls(
        patch_size=(1, 2, 2), in_channels=4, out_channels=4, text_dim=16, freq_dim=256, ffn_dim=32, **SMALL
    ).eval()
    if count > 1:
        with an_accelerator():
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count, ulysses_anything=True))
    watch = Watch(rank)
    changed = transform(model, Profile(trained_frames=5, layers="vrpr+tsa"), backend=watch, attention="tiles")
    given = {
        "hidden_states": torch.randn(1, 4, FRAMES, 6, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "return_dict": False,
    }
    with torch.no_grad():
        changed(**given)
        watch.sent = 0
        changed(**given)  # nothing is captured any more
    torch.save(watch.sent, f"{folder}/{rank}.pt")
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


def checked(count: int) -> dict[str, Any]:
    """Bytes a layer on a number of processes, taken down and counted.

    Raises:
        SystemExit: they differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (count, folder), nprocs=count)
        sent = [int(torch.load(f"{folder}/{rank}.pt")) // SMALL["num_layers"] for rank in range(count)]
    expected = exchanged_bytes(FRAMES * 6, SMALL["num_attention_heads"], SMALL["attention_head_dim"], count, 4)
    if max(sent) != expected:
        raise SystemExit(f"{count} processes: counted {expected} bytes a layer, the busiest rank sent {max(sent)}")
    return {"processes": count, "counted": expected, "sent": sent}


def counted() -> list[dict[str, Any]]:
    """Both models at every length and number of ranks."""
    rows = []
    for name, changes in MODELS.items():
        model = without_weights({"_class_name": "WanTransformer3DModel", "rope_max_seq_len": 1024, **changes})
        config: Any = model.config
        heads, dim, blocks = config.num_attention_heads, config.attention_head_dim, layer_table(model)
        for (size, (height, width)), extension in itertools.product(SIZES.items(), EXTENSIONS):
            spec = make_spec("vrpr+tsa", extension, height, width, dim)
            site = PlannedSite("blocks.0.attn1", 0, spec.strategy, 1.0, heads, dim, wan_rope(dim), spec.grid)
            plan = Plan("on paper", TRAINED, spec.grid, (site,), ())
            for ranks in (1, *RANKS):
                rows.append({
                    "model": name,
                    "size": size,
                    "extension": extension,
                    "tokens": spec.grid.video,
                    "ranks": ranks,
                    "exchanged_bytes": exchanged_bytes(spec.grid.video, heads, dim, ranks) if ranks <= heads else None,
                    "halo_bytes": halo_bytes(spec, heads, ranks),
                    "peak_bytes": {
                        way: rank_memory(plan, model, blocks, ranks, **how).peak for way, how in WAYS.items()
                    },
                })  # fmt: skip
    return rows


def report(checks: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    lines = ["| processes | bytes a layer, counted | sent by each rank |", "|---|---|---|"]
    lines += [f"| {c['processes']} | {c['counted']} | {', '.join(map(str, c['sent']))} |" for c in checks]
    head = ["in bfloat16", "ranks", "GB a layer, Ulysses", "halo", *(f"ms: {link}" for link in LINKS)]
    head += [f"GB held: {way}" for way in WAYS]
    lines += ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        sent, few = r["exchanged_bytes"], "fewer heads than ranks"
        cells = [f"{r['model']}, {r['size']}, {r['extension']}x", str(r["ranks"])]
        cells += [few if sent is None else f"{sent / 1e9:.2f}", f"{r['halo_bytes'] / 1e9:.2f}"]
        cells += ["" if sent is None else f"{1e3 * sent / speed:.1f}" for speed in LINKS.values()]
        cells += [f"{peak / 1e9:.1f}" for peak in r["peak_bytes"].values()]
        lines.append("| " + " | ".join(cells) + " |")
    save_table("parallel", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4")
    args = parser.parse_args()
    checks = [checked(int(count)) for count in args.processes.split(",")]
    rows = counted()
    report(checks, rows)
    save("parallel", {"checks": checks, "rows": rows})


if __name__ == "__main__":
    main()
