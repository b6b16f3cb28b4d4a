"""Must I re-index? On samples whose answer is known, and through the command with rows saved or given."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder, colour_dataset, custom
from paired_runs import evidence, run_of, score_of

from clipbench.cli import main
from clipbench.embed.embedder import Embedder
from clipbench.errors import UsageError
from clipbench.experiments import result_of as measured_result
from clipbench.experiments.retrieval import COCO_RETRIEVAL
from clipbench.judge.reindex import (
    CROSS_MODEL,
    CROSS_REVERSED,
    SELF_NEW,
    SELF_OLD,
    SearchSample,
    encode_queries,
    reindex_advice,
    reindex_answers,
    reindex_rules,
    saved_sample,
)
from clipbench.metrics import hits_at, retrieval
from clipbench.models.device import Resources
from clipbench.report.comparison import index_lines, index_verdicts
from clipbench.saved_rows import SavedRows, write_rows
from clipbench.storage import dump_json, run_to_json
from clipbench.types import DatasetIdentity, ModelIdentity, Protocol, Result, Run

IMAGES, TEXTS, DIM = 1000, 1500, 24


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(n, seed, dim=DIM):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


ROWS = drawn(IMAGES, 0)
TRUTH = np.arange(TEXTS) % IMAGES
QUERIES = unit(ROWS[TRUTH] + 0.6 * drawn(TEXTS, 1))
ROTATION = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM, DIM)))[0].astype(np.float32)


def sample(new_queries=QUERIES, new_rows=ROWS, truth=TRUTH, **more):
    return SearchSample("a test", QUERIES, new_queries, more.pop("old_rows", ROWS), new_rows, TRUTH, truth)


def ask(**sides):
    return reindex_advice(sample(**sides), reindex_rules())


def noisy(rows, share, seed=5):
    return unit(rows + share * drawn(len(rows), seed))


@pytest.mark.parametrize("truth", [TRUTH, None], ids=["truth known", "truth unknown"])
def test_a_model_that_did_not_move_needs_no_new_index(truth):
    found = ask(truth=truth)
    assert found.answer == "no need"
    assert found.overlap_fresh[CROSS_MODEL].value == 1
    assert found.cutoffs_word == "hold"


@pytest.mark.parametrize("truth", [TRUTH, None], ids=["truth known", "truth unknown"])
def test_a_model_whose_space_was_turned_needs_one_though_it_is_as_good_on_its_own(truth):
    found = ask(new_queries=QUERIES @ ROTATION, new_rows=ROWS @ ROTATION, truth=truth)
    assert found.answer == "re-index"
    assert found.overlap_today[SELF_NEW].value > 0.99
    assert found.overlap_fresh[CROSS_MODEL].high < 0.1
    assert found.cutoffs_on == SELF_NEW
    assert found.cutoffs_word == "hold"
    if truth is not None:
        assert found.recall[SELF_NEW] == found.recall[SELF_OLD]
        assert found.recall_loss.low > 0.5


def test_a_model_that_moved_a_little_needs_none_and_one_that_moved_more_does():
    answers = [ask(new_queries=noisy(QUERIES, s), new_rows=noisy(ROWS, s, 6), truth=None).answer for s in (0.005, 0.5)]
    assert answers == ["no need", "re-index"]


def test_other_results_that_are_as_right_need_no_new_index_where_the_truth_is_known():
    new_rows = noisy(ROWS, 0.2)
    found = ask(new_rows=new_rows)
    assert found.overlap_fresh[CROSS_MODEL].high < reindex_rules().overlap
    assert found.answer == "no need"
    assert ask(new_rows=new_rows, truth=None).answer == "re-index"


def test_dims_that_differ_need_a_new_index_whatever_the_sample():
    found = reindex_advice(SearchSample("a test", QUERIES[:3], drawn(3, 7, 8), ROWS, None, TRUTH[:3]), reindex_rules())
    assert found.answer == "re-index"
    assert "rows of dim 24, the new model's queries have 8" in found.reason


def test_new_rows_of_another_dim_are_compared_where_they_can_be():
    found = reindex_advice(
        SearchSample("a test", QUERIES, drawn(TEXTS, 7, 8), ROWS, drawn(IMAGES, 8, 8), TRUTH, TRUTH), reindex_rules()
    )
    assert found.answer == "re-index"


@pytest.mark.parametrize(("queries", "rows"), [(199, 1000), (1000, 999)])
def test_a_sample_too_small_is_inconclusive_and_says_what_to_supply(queries, rows):
    truth = np.arange(queries) % rows
    small = SearchSample("a test", QUERIES[:queries], QUERIES[:queries], ROWS[:rows], ROWS[:rows], truth, truth)
    found = reindex_advice(small, reindex_rules())
    assert found.answer == "inconclusive"
    assert "are too few" in found.reason
    assert "--index OLD.npy NEW.npy --queries TEXTS.txt" in found.reason
    assert found.overlap_fresh[CROSS_MODEL].value == 1


def test_repeated_queries_count_once():
    again = replace(sample(), clusters=np.arange(TEXTS) % 50, truth=None)
    assert "50 independent queries" in reindex_advice(again, reindex_rules()).reason


def test_an_interval_across_the_threshold_is_inconclusive():
    rules = replace(
        reindex_rules(), overlap=ask(new_rows=noisy(ROWS, 0.2), truth=None).overlap_fresh[CROSS_MODEL].value
    )
    found = reindex_advice(sample(new_rows=noisy(ROWS, 0.2), truth=None), rules)
    assert found.answer == "inconclusive"
    assert "supply more queries" in found.reason


def test_without_new_rows_it_can_be_shown_that_nothing_need_be_done_and_never_that_re_indexing_would_help():
    same = ask(new_queries=noisy(QUERIES, 0.005), new_rows=None, truth=None)
    turned = ask(new_queries=QUERIES @ ROTATION, new_rows=None, truth=None)
    assert (same.answer, turned.answer) == ("no need", "inconclusive")
    assert "supply the same items encoded by the new model" in turned.reason
    assert set(turned.scores) == {SELF_OLD, CROSS_MODEL}


def test_scores_that_shrink_break_cut_offs_though_every_list_stays_the_same():
    lift = np.zeros((1, DIM + 1), dtype=np.float32)
    lift[0, -1] = 1.0
    wide = np.hstack([ROWS, np.zeros((IMAGES, 1), np.float32)])
    queries = np.hstack([QUERIES, np.zeros((TEXTS, 1), np.float32)])
    found = reindex_advice(
        SearchSample("a test", queries, unit(queries + lift), wide, wide, TRUTH, TRUTH), reindex_rules()
    )
    assert found.answer == "no need"
    assert found.cutoffs_word == "break"
    assert [c.new for c in found.cutoffs] == [0, 0, 0, 0]
    assert found.scores[CROSS_MODEL] == pytest.approx(np.array(found.scores[SELF_OLD]) / np.sqrt(2), rel=1e-5)
    assert [v.outcome for v in index_verdicts([found])] == ["pass", "note"]


def test_every_search_that_can_be_made_is_shown_with_overlap_recall_and_scores():
    text = "\n".join(index_lines([ask(new_queries=noisy(QUERIES, 0.01), new_rows=noisy(ROWS, 0.01))]))
    assert all(
        name in text for name in (SELF_OLD, CROSS_MODEL, CROSS_REVERSED, SELF_NEW, "overlap@10", "recall@10", "p95")
    )


def result_of(saved):
    ranks = retrieval(saved.image_rows, saved.text_rows, saved.text_image).text_to_image.ranks
    scores = [
        score_of(f"image_retrieval_recall@{k}", hits_at(ranks, k), saved.text_ids, tuple(map(str, saved.text_image)))
        for k in (1, 5, 10)
    ]
    protocol = Protocol(("{caption}",))
    named = {s.spec.name: s for s in scores}
    kept = {"images": evidence(saved.image_ids)}
    return Result(saved.experiment, saved.model, saved.dataset, protocol, named, evidence=kept)


def saved_rows(rows=ROWS, queries=QUERIES, name="lite", fingerprint="f" * 64):
    ids = tuple(f"image {i}" for i in range(len(rows)))
    texts = tuple(f"text {i}" for i in range(len(queries)))
    model, data = ModelIdentity(name, "lite", "a" * 64), DatasetIdentity("a set", fingerprint, len(rows))
    return SavedRows("coco_retrieval", model, data, rows, queries, ids, texts, TRUTH[: len(queries)])


@pytest.fixture
def write(tmp_path):
    """Write a run, and the rows beside it unless None; return the run file's path."""

    def call(side, saved, beside=True):
        folder = tmp_path / side
        folder.mkdir(exist_ok=True)
        path = folder / "run.json"
        path.write_text(dump_json({"clipbench": run_to_json(run_of(result_of(saved)))}))
        if beside:
            write_rows(folder, saved)
        return path

    return call


