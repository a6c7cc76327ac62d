"Gaps: counts of the real annotation files, the filter on captions of people, the cache under many processes."
import itertools
import json
import multiprocessing
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from sail_nbdev import gaps
from sail_nbdev.core import InputError, Video
from sail_nbdev.data import read_annotations
from sail_nbdev.gaps import Answer, AnswerCache, Gap, augment, find_gaps, reject, tidy

ANNOTATIONS = Path(__file__).parents[2]/"shared"/"data"/"annotations"


@pytest.mark.parametrize("name, count", [("anet_train.json", 27_412), ("yc2_train.json", 9_004)])
def test_gaps_of_the_real_training_files(name, count):
    if not (ANNOTATIONS/name).exists(): pytest.skip("the annotation files are not beside this checkout")
    assert len(find_gaps(read_annotations(ANNOTATIONS/name))) == count


# -- the filter

def judged_captions():
    "Every second caption of ActivityNet as if it were the answer for the gap between its neighbours."
    for o in itertools.islice(read_annotations(ANNOTATIONS/"anet_train.json").values(), 0, None, 10):
        for before, human, after in zip(o.captions, o.captions[1:], o.captions[2:]):
            yield reject(tidy(human), Gap("v", 0, tidy(before), tidy(after)), "en")


def test_the_filter_lets_human_captions_through():
    "Few are rejected but for their length."
    if not ANNOTATIONS.exists(): pytest.skip("the annotation files are not beside this checkout")
    rules = Counter(judged_captions())
    n = sum(rules.values())
    assert n > 1500 and rules["refusal"] == 0, rules
    assert rules["other language"] / n < .001, rules
    assert sum(rules[k] for k in ("meta talk", "time stamp", "echo")) / n < .05, rules


# -- the cache

class Length:
    "Says how long a caption is."
    about = {"backend": "length", "model": "len"}

    def __init__(self):
        self.asked = []

    def write(self, gaps, seed):
        for i, g in enumerate(gaps):
            self.asked.append(g)
            yield i, Answer(f"It takes {len(g.before)} letters.", (40, 5))


def boxes(n):
    return {"v": Video("v", tuple(f"A man lifts box {i}." for i in range(n + 1)))}


def test_rows_survive_and_come_once(tmp_path):
    cache = AnswerCache(tmp_path/"c.sqlite")
    cache.add({"key": "a", "answer": "first"})
    cache.add({"key": "a", "answer": "second"}, {"key": "b", "answer": "lone \ud83d surrogate"})
    cache.refresh()
    again = AnswerCache(tmp_path/"c.sqlite")
    assert again.rows == cache.rows and again.rows["a"]["answer"] == "first" and len(again.rows) == 2


def test_a_cache_in_memory_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captions, _ = augment(boxes(3), Length(), progress=False)
    assert len(captions["v"]) == 3 and not any(tmp_path.iterdir())


def test_answers_of_version_0_1_are_taken_over(tmp_path):
    "All whole lines, once; the torn one is asked again, and nothing else."
    augment(boxes(6), Length(), tmp_path/"first.sqlite", progress=False)
    rows = AnswerCache(tmp_path/"first.sqlite").rows.values()
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path/"old.jsonl").write_text("\n".join([*lines[:5], "", '["no row"]', lines[5][:40]]))
    backend = Length()
    captions, _ = augment(boxes(6), backend, tmp_path/"old.sqlite", progress=False)
    assert captions == augment(boxes(6), Length(), progress=False)[0]
    assert [g.index for g in backend.asked] == [json.loads(lines[5])["gap"]]
    assert len((tmp_path/"old.jsonl").read_text().splitlines()) == 8            # it is left as it was


