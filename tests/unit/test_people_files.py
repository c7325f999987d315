"""Files as people have them: read as they are meant, or refused with what helps."""

from __future__ import annotations

import json

import pytest

from launcher.clusters.hostfile import check_host
from launcher.ranks.environment import find_process
from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source, extra_splits, read_rows, read_split
from prompt_tuning.errors import UserError
from prompt_tuning.settings.sections import DataSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.tiny import make_tokenizer

ROWS = [{"text": "w1", "label": "a"}, {"text": "w2", "label": "b"}]
TEXTS, TAGS, SPANS = (find_task({"kind": kind}) for kind in ("classification", "tagging", "span"))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "text", [lines(ROWS), json.dumps(ROWS), json.dumps(ROWS, indent=1), json.dumps({"data": ROWS}), "\n" + lines(ROWS)]
)
def test_json_is_read_by_its_content(tmp_path, text):
    file = tmp_path / "train.json"
    file.write_text(text)
    assert [row for _, row in read_rows(file, TEXTS)] == ROWS


def test_a_row_with_a_column_called_data_is_a_row(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(lines([{"data": [1], "label": "a"}] * 2))
    assert len(read_rows(file, TEXTS)) == 2


def test_tagged_sentences_may_be_json_lines_called_json(tmp_path):
    rows = [{"words": ["a", "b"], "tags": ["O", "B-X"]}]
    (tmp_path / "dev.json").write_text(lines(rows))
    assert [row for _, row in read_rows(tmp_path / "dev.json", TAGS)] == rows


def test_questions_in_json_come_in_either_layout(tmp_path):
    row = {"question": "q", "context": "c", "answers": []}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    assert [read_rows(tmp_path / f"{name}.json", SPANS)[0][1] for name in ("rows", "squad")] == [row, row]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1\n', "train.json:2: not JSON"),
        ("[1]", r"entry 0 of the list is 1"),
        ("3", "holds 3"),
        ('[{"a": 1}\n{"b"', "2: not JSON"),
    ],
)
def test_json_that_is_neither_is_refused(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / "train.json", TEXTS)


def test_a_field_too_many_in_a_tsv_is_not_mended_by_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"w1\tw2"\ta\n')
    with pytest.raises(UserError, match=r"columns are parted by tabs, so a text has none"):
        read_rows(tmp_path / "a.tsv")


CONLLU = """# newdoc\tid=1
# id 1\tdomain=en
1-2\tdont\t_
1\tdo\tB-X
2\tnt\tO

1\t1\tO
2\t2\tO
2.1\tghost\t_

1\t#\tO
"""


def test_a_column_that_counts_is_told_by_the_whole_file_and_extra_rows_are_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "dev.conllu").write_text(CONLLU)
    words = [row["words"] for _, row in read_rows(tmp_path / "dev.conllu", TAGS)]
    assert words == [["do", "nt"], ["1", "2"], ["#"]]
    assert "2 rows are no words of their own" in caplog.text


def test_a_sentence_of_numbers_does_not_make_a_column_count(tmp_path):
    (tmp_path / "dev.txt").write_text("1\tx\tO\n2\tx\tO\n\nAnna\tx\tB-PER\n")
    assert [row["words"] for _, row in read_rows(tmp_path / "dev.txt", TAGS)] == [["1", "2"], ["Anna"]]