TURNED = {"rows": unit(ROWS @ ROTATION), "queries": unit(QUERIES @ ROTATION)}


@pytest.mark.parametrize(
    ("head", "code", "words"),
    [
        ({}, 0, "must I re-index? no need"),
        (TURNED, 1, "must I re-index? re-index"),
        ({**TURNED, "name": "ViT-B/16"}, 1, "lite -> ViT-B/16 on coco_retrieval (a set)"),
    ],
    ids=["same", "turned", "another model"],
)
def test_rows_that_both_runs_saved_answer_with_recall_and_the_exit_code_follows(write, capsys, head, code, words):
    base, new = write("base", saved_rows()), write("head", saved_rows(**head))
    assert main(["compare", str(base), str(new), "--index"]) == code
    output = capsys.readouterr().out
    assert words in output
    assert "recall@10" in output


def test_every_format_carries_the_answer(write, capsys):
    base, head = write("base", saved_rows()), write("head", saved_rows(**TURNED))
    main(["compare", str(base), str(head), "--index", "--format", "json"])
    entry = json.loads(capsys.readouterr().out)
    assert entry["index"][0]["answer"] == "re-index"
    assert entry["command"].endswith("--index")
    main(["compare", str(base), str(head), "--index", "--format", "markdown"])
    assert "### Must I re-index? Re-index" in capsys.readouterr().out
    main(["compare", str(base), str(head), "--index", "--format", "github"])
    assert "re-index: recall@10" in capsys.readouterr().out