@pytest.mark.parametrize("content", [b'{"key": "a"}\n' * 200, b"SQLite format 3\0 but torn " * 100])
def test_a_file_that_is_no_cache_is_refused(tmp_path, content):
    (tmp_path/"c.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="c.jsonl: the cache of answers cannot be used"):
        AnswerCache(tmp_path/"c.jsonl")
    assert (tmp_path/"c.jsonl").read_bytes() == content


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    cache = AnswerCache(tmp_path/"c.sqlite")
    cache.db.execute("PRAGMA max_page_count=12")
    with pytest.raises(InputError, match="c.sqlite: the cache of answers cannot be used .*full"):
        for i in range(999): cache.add({"key": str(i), "answer": "x" * 500})
    assert len(AnswerCache(tmp_path/"c.sqlite").rows) == i > 10


def test_a_claim_is_renewed_while_the_work_lasts_and_free_after(tmp_path, monkeypatch):
    monkeypatch.setattr(gaps, "LEASE", .4)
    one = AnswerCache(tmp_path/"c.sqlite")
    other = AnswerCache(tmp_path/"c.sqlite")
    with one.claim(["a", "b"], 1) as mine:
        time.sleep(1.2)
        with other.claim(["a", "b"], 9) as rest: assert (mine, rest) == (["a"], ["b"])
    with other.claim(["a", "b"], 9) as rest: assert rest == ["a", "b"]


def test_a_claim_of_the_dead_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gaps, "LEASE", .4)
    AnswerCache(tmp_path/"c.sqlite")._take(["a", "b"], 1)               # and nobody renews it
    other = AnswerCache(tmp_path/"c.sqlite")
    with other.claim(["a", "b"], 9) as rest: assert rest == ["b"]
    time.sleep(.5)
    with other.claim(["a", "b"], 9) as rest: assert rest == ["a", "b"]


def test_an_error_in_the_work_gives_claims_back(tmp_path):
    one = AnswerCache(tmp_path/"c.sqlite")
    with pytest.raises(KeyboardInterrupt), one.claim(["a"], 1): raise KeyboardInterrupt
    assert AnswerCache(tmp_path/"c.sqlite")._take(["a"], 1) == ["a"]


# -- many processes

def fill(path, owner):
    "Open the cache at the same time as others and add fifty rows, each by itself."
    cache = AnswerCache(path)
    for i in range(50): cache.add({"key": f"{owner} {i}"}, {"key": f"all {i}", "by": owner})


def forks():
    "Processes that begin with the package already imported."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sail_nbdev.writers"])
    return context


@pytest.mark.slow
def test_six_processes_write_at_once(tmp_path):
    context = forks()
    processes = [context.Process(target=fill, args=(tmp_path/"c.sqlite", k)) for k in range(6)]
    for p in processes: p.start()
    for p in processes: p.join()
    assert [p.exitcode for p in processes] == [0] * 6
    assert len(AnswerCache(tmp_path/"c.sqlite").rows) == 6 * 50 + 50
    with sqlite3.connect(tmp_path/"c.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def fill_for_ever(path):
    "Add rows until killed."
    cache = AnswerCache(path)
    for i in itertools.count(len(cache.rows)):
        cache.add({"key": str(i), "answer": "x" * 300})
        time.sleep(.001)


@pytest.mark.slow
def test_killed_while_writing(tmp_path):
    "Thirty times: the file stays whole, and no committed row is lost."
    context = forks()
    rows = 0
    for _ in range(30):
        p = context.Process(target=fill_for_ever, args=(tmp_path/"c.sqlite",))
        p.start()
        begin = time.time()
        while len(AnswerCache(tmp_path/"c.sqlite").rows) <= rows and time.time() - begin < 60: time.sleep(.01)
        seen = len(AnswerCache(tmp_path/"c.sqlite").rows)
        p.kill()
        p.join()
        rows = len(AnswerCache(tmp_path/"c.sqlite").rows)
        assert rows >= seen > 0
    assert [*AnswerCache(tmp_path/"c.sqlite").rows] == [str(i) for i in range(rows)]