def test_the_folder_of_another_task_is_no_language_of_this_one(tmp_path):
    row = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    for name in ("SNLI/test.jsonl", "SST-2/test.jsonl", "de/test.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(lines([row]))
    assert extra_splits(find_task("xnli"), Source(str(tmp_path))) == ["test/de"]


def test_a_missing_split_names_what_comes_near(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    (tmp_path / "dev32.jsonl").write_text(lines(ROWS))
    with pytest.raises(
        UserError, match=r"dev split .* is missing; .*dev32\.jsonl lies there and would have to be renamed"
    ):
        load_task_data(TEXTS, None, Source(str(tmp_path)), Encoding(20))


class Slow:
    """A tokenizer in Python."""

    is_fast = False


@pytest.mark.parametrize("task", [TAGS, SPANS])
def test_a_tokenizer_without_offsets_is_refused_where_they_are_needed(tmp_path, task):
    row = {"words": ["a", "b"], "tags": ["O", "B-X"], "question": "q", "context": "c", "answers": None}
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(lines([row]))
    with pytest.raises(UserError, match=r"tokenizer \(Slow\) tells no character offsets"):
        load_task_data(task, Slow(), Source(str(tmp_path)), Encoding(20))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("kim@192.168.7.10", "HostName 192.168.7.10, User kim"),
        ("worker-1:2222", "HostName worker-1, Port 2222"),
        ("kim@w:22", "HostName w, User kim, Port 22"),
        ("fe80::1ff:fe23", "HostName fe80::1ff:fe23"),
        ("[fe80::1]", "HostName fe80::1"),
    ],
)
def test_what_is_no_host_name_is_given_to_ssh_instead(name, facts):
    with pytest.raises(UserError, match="is no host name") as caught:
        check_host(name, "hostfile h:1")
    assert f"~/.ssh/config (Host NAME with {facts})" in str(caught.value)


def test_job_numbers_of_federated_slurm_have_ten_digits():
    job = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "4294967297"}
    assert find_process(environment=job).rank == 1


def test_files_of_any_name_are_named_in_the_run_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "msr_train.txt").write_text("Quality\t#1 String\t#2 String\n1\tw1\tw2\n0\tw3\tw4\n")
    (tmp_path / "b.data").write_text('{"sentence1": "w1", "sentence2": "w2", "label": 1}\n')
    files = {"train": "a/msr_train.txt", "dev": str(tmp_path / "b.data"), "test/other": "a/msr_train.txt"}
    mrpc = find_task("mrpc")
    data = load_task_data(mrpc, make_tokenizer(), Source(str(tmp_path), files), Encoding(20))
    assert {split: features.labels.tolist() for split, features in data.splits.items()} == {
        "train": [1, 0], "dev": [1], "test/other": [1, 0],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"the dev split of .* is missing; name its file in data\.files, as dev"):
        load_task_data(mrpc, make_tokenizer(), Source(str(tmp_path), {"train": files["train"]}), Encoding(20))
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file"):
        load_task_data(mrpc, make_tokenizer(), Source(None, {**files, "train": "nowhere.txt"}), Encoding(20))
    (tmp_path / "c.txt").write_text("only words\n")
    with pytest.raises(UserError, match=r"c\.txt: neither JSON nor columns parted by tabs"):
        read_rows(tmp_path / "c.txt", mrpc)


@pytest.mark.parametrize("name", ["valid", "test/", "train/a", "../x"])
def test_a_split_of_another_name_is_refused_in_the_run_file(name):
    with pytest.raises(ValueError, match="is no split; give train, dev, test or test/<name>"):
        DataSection(files={name: "a.txt"})


def test_entities_of_conll04s_json_become_tags(tmp_path):
    entities = [{"type": "Peop", "start": 0, "end": 2}, {"type": "Loc", "start": 3, "end": 4}]
    row = {"tokens": ["w1", "w2", "w3", "w4"], "entities": entities, "relations": [], "orig_id": 5}
    for split in ("train", "dev"):
        (tmp_path / f"conll04_{split}.json").write_text(json.dumps([row, {"tokens": ["w1"], "entities": []}]))
    conll04 = find_task("conll04")
    data = load_task_data(conll04, make_tokenizer(), Source(str(tmp_path)), Encoding(20))
    assert list(data.splits["train"].notes.tags) == [("B-Peop", "I-Peop", "O", "B-Loc"), ("O",)]
    for wrong in ({"type": "Loc", "start": 1, "end": 3}, {"type": "Loc", "start": 3, "end": 3}, {"start": 0, "end": 1}):
        (tmp_path / "conll04_dev.json").write_text(json.dumps([{**row, "entities": [*entities[:1], wrong]}]))
        with pytest.raises(UserError, match=r"conll04_dev\.json\[0\]: the row does not fit task 'conll04'"):
            load_task_data(conll04, make_tokenizer(), Source(str(tmp_path)), Encoding(20))