def test_runs_without_saved_rows_are_inconclusive_and_exit_with_3(write, capsys):
    base, head = write("base", saved_rows()), write("head", saved_rows(), beside=False)
    assert main(["compare", str(base), str(head), "--index"]) == 3
    assert "--save-embeddings" in capsys.readouterr().out


def test_rows_of_other_items_are_not_compared(write):
    base, head = write("base", saved_rows()), write("head", saved_rows(fingerprint="0" * 64), beside=True)
    run = Run({}, (result_of(saved_rows()),))
    other = Run({}, (result_of(saved_rows(fingerprint="0" * 64)),))
    (answer,) = reindex_answers((base, run), (head, other), [], [])
    assert answer.answer == "inconclusive"
    assert "no retrieval rows of the same data set" in answer.reason


def test_rows_of_an_older_session_beside_a_newer_run_are_refused(write, capsys):
    base = write("base", saved_rows())
    write("base", saved_rows(queries=drawn(TEXTS, 3)), beside=False)
    head = write("head", saved_rows())
    assert main(["compare", str(base), str(head), "--index"]) == 2
    assert "they are of another session" in capsys.readouterr().err


def test_items_are_matched_by_id_and_those_of_one_run_alone_are_left_out():
    old = saved_rows()
    order = np.random.default_rng(0).permutation(IMAGES)[: IMAGES - 5]
    places = {int(image): place for place, image in enumerate(order)}
    texts = [t for t in range(TEXTS) if int(TRUTH[t]) in places][::-1]
    new = replace(
        old, image_rows=ROWS[order], image_ids=tuple(old.image_ids[i] for i in order), text_rows=QUERIES[texts],
        text_ids=tuple(old.text_ids[t] for t in texts), text_image=np.array([places[int(TRUTH[t])] for t in texts]),
    )  # fmt: skip
    found = saved_sample(old, new)
    assert found.old_rows.shape == (IMAGES - 5, DIM)
    np.testing.assert_array_equal(found.old_rows, found.new_rows)
    np.testing.assert_array_equal(found.old_queries, found.new_queries)
    assert reindex_advice(found, replace(reindex_rules(), rows=IMAGES - 5)).answer == "no need"


