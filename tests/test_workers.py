"""Decoding processes: order, rejections, deaths, and repeated deaths as an error."""

import os
import signal
import time

import pytest

from datamodules.curation.refusal import Refused
from datamodules.curation.workers import DIED, MOST_DEATHS, Workers


def work(item):
    """What to do, as the item says."""
    kind, number = item
    if kind == "slow":
        time.sleep(0.2)
    elif kind == "refuse":
        raise Refused("odd", str(number))
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        time.sleep(60)
    elif kind == "disk":
        raise OSError(5, "Input/output error")
    return number * number, os.getpid()


def kinds(text):
    words = {"s": "slow", "r": "refuse", "d": "die", "h": "hang", "o": "disk", ".": "quick"}
    return [(words[letter], number) for number, letter in enumerate(text)]


def told(result):
    return (result.reason, result.detail) if isinstance(result, Refused) else result[0]


def mapped(text, count, patience_s=30.0):
    items = kinds(text)
    with Workers(work, count, patience_s) as workers:
        found = list(workers.map(iter(items)))
    assert [item for item, _ in found] == items
    return [result for _, result in found]


def test_results_come_in_order_and_refusals_among_them():
    alone = [told(result) for result in mapped("s..r...s.r", 0)]
    assert alone == [0, 1, 4, ("odd", "3"), 16, 25, 36, 49, 64, ("odd", "9")]
    together = mapped("s..r...s.r", 3)
    assert [told(result) for result in together] == alone
    processes = {result[1] for result in together if not isinstance(result, Refused)}
    assert 2 <= len(processes) <= 3 and os.getpid() not in processes
    assert mapped("", 2) == []


def test_a_dead_decoder_loses_its_item_and_nothing_else():
    found = [told(result) for result in mapped(".d..d...", 2)]
    lost = (DIED, "its decoder died (exit code -9)")
    assert found == [0, lost, 4, 9, lost, 25, 36, 49]


def test_a_hanging_decoder_is_killed():
    start = time.monotonic()
    found = [told(result) for result in mapped(".h.", 1, patience_s=1.5)]
    assert found == [0, (DIED, "no result after 1.5 s"), 4]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("count", [0, 1])
def test_a_broken_disk_is_not_the_videos_fault(count):
    with pytest.raises(OSError, match="Input/output error"):
        mapped("..o..", count)


def test_decoders_that_die_one_after_the_other_stop_the_run():
    with pytest.raises(RuntimeError, match="11 decoders died .*launch.workers lower"):
        mapped("d" * (MOST_DEATHS + 3), 2)


def test_no_more_is_fetched_than_is_needed_soon():
    fetched = []

    def items():
        for item in kinds("s" + "." * 29):
            fetched.append(item)
            yield item

    with Workers(work, 2) as workers:
        results = workers.map(items())
        next(results)
        assert len(fetched) <= 2 + 2
        assert len(list(results)) == 29


def test_nobody_idles_while_results_are_used():
    fetched = []

    def items():
        for item in kinds("." * 12):
            fetched.append(item)
            yield item

    with Workers(work, 2) as workers:
        for used, _ in enumerate(workers.map(items()), 1):
            if used > 2:
                assert len(fetched) >= min(12, used + 2), "two are at work, or there are no more"
            time.sleep(0.1)