def test_propbanks_own_columns_are_told_from_those_of_conll_2012(tmp_path):
    words = [("w1", "-", "(ARG0*)"), ("w2", "go.01", "(V*)"), ("w3", "-", "*")]
    short = "".join(f"d 0 {i} {word} NN * {word} {sense} {tag}\n" for i, (word, sense, tag) in enumerate(words))
    long = "".join(f"d 0 {i} {word} NN * {word} {sense} 1 - * {tag} -\n" for i, (word, sense, tag) in enumerate(words))
    expected = [{"words": ["w1", "w2", "w3"], "predicate": ["w2"], "tags": ["B-ARG0", "B-V", "O"]}]
    for name, text in (("train.gold_conll", short), ("dev.gold_conll", long)):
        (tmp_path / name).write_text(text)
        assert [row for _, row in read_rows(tmp_path / name, find_task("conll12"))] == expected
        assert [row for _, row in read_rows(tmp_path / name, find_task("propbank"))] == expected


def test_xnlis_own_tables_are_read_in_their_languages(tmp_path):
    (tmp_path / "multinli.train.en.tsv").write_text("premise\thypo\tlabel\nw1\tw2\tcontradictory\nw3\tw4\tneutral\n")
    head = "language\tgold_label\tsentence1\tsentence2\n"
    rows = {language: f"{language}\tentailment\tw{i}\tw9\n" for i, language in enumerate(("de", "en", "zh"))}
    for split in ("dev", "test"):
        (tmp_path / f"xnli.{split}.tsv").write_text(head + "".join(rows.values()) + rows["en"])
    data = load_task_data(find_task("xnli"), make_tokenizer(), Source(str(tmp_path)), Encoding(20), splits=None)
    assert data.splits["train"].labels.tolist() == [2, 1] and len(data.splits["dev"]) == 2
    assert {split: len(features) for split, features in data.splits.items() if "/" in split} == {
        "test/de": 1, "test/en": 2, "test/zh": 1,
    }  # fmt: skip


def test_the_parts_and_the_kind_of_a_file_tell_its_splits_apart(tmp_path):
    task, head = find_task("xnli"), "language\tgold_label\tsentence1\tsentence2\n"
    for name in ("multinli.train.en.tsv", "xnli.dev.tsv", "xnli.test.tsv"):
        (tmp_path / name).write_text(head)
    marks = {split: read_split(task, Source(str(tmp_path)), split).mark() for split in ("dev", "test/de", "test/zh")}
    text = find_task({"kind": "classification"})
    for suffix in (".csv", ".tsv"):
        file = tmp_path / f"same{suffix}"
        file.write_text("text,label\n")
        marks[suffix] = read_split(text, Source(files={"dev": str(file)}), "dev").mark()
    assert len(set(marks.values())) == len(marks)


def test_cola_with_names_of_columns_is_read_by_them(tmp_path):
    cola = find_task("cola")
    (tmp_path / "in_domain_train.tsv").write_text("gj04\t1\t\tw1 w2\ngj04\t0\t*\tw3\n")
    (tmp_path / "in_domain_dev.tsv").write_text("label\tsentence\n1\tw1 w2\n")
    (tmp_path / "out_of_domain_dev.tsv").write_text("gj04\t0\t\tw1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tw1\n")
    data = load_task_data(cola, make_tokenizer(), Source(str(tmp_path)), Encoding(20))
    assert {split: features.labels.tolist() for split, features in data.splits.items()} == {
        "train": [1, 0], "dev": [1], "test/out_of_domain": [0],
    }  # fmt: skip


def test_conll_u_is_asked_for_the_column_of_its_tags(tmp_path):
    line = "{i}\tw{i}\tw{i}\tNOUN\tNN\t_\t0\troot\t_\t{misc}\n"
    text = "".join(line.format(i=i, misc=misc) for i, misc in ((1, "_"), (2, "SpaceAfter=No"))) + "\n"
    (tmp_path / "dev.conllu").write_text(text)
    with pytest.raises(UserError, match=r"ten columns as in CoNLL-U, .* task\.tag_column 3"):
        read_rows(tmp_path / "dev.conllu", TAGS)
    tags = find_task({"kind": "tagging", "tag_column": 3})
    assert [row["tags"] for _, row in read_rows(tmp_path / "dev.conllu", tags)] == [["NOUN", "NOUN"]]