@pytest.fixture
def files(tmp_path):
    """Two indexes, two files of query rows, and a file of texts, by name."""
    arrays = {
        "old": ROWS,
        "new": TURNED["rows"],
        "old_q": QUERIES,
        "new_q": TURNED["queries"],
        "wide": drawn(IMAGES, 1, 32),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array.astype(np.float16))
    (tmp_path / "texts.txt").write_text("a dog\na cat\n")
    return lambda *names: [str(tmp_path / (n if "." in n else f"{n}.npy")) for n in names]


def test_an_index_of_one_s_own_with_query_rows_is_answered_without_torch(write, files):
    base, head = write("base", saved_rows(), beside=False), write("head", saved_rows(), beside=False)
    words = ["compare", str(base), str(head), "--index", *files("old", "new"), "--queries", *files("old_q", "new_q")]
    code = (
        f"import sys; from clipbench.cli import main; code = main({words!r})\n"
        "print(code, [m for m in ('torch', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "1 []"
    assert "must I re-index? re-index (old.npy (1500 queries))" in done.stdout


@pytest.mark.parametrize(
    ("index", "queries", "words"),
    [
        (["old"], [], "--index takes no file"),
        ([], ["texts.txt"], "--index takes no file"),
        (["old", "new", "old"], ["texts.txt"], "--index takes no file"),
        (["old"], ["old_q", "new_q", "old_q"], "--index takes no file"),
        (["wide"], ["old_q", "new_q"], "wide.npy has rows of dim 32, the base model's queries have 24"),
        (["old", "wide"], ["old_q", "new_q"], "wide.npy has rows of dim 32, the head model's queries have 24"),
        (["old", "old_q"], ["old_q", "new_q"], "1000 rows, "),
        (["old"], ["old_q", "new"], "1500 rows, "),
        (["missing"], ["old_q", "new_q"], "missing.npy is not there; expected"),
        (["texts.txt"], ["old_q", "new_q"], "texts.txt cannot be read: it is pickled or no numpy file"),
    ],
)
def test_options_and_files_that_do_not_fit_are_exit_code_2_and_one_line(write, files, capsys, index, queries, words):
    base, head = write("base", saved_rows(), beside=False), write("head", saved_rows(), beside=False)
    arguments = ["compare", str(base), str(head), "--index", *files(*index)]
    assert main(arguments + (["--queries", *files(*queries)] if queries else [])) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_queries_without_an_index_are_a_usage_error(write, files, capsys):
    base = str(write("base", saved_rows(), beside=False))
    assert main(["compare", base, base, "--queries", *files("texts.txt")]) == 2
    assert "--queries goes with --index" in capsys.readouterr().err


def test_texts_for_two_runs_of_the_same_weights_are_inconclusive_since_only_the_software_differs(write, files, capsys):
    base, head = write("base", saved_rows(), beside=False), write("head", saved_rows(), beside=False)
    assert main(["compare", str(base), str(head), "--index", *files("old"), "--queries", *files("texts.txt")]) == 3
    assert "same weights in the same precision" in capsys.readouterr().out


def test_texts_for_a_run_of_several_models_are_refused_by_name(files):
    two = Run({}, (result_of(saved_rows()), result_of(saved_rows(name="RN50"))))
    one = Run({}, (result_of(saved_rows()),))
    paths = [Path(p) for p in files("old")], [Path(p) for p in files("texts.txt")]
    with pytest.raises(UsageError, match="HEAD has results of 2 models"):
        reindex_answers((Path("b"), one), (Path("h"), two), *paths)


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """An importable encoder that leaves a file when it is made; returns that file."""
    (tmp_path / "payload.py").write_text(
        "from pathlib import Path\nimport numpy as np\n"
        f"def go():\n    Path({str(tmp_path / 'ran')!r}).touch()\n    return Encoder()\n"
        "class Encoder:\n    def encode_images(self, images): return np.ones((len(images), 24))\n"
        "    def encode_texts(self, texts): return np.ones((len(texts), 24))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "ran"
    sys.modules.pop("payload", None)


def factory_run(name="payload:go"):
    saved = saved_rows(name=name)
    return replace(saved, model=ModelIdentity(name, "factory"))


@pytest.mark.fault("code in a run file")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "add --model NAME"),
        (["--model", "lite"], "--model lite is 'lite', but BASE was measured with 'payload:go'"),
        (["--model", "a:b,c:d,e:f"], "here 3"),
    ],
)
def test_a_run_file_never_loads_the_model_that_it_names(write, files, capsys, payload, more, words):
    run = str(write("base", factory_run(), beside=False))
    assert main(["compare", run, run, "--index", *files("old"), "--queries", *files("texts.txt"), *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not payload.exists()
    assert "payload" not in sys.modules


def test_a_model_that_the_user_names_himself_encodes_the_texts(write, files, capsys, payload):
    run = str(write("base", factory_run(), beside=False))
    words = ["compare", run, run, "--index", *files("old"), "--queries", *files("texts.txt"), "--model", "payload:go"]
    assert main([*words, "--format", "json"]) == 3
    entry = json.loads(capsys.readouterr().out)
    assert "2 independent queries" in entry["index"][0]["reason"]
    assert entry["command"].endswith("--model payload:go")
    assert payload.exists()


def test_texts_are_encoded_by_the_model_named_if_it_is_the_run_s(tiny_models, monkeypatch):
    from pathlib import Path

    from clipbench.errors import ClipbenchError
    from clipbench.models import zoo
    from clipbench.models.zoo import resolve
    from clipbench.session import evaluate

    known = {**zoo.open_clip_configs(), **dict.fromkeys(("tiny-vit", "tiny-vit-quickgelu"), Path("unused"))}
    monkeypatch.setattr("clipbench.models.zoo.open_clip_configs", lambda: known)
    run = evaluate("tiny-vit", ["model_card"], pretrained="random:3", device="cpu")
    model = run.results[0].model
    (spec,) = resolve(["tiny-vit"], "random:3")
    rows = encode_queries(spec, model, ["a dog", "a cat"])
    assert rows.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    with pytest.raises(ClipbenchError, match="are not the run's"):
        encode_queries(spec, replace(model, weights_sha256="0" * 64), ["a dog"])
    with pytest.raises(ClipbenchError, match="the run has precision 'int8', expected one of fp32"):
        encode_queries(spec, replace(model, precision="int8"), ["a dog"])
    with pytest.raises(ClipbenchError, match="the run's model 'other'; give --activation"):
        encode_queries(spec, replace(model, activation="other"), ["a dog"])


def test_the_rows_of_a_result_are_those_that_were_scored(tmp_path):
    embedder, dataset = Embedder(custom(ColourEncoder()), Resources()), colour_dataset(tmp_path)
    measured = COCO_RETRIEVAL.measure(embedder, dataset)
    result = measured_result(COCO_RETRIEVAL, embedder.encoder, dataset, measured)
    saved = SavedRows.of(result, measured)
    assert (saved.experiment, saved.dataset, saved.model) == ("coco_retrieval", result.dataset, result.model)
    assert saved.image_rows.shape == saved.text_rows.shape == (4, 3)
    assert saved.text_ids == result.scores["image_retrieval_recall@1"].outcomes.ids
    assert saved.image_ids == result.scores["text_retrieval_recall@1"].outcomes.ids
    assert saved.text_image.tolist() == [0, 1, 2, 3]
