"""VBench's two prompt lists, line by line the same prompts, and the names of their videos.

`all_dimension.txt` has the wording that VBench asks for, `all_dimension_extended.txt` the one that
is sampled from. Any other prompts can take their places.
"""

import hashlib
import logging
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from datamodules.curation.text_lists import read_lines

log = logging.getLogger(__name__)

PROMPTS = "all_dimension.txt"
EXTENDED = "all_dimension_extended.txt"
LONGEST = 255  # bytes of a file name
# all_dimension.txt of VBench and of Self Forcing, whose lines are the prompts of the package vbench
# 0.1.5 in its order; its first 75 are those of temporal flickering.
SHA256 = "f9b50654f81ab732b9235d5bb91f0c3a4d152fac19249ce3a3a9185b2d80d8c3"
FLICKERING = 75


def read_prompts(benchmark: Path) -> list[str]:
    """The prompts in VBench's wording, by line.

    Raises:
        FileNotFoundError: no such list.
        ValueError: as `text_lists`.
    """
    path = benchmark / PROMPTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; put VBench's prompts/all_dimension.txt there (docs/wan.md)"
        )
    return [line.strip() for _, line in read_lines(path)]


def write_lists(file: Path, benchmark: Path) -> int:
    """Write both lists, with the prompts of a file of one prompt a line; returns their number.

    Such as the 100 prompts of Dynamic Degree, VisionReward and Instruct in the tables of Causal
    Forcing and Causal Forcing++: text_align.txt, attached to issue 25 of thu-ml/Causal-Forcing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompts, or other prompts in the folder.
    """
    prompts = [line.strip() for _, line in read_lines(file) if line.strip()]
    if not prompts:
        raise ValueError(f"{file}: there is no prompt; it must have one a line")
    for name in (PROMPTS, EXTENDED):
        path = benchmark / name
        if path.is_file() and [line for _, line in read_lines(path)] != prompts:
            raise ValueError(f"{path} has other prompts; write to another folder")
    for name in (PROMPTS, EXTENDED):
        write_text(benchmark / name, "\n".join(prompts) + "\n")
    log.info("%d prompts in %s", len(prompts), benchmark)
    return len(prompts)


def check_list(table: Path) -> None:
    """Refuse a list that `score` would refuse after hours of sampling; others pass.

    Raises:
        FileNotFoundError: the list in VBench's wording is not beside it.
        ValueError: a line stands in one of the two lists alone.
    """
    if table.name != EXTENDED:
        return
    sampled = [line.strip() for _, line in read_lines(table)]
    pairs = zip_longest(read_prompts(table.parent), sampled, fillvalue="")
    for number, (asked, used) in enumerate(pairs, 1):
        if bool(asked) != bool(used):
            there, other = (PROMPTS, EXTENDED) if asked else (EXTENDED, PROMPTS)
            raise ValueError(
                f"{table.parent}: line {number} of {there} is {(asked or used)[:60]!r}, {other} has"
                " none; both lists must have the same prompts, line by line"
            )


def videos_of(table: Path, each: int, flickering: int) -> Callable[[str], int]:
    """How many videos are made of the prompt of a name (``line-17``).

    Args:
        table: the list that prompts are read from.
        each: of a prompt.
        flickering: of a prompt of temporal flickering, where the list is VBench's own; no other
            list has such prompts.

    Raises:
        FileNotFoundError: the list in VBench's wording is not beside it.
    """
    prompts = read_prompts(table.parent)
    text = "".join(f"{prompt}\n" for prompt in prompts)
    own = hashlib.sha256(text.encode()).hexdigest() == SHA256
    many = {f"line-{number}" for number in range(1, FLICKERING + 1)} if own else set()
    if not own:
        log.info("%s is not VBench's: %d videos of every prompt", table.parent / PROMPTS, each)
    return lambda name: flickering if name in many else each


def prompt_of(info: dict[str, Any], prompts: list[str]) -> str:
    """VBench's wording of a prompt, by the line number it was curated from.

    Args:
        info: of the sample.
        prompts: of `read_prompts`.

    Raises:
        ValueError: it comes from another list.
    """
    word, _, line = str(info.get("name", "")).partition("-")
    if word != "line" or not line.isdecimal() or not 0 < int(line) <= len(prompts):
        raise ValueError(
            f"the prompt {info['caption']!r} has no line in {PROMPTS} ({len(prompts)} lines);"
            " sample from prompts curated of all_dimension_extended.txt (recipe vbench_prompts)"
        )
    return prompts[int(line) - 1]


def video_name(prompt: str, key: str, index: int) -> str:
    """VBench's file name of the video number `index` of a prompt.

    A prompt that is no file name (a slash, more than 255 bytes) is none of VBench's own, so nothing
    looks for it by name: it is cut, and its sample's `key` makes it unique.
    """
    name = f"{prompt}-{index}.mp4"
    if "/" not in name and len(name.encode()) <= LONGEST:
        return name
    end = f"-{key}-{index}.mp4"
    start = prompt.replace("/", "_").encode()[: LONGEST - len(end)]
    return start.decode(errors="ignore") + end
