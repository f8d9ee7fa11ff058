"""One dimension of VBench 0.1.5 over the videos of a score run; for VBench's own environment.

`score` copies this file into the run's folder `vbench`, where evaluate.sh calls it with VBench's
Python: it must not import anything of this project. VBench's classes do the judging, and write
their usual files. This says only which videos there are and by which wording of a prompt they are
judged, which VBench's command cannot: it looks for files that are named after the prompt it judges
by, and the extended ones are longer than a file name may be.

Of the 16 dimensions, two compare a video with the text of its prompt (`TEXT`); these alone know
extended prompts. `color` and `human_action` take a label out of VBench's own wording, and the other
dimensions do not read prompts.
"""

import argparse
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

TEXT = ("temporal_style", "overall_consistency")
EXTENDED, SHORT = WORDINGS = ("extended", "short")
FLICKERING, SAMPLES = "temporal_flickering", 5  # SAMPLES: the videos of a prompt that VBench judges
FILTERED = Path("filtered")  # VBench's static filter writes here
ASKED = "prompt_of_suite"  # of an entry: the prompt in VBench's wording, whatever it is judged by

Entry = dict[str, Any]


def suite_entries(
    suite: Iterable[Mapping[str, Any]],
    videos: Sequence[Mapping[str, Any]],
    dimension: str,
    wording: str,
    static: Mapping[str, Sequence[str]] | None = None,
) -> list[Entry]:
    """VBench's own prompts of a dimension, as its *_full_info.json has them, with our videos.

    Args:
        suite: VBench_full_info.json.
        videos: lines of manifest.jsonl.
        dimension: one of VBench's.
        wording: `EXTENDED` or `SHORT`, for the dimensions of `TEXT`.
        static: paths by prompt, where VBench's static filter has chosen the videos.
    """
    of: dict[str, list[tuple[str, str]]] = {}  # (wording used, path) of a prompt's videos
    for video in videos:
        path, asked = f"videos/{video['file']}", video["prompt_en"]
        if static is not None:
            chosen = path in static.get(asked, ())[:SAMPLES]
        else:
            chosen = video["sample_index"] < SAMPLES
        if chosen:
            of.setdefault(asked, []).append((video["prompt_used"], path))
    extended = wording == EXTENDED and dimension in TEXT
    found: list[Entry] = []
    for entry in suite:
        if dimension not in entry["dimension"]:
            continue
        asked = entry["prompt_en"]
        by: dict[str, list[str]] = {}
        for used, path in of.get(asked, []):
            by.setdefault(used if extended else asked, []).append(path)
        about = {**entry, ASKED: asked, "static_filter": static is not None}
        for text, paths in (by or {asked: []}).items():
            found.append({**about, "prompt_en": text, "video_list": paths})
    return found


def other_entries(videos: Sequence[Mapping[str, Any]], dimension: str) -> list[Entry]:
    """Any other prompts: every video for itself, as VBench's mode `custom_input` has them."""
    return [
        {
            "prompt_en": video["prompt_en"],
            "dimension": [dimension],
            "video_list": [f"videos/{video['file']}"],
        }
        for video in videos
    ]


def static_videos() -> dict[str, list[str]]:
    """Videos by prompt that stand still, by VBench's own filter; what it has found is kept.

    Raises:
        subprocess.CalledProcessError: the filter, which wants a CUDA device, failed.
    """
    found = FILTERED / "filtered_static_video.json"
    if not found.is_file():
        from vbench.utils import init_submodules

        init_submodules(["dynamic_degree"])  # fetches RAFT, which the filter uses and does not
        where = ["--videos_path", "videos", "--result_path", str(FILTERED)]
        subprocess.run(["vbench", "static_filter", *where], check=True)
    return {
        prompt: [f"videos/{Path(path).name}" for path in entry["static_path"]]
        for prompt, entry in json.loads(found.read_text(encoding="utf-8")).items()
    }


def evaluate(dimension: str, entries: Sequence[Entry], device: str, output: str) -> None:
    """Let VBench judge these videos; it writes its two files into `output`."""
    import torch
    from vbench import VBench

    class Listed(VBench):
        """VBench with a list of videos that is made already."""

        def build_full_info_json(self, videos_path: str, name: str, *_: Any, **__: Any) -> str:
            path = Path(self.output_path) / f"{name}_full_info.json"
            path.write_text(json.dumps(entries, indent=4), encoding="utf-8")
            return str(path)

    name = f"results_{datetime.now():%Y-%m-%d-%H:%M:%S}"
    mode = "longer"  # as its command has it
    Listed(torch.device(device), "", output).evaluate(
        "videos", name, dimension_list=[dimension], imaging_quality_preprocessing_mode=mode
    )


def main() -> None:
    """The command that evaluate.sh calls, in the folder that has `videos` and manifest.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dimension")
    parser.add_argument("--wording", choices=WORDINGS, required=True)
    parser.add_argument("--others", action="store_true", help="these are not VBench's own prompts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", required=True)
    chosen = parser.parse_args()
    with open("manifest.jsonl", encoding="utf-8") as lines:
        videos = [json.loads(line) for line in lines]
    if chosen.others:
        entries = other_entries(videos, chosen.dimension)
    else:
        import vbench

        file = Path(vbench.__file__).with_name("VBench_full_info.json")
        suite = json.loads(file.read_text(encoding="utf-8"))
        asked = {e["prompt_en"] for e in suite if FLICKERING in e["dimension"]}
        more = any(v["sample_index"] >= SAMPLES for v in videos if v["prompt_en"] in asked)
        # With no more videos than are judged, a filter could only leave prompts without any.
        static = static_videos() if more and chosen.dimension == FLICKERING else None
        entries = suite_entries(suite, videos, chosen.dimension, chosen.wording, static)
    evaluate(chosen.dimension, entries, chosen.device, chosen.output)


if __name__ == "__main__":
    main()
