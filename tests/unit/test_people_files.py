"""Files as people have them: read as they are meant, or refused with what helps."""

from __future__ import annotations

import json

import pytest

from launcher.clusters.hostfile import check_host
from launcher.ranks.environment import find_process
from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import extra_splits, read_rows
from prompt_tuning.errors import UserError
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding

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
    assert extra_splits(find_task("xnli"), str(tmp_path)) == ["test/de"]


def test_a_missing_split_names_what_comes_near(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    (tmp_path / "dev32.jsonl").write_text(lines(ROWS))
    with pytest.raises(
        UserError, match=r"dev split .* is missing; .*dev32\.jsonl lies there and would have to be renamed"
    ):
        load_task_data(TEXTS, None, str(tmp_path), Encoding(20))


class Slow:
    """A tokenizer in Python."""

    is_fast = False


@pytest.mark.parametrize("task", [TAGS, SPANS])
def test_a_tokenizer_without_offsets_is_refused_where_they_are_needed(tmp_path, task):
    row = {"words": ["a", "b"], "tags": ["O", "B-X"], "question": "q", "context": "c", "answers": None}
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(lines([row]))
    with pytest.raises(UserError, match=r"tokenizer \(Slow\) tells no character offsets"):
        load_task_data(task, Slow(), str(tmp_path), Encoding(20))


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
