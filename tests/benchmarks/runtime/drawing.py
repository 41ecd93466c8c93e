"""Draw Figures 1 and 9 from measured results, as SVG and PNG. Knows nothing about measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

SPARSE_ADD, FUSED, CSR, GREY = "#0072B2", "#D55E00", "#E69F00", "#666666"
"""From the palette of Okabe and Ito, which the colour-blind can tell apart; markers and hatches differ besides."""

CURVES = {
    "sparse_add": ("SparseAdd (Equation 26)", SPARSE_ADD, "o", "-"),
    "sparse_addmm_fused": ("SparseAddMM (Equation 24), fused from the codes", FUSED, "s", "--"),
    "sparse_addmm_csr": ("SparseAddMM (Equation 24), decoded, then sparse product", CSR, "^", ":"),
}
CHOICES = {
    "sensitive_0.1": ("sensitive\n0.1 %, 4 bit", SPARSE_ADD, ""),
    "random_10": ("random\n10 %, 4 bit", CSR, "//"),
    "all_16_bit": ("all weights\n16 bit (MeZO)", GREY, ".."),
}
IMPLEMENTATIONS = {"sparse_add": "SparseAdd", "sparse_addmm": "SparseAddMM", "mezo": "MeZO", "plain": "16 bit"}


def draw_figure_nine(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw the time of a block's linear layers over the number of tokens."""
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    for name, (label, colour, marker, line) in CURVES.items():
        measured = sorted((int(tokens), one[name]) for tokens, one in found["tokens"].items() if name in one)
        counts = [tokens for tokens, _ in measured]
        medians, fastest, slowest = ([one[f"{key}_ms"] for _, one in measured] for key in ("median", "min", "max"))
        axes.plot(counts, medians, color=colour, marker=marker, linestyle=line, label=label)
        axes.fill_between(counts, fastest, slowest, color=colour, alpha=0.15, linewidth=0)
    _mark_crossover(axes, found)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    all_counts = sorted(int(tokens) for tokens in found["tokens"])
    axes.set_xticks(all_counts, [f"{tokens:,}" for tokens in all_counts], rotation=45)
    axes.set_xlabel("tokens in one forward pass (1: a generated token · 8,192: training on 16 × 512)")
    axes.set_ylabel("milliseconds, all linear layers of one block")
    axes.set_title("Sparse operations in a Llama-2-7B block, after the paper's Figure 9", loc="left")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="upper left")
    text = "0.1 % sensitive values, 4-bit codes with a codebook per row. Lines: medians; bands: fastest to slowest."
    return save(figure, found, stem, text)


def draw_figure_one(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw training and inference time of the three choices, one panel each."""
    training = sorted((int(tokens), one) for tokens, one in found["training"].items())
    panels = {f"training step, {tokens:,} tokens": one for tokens, one in training}
    panels["inference, one token"] = found["inference"]
    figure = Figure(figsize=(3.6 * len(panels), 4.6), layout="constrained")
    for axes, (title, one) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        _draw_bars(axes, title, one["lowest"])
    figure.suptitle("Training and inference speed, after the paper's Figure 1", x=0.01, ha="left")
    text = "Medians. Labels: how many times as fast as all weights in 16 bit, and the faster implementation."
    return save(figure, found, stem, text)


def _draw_bars(axes: Axes, title: str, lowest: Mapping[str, Mapping[str, Any]]) -> None:
    slowest = lowest["all_16_bit"]["ms_per_block"]
    heights = [lowest[choice]["ms_per_block"] for choice in CHOICES]
    for place, (choice, height) in enumerate(zip(CHOICES, heights, strict=True)):
        _, colour, hatch = CHOICES[choice]
        axes.bar(place, height, color=colour, hatch=hatch, edgecolor="white", width=0.7)
        implementation = IMPLEMENTATIONS[lowest[choice]["implementation"]]
        label = f"{slowest / height:.2f} ×\n{implementation}"
        axes.annotate(label, (place, height), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(CHOICES)), [label for label, _, _ in CHOICES.values()], fontsize=9)
    axes.set_ylim(0, 1.18 * max(heights))
    axes.set_ylabel("milliseconds per block (less is better)")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_crossover(axes: Axes, found: Mapping[str, Any]) -> None:
    crossover = found["crossover_tokens"]
    if crossover is None:
        return
    axes.axvline(crossover, color=GREY, linewidth=1)
    text = f"SparseAdd is fastest\nfrom {crossover:,} tokens on"
    axes.annotate(
        text, (crossover, 0.06), (6, 0), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9
    )


def save(figure: Figure, found: Mapping[str, Any], stem: Path, text: str) -> list[Path]:
    measured = found["measured"]
    where = f"{measured['machine']}; threads: {measured['threads']}; {found['dtype']}; torch {measured['torch']}"
    figure.supxlabel(f"{text}\n{where}; measured {measured['date']}.", fontsize=8, x=0.01, ha="left")
    paths: Sequence[Path] = [stem.with_name(stem.name + ending) for ending in (".svg", ".png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return list(paths)
