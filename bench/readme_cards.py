"""Tables of bench/README.md on memory, several cards and long decoding, for `readme.py`."""

from __future__ import annotations

from typing import Any

from common import lines, results

__all__ = ["decoding", "fits", "links", "step_memory"]


def fits() -> str:
    """The smallest number of cards on which one denoising step fits, a tenth of each left free, by length and size."""
    ways = {
        "Ulysses": "ulysses",
        "offload, 8 chunks": "ulysses, offload, feed-forward in chunks",
        "FSDP": "ulysses, fsdp",
        "FSDP, 8 chunks": "ulysses, fsdp, feed-forward in chunks",
    }
    found: dict[tuple[str, str, int], dict[int, Any]] = {}
    for r in results("parallel.json")["rows"]:
        found.setdefault((r["model"], r["size"], r["extension"]), {})[r["ranks"]] = r
    rows = []
    for (model, size, extension), of in found.items():
        one = of[1]["peak_bytes"]
        cells = [f"{one[way] / 1e9:.0f}" for way in ("ulysses", "ulysses, offload", ways["offload, 8 chunks"])]
        for card in (24, 80):
            for way in ways.values():
                enough = [
                    n
                    for n, r in of.items()
                    if r["peak_bytes"][way] <= 0.9e9 * card and r["exchanged_bytes"] is not None
                ]
                cells.append(str(min(enough)) if enough else "more than heads")
        rows.append([f"{model}, {size}, {extension}x", *cells])
    head = ["bfloat16", "GB on one card", "weights offloaded", "and feed-forward in 8 chunks"]
    return lines([*head, *(f"{card} GB cards: {way}" for card in (24, 80) for way in ways)], rows)


def links() -> str:
    """Bytes that a rank exchanges a layer, and how long they take, for the larger model at the larger size."""
    rows = []
    for r in results("parallel.json")["rows"]:
        if (r["model"], r["size"]) != ("wan-14b", "1280x720") or r["ranks"] == 1:
            continue
        sent, halo = r["exchanged_bytes"], r["halo_bytes"]
        cells = ["more ranks than heads", "", ""]
        if sent is not None:
            cells = [f"{sent / 1e9:.2f}", f"{sent / 450e6:.1f}", f"{sent / 50e6:.1f}"]
        rows.append([f"{r['model']}, {r['extension']}x", str(r["ranks"]), *cells, f"{halo / 1e9:.2f}"])
        rows[-1].append(f"{halo / 50e6:.1f}")
    head = ["a layer of", "ranks", "GB sent by a rank, Ulysses", "ms at 450 GB/s (NVLink)"]
    head += ["ms at 50 GB/s (between nodes)", "GB fetched by a rank, halo", "ms at 50 GB/s"]
    return lines(head, rows)


def step_memory() -> str:
    """Memory of a denoising step beyond the weights, as measured on a small Wan, beside what is counted."""
    found = results("step_memory.json")
    ways = list(dict.fromkeys(r["way"] for r in found["rows"]))
    kinds = list(dict.fromkeys((r["size"], r["extension"], r["tokens"]) for r in found["rows"]))
    rows = []
    for size, extension, tokens in kinds:
        of = {r["way"]: r for r in found["rows"] if (r["size"], r["extension"]) == (size, extension)}
        counted = next(iter(of.values()))["counted"]
        cells = [f"{of[way]['peak'] / 1e6:.1f} ({of[way]['peak'] / counted:.1f})" if way in of else "" for way in ways]
        rows.append([f"{size} tokens a frame, {extension}x", str(tokens), f"{counted / 1e6:.1f}", *cells])
    return lines(["MB beyond the weights", "tokens", "counted", *(f"{way} (of counted)" for way in ways)], rows)


def decoding() -> str:
    """Peak host memory of decoding, and what of it is beyond the VAE's own."""
    rows = []
    for r in results("decoding.json")["rows"]:
        beyond = "" if r["beyond"] is None else f"{r['beyond'] / 1e6:.0f}"
        sizes = f"{r['peak'] / 1e6:.0f}", beyond, f"{r['floats'] / 1e6:.0f}"
        rows.append([r["way"], r["size"], str(r["frames"]), *sizes])
    head = ["frames are", "size", "frames", "MB at most", "beyond the VAE's own", "MB of the frames as float32"]
    return lines(head, rows)
