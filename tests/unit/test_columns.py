"""Files of tagged sentences, propositions and questions: right ones, and every mistake with its line and remedy."""

from __future__ import annotations

import json

import pytest

from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source, extra_splits, read_split
from prompt_tuning.errors import UserError
from prompt_tuning.formats.columns import argument_columns, propositions, tag_columns
from prompt_tuning.formats.squad import questions
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
TAGS = find_task({"kind": "tagging"})
SPANS = find_task({"kind": "span"})


def rows(read, file):
    return [row for _, row in read(file)]


def write(folder, text, name="train.txt"):
    file = folder / name
    file.write_bytes(text.encode())
    return file


PLAIN = "Ann\tB-PER\nwon\tO\n\nBob\tB-PER\n"
SENTENCES = [{"words": ["Ann", "won"], "tags": ["B-PER", "O"]}, {"words": ["Bob"], "tags": ["B-PER"]}]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        "\n\n" + PLAIN.replace("\n\n", "\n\n\n\n") + "\n\n",
        PLAIN.replace("\t", " "),
        PLAIN.replace("\t", " NNP I-NP "),
        "-DOCSTART- O\n\n" + PLAIN,
        "# id = 1\n" + PLAIN,
        "0\tAnn\tx\tI-PER\n1\twon\tx\tO\n\n0\tBob\tx\tI-PER\n",
        "1\tAnn\tx\tU-PER\n2\twon\tx\tO\n\n1\tBob\tx\tU-PER\n",
    ],
    ids=["plain", "no-last-blank", "crlf", "bom", "blank-lines", "spaces", "four-columns", "docstart", "comment",
         "counted-iob1", "counted-bilou"],
)  # fmt: skip
def test_columns_are_sentences(tmp_path, text):
    assert rows(tag_columns(), write(tmp_path, text)) == SENTENCES


def test_odd_characters_stay_words(tmp_path):
    """Unicode line ends and spaces are no ends of lines and columns; a hash is a word where it has a tag."""
    text = "a\u2028b\tO\n\x85\tO\n#\tO\n#tag O\n\xa0\tO\n"
    assert rows(tag_columns(), write(tmp_path, text))[0]["words"] == ["a\u2028b", "\x85", "#", "#tag", "\xa0"]


def test_columns_may_be_chosen(tmp_path):
    file = write(tmp_path, "x NN Ann B-P 1\n")
    assert rows(tag_columns(word=2, tag=3), file) == [{"words": ["Ann"], "tags": ["B-P"]}]


PROPS = "Ann\t-\t(A0*)\t*\nsaid\tsay.01\t(V*)\t*\nBob\t-\t(A1*\t(A0*)\nwon\twin.01\t*)\t(V*)\n"
EXPECTED = [
    {"words": ["Ann", "said", "Bob", "won"], "predicate": ["said"], "tags": ["B-A0", "B-V", "B-A1", "I-A1"]},
    {"words": ["Ann", "said", "Bob", "won"], "predicate": ["won"], "tags": ["O", "O", "B-A0", "B-V"]},
]


def test_propositions_in_columns_and_in_lines_are_the_same(tmp_path):
    assert rows(argument_columns(word=0, predicate=1, first=2), write(tmp_path, PROPS)) == EXPECTED
    lines = ["1 Ann said Bob won ||| B-A0 B-V B-A1 I-A1", "3 Ann said Bob won ||| O O B-A0 B-V"]
    assert rows(propositions, write(tmp_path, "\ufeff" + "\r\n".join(lines))) == EXPECTED
    wide = "".join(
        "\t".join(["doc", "0", str(i), word, "P", "*", word, frame, "-", "-", "*", *cells, "-"]) + "\n"
        for i, (word, frame, *cells) in enumerate(line.split("\t") for line in PROPS.splitlines())
    )
    assert rows(propositions, write(tmp_path, f"#begin document (d); part 000\n{wide}\n#end document\n")) == EXPECTED


def test_sentences_without_a_predicate_give_no_row(tmp_path):
    assert rows(argument_columns(0, 1, 2), write(tmp_path, "Oh\t-\nyes\t-\n\n" + PROPS)) == EXPECTED


SQUAD = {"data": [{"paragraphs": [{"context": "w1 w2", "qas": [{"id": "a", "question": "w1", "answers": []}]}]}]}


def test_questions_take_their_context_along(tmp_path):
    file = write(tmp_path, json.dumps(SQUAD), "train.json")
    assert rows(questions, file) == [{"id": "a", "question": "w1", "answers": [], "context": "w1 w2"}]


TAG_MISTAKES = [
    ("a\tO\nb\n", "train.txt:2: 1 columns, but the sentence starts with 2; give every word as many"),
    ("a\nb\n", "train.txt:1: one column only; a line holds a word and its tag"),
    ("a\tO\tO\n\nb\tO\nc\tO\tO\n", "train.txt:4: 3 columns, but the sentence starts with 2"),
]  # fmt: skip
PROP_MISTAKES = [
    ("Ann\tx.01\t(V*\n", "train.txt:1 column 3: 'V' never closes"),
    ("Ann\tx.01\t(V*)\t*\n", "train.txt:1: 1 predicates but 2 columns of arguments; give one a predicate"),
    ("Ann\t-\t*\nwon\tx.01\n", "train.txt:2: 2 columns, but the sentence starts with 3"),
]
LINE_MISTAKES = [
    ("0 a b ||| O\n", "train.txt:1: 2 words but 1 tags; give one tag a word"),
    ("0 a ||| O\n\nx a ||| O\n", "train.txt:3: a line is `predicate-index word word ... ||| tag tag ...`"),
    ("2 a b ||| O O\n", "train.txt:1: the predicate is word 2, counted from 0, but there are 2 words"),
    ("0 a ||| O\n0 a b\n", "train.txt:2: a line is"),
]
MISTAKES = [
    *((tag_columns(), *mistake) for mistake in TAG_MISTAKES),
    *((argument_columns(0, 1, 2), *mistake) for mistake in PROP_MISTAKES),
    *((propositions, *mistake) for mistake in LINE_MISTAKES),
    (questions, "{", "train.txt:1: not JSON"),
    (questions, "[]", "no list `data`; the file needs SQuAD's layout"),
    (questions, '{"data": [{}]}', "data[0]: no list `paragraphs`"),
    (questions, '{"data": [{"paragraphs": [{"qas": [3]}]}]}', "data[0].paragraphs[0].qas[0]: 3 is not an object"),
]


@pytest.mark.parametrize(("read", "text", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_name_file_line_and_remedy(tmp_path, read, text, message):
    with pytest.raises(UserError) as error:
        rows(read, write(tmp_path, text))
    assert message in str(error.value) and "train.txt" in str(error.value)


ANSWERS = [
    (
        [{"text": "w9", "answer_start": 0}],
        "answer 'w9' is not at character 0 of the context; the context does not hold it",
    ),
    ([{"text": "w2", "answer_start": 1}], "is not at character 1 of the context; it stands at 3, correct it"),
    ([{"text": "", "answer_start": 0}], "the context does not hold it"),
    ([{"text": "w2"}], "needs a text `text` and a whole number `answer_start`"),
    ({"text": ["w2"], "answer_start": []}, "have no lists `text` and `answer_start` of one length"),
    ("w2", 'answers are "w2", not a list'),
]


@pytest.mark.parametrize(("answers", "message"), ANSWERS, ids=range(len(ANSWERS)))
def test_wrong_answers_name_their_question(tmp_path, answers, message):
    row = {"question": "w1", "context": "w1 w2", "answers": answers}
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError) as error:
        load_task_data(SPANS, TOKENIZER, Source(str(tmp_path)), Encoding(16, stride=2))
    assert "train.jsonl:1: " in str(error.value)
    assert message.replace("'", '"') in str(error.value).replace("'", '"')


def load_tags(folder, train, dev=PLAIN, task=TAGS, **options):
    write(folder, train)
    write(folder, dev, "dev.conll")
    return load_task_data(task, TOKENIZER, Source(str(folder)), Encoding(16), **options)


def test_a_listed_label_set_refuses_others(tmp_path):
    task = find_task({"kind": "tagging", "labels": ["O", "B-PER", "I-PER"]})
    with pytest.raises(UserError, match=r'train\.txt:1: tag "B-X" is none of O, B-PER, I-PER'):
        load_tags(tmp_path, "w1\tB-X\n", task=task)


def test_a_tag_that_training_lacks_is_counted_and_scored(tmp_path, caplog):
    caplog.set_level("INFO", logger="prompt_tuning")
    data = load_tags(tmp_path, PLAIN, "w1\tB-NEW\nw2\tB-PER\n")
    assert data.labels == ("O", "B-PER")
    assert "1 of 2 words have tags that the training split lacks; they count as missed" in caplog.text
    assert list(data.splits["dev"].notes.tags) == [("B-NEW", "B-PER")]


def test_lists_of_words_and_tags_must_be_of_one_length(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"words": ["a", "b"], "tags": ["B-X"]}))
    with pytest.raises(UserError, match=r"train\.jsonl:1: 2 words but 1 tags; give one tag a word"):
        load_task_data(TAGS, TOKENIZER, Source(str(tmp_path)), Encoding(16))


def test_a_very_long_line_is_read(tmp_path):
    word = "w" * 1_000_000
    (row,) = rows(tag_columns(), write(tmp_path, f"{word}\tO\n"))
    assert row["words"] == [word]


def test_nothing_to_learn_is_said(tmp_path):
    with pytest.raises(UserError, match="all tags of the training split are 'O'"):
        load_tags(tmp_path, "a\tO\n")


def test_licensed_data_say_where_they_come_from(tmp_path):
    with pytest.raises(UserError, match=r"the train split of .* is missing; .*catalog\.ldc\.upenn\.edu/LDC99T42"):
        load_task_data(find_task("conll05"), TOKENIZER, Source(str(tmp_path)), Encoding(16))
    with pytest.raises(UserError, match=r"has no data set on the hub: .*catalog\.ldc\.upenn\.edu"):
        read_split(find_task("conll12"), Source(), "train")


def test_extra_test_splits_are_found_by_their_files(tmp_path):
    xquad, brown = find_task("xquad"), find_task("conll05")
    for language in ("en", "zh"):
        (tmp_path / "xquad").mkdir(exist_ok=True)
        (tmp_path / "xquad" / f"xquad.{language}.json").write_text(json.dumps(SQUAD))
    assert extra_splits(xquad, Source(str(tmp_path))) == ["test/en", "test/zh"]
    assert len(list(read_split(xquad, Source(str(tmp_path)), "test/zh"))) == 1
    write(tmp_path, "0 a ||| B-V\n", "conll05.test.brown.txt")
    assert extra_splits(brown, Source(str(tmp_path))) == ["test/brown"]


def test_two_files_for_one_split_are_refused(tmp_path):
    write(tmp_path, PLAIN)
    write(tmp_path, PLAIN, "train.conll")
    with pytest.raises(UserError, match=r"train\.conll and train\.txt both look like the train split; keep one"):
        read_split(TAGS, Source(str(tmp_path)), "train")


def test_held_out_rows_select_and_dev_is_only_reported(tmp_path):
    text = "\n".join(f"w{i}\tB-PER\nw2\tO\n" for i in range(10))
    whole = load_tags(tmp_path, text)
    data = load_tags(tmp_path, text, held_out=0.3)
    assert {split: len(features) for split, features in data.splits.items()} == {"train": 7, "dev": 3, "test/dev": 2}
    firsts = [
        features.tokens[features.offsets[:-1] + 1].tolist() for features in (data.splits["train"], data.splits["dev"])
    ]
    assert sorted(firsts[0] + firsts[1]) == sorted(
        whole.splits["train"].tokens[whole.splits["train"].offsets[:-1] + 1].tolist()
    )
    again = load_tags(tmp_path, text, held_out=0.3)
    assert again.splits["dev"].tokens.tolist() == data.splits["dev"].tokens.tolist()
    with pytest.raises(UserError, match=r"data\.held_out=0\.01 of 10 training rows leaves nothing on one side"):
        load_tags(tmp_path, text, held_out=0.01)


def test_held_out_rows_select_where_there_is_no_dev_split(tmp_path):
    write(tmp_path, "\n".join(f"w{i}\tB-PER\nw2\tO\n" for i in range(10)))
    data = load_task_data(TAGS, make_tokenizer(), Source(str(tmp_path)), Encoding(24), held_out=0.3)
    assert {split: len(features) for split, features in data.splits.items()} == {"train": 7, "dev": 3}
    with pytest.raises(UserError, match=r"dev split of .* is missing; .*or set data\.held_out"):
        load_task_data(TAGS, make_tokenizer(), Source(str(tmp_path)), Encoding(24))


def test_official_files_of_glue_are_read(tmp_path):
    """Tables write labels as text; CoLA's has no names of columns, MRPC's has names of its own."""
    cola, sst2, mrpc = (find_task(name) for name in ("cola", "sst2", "mrpc"))
    (tmp_path / "CoLA").mkdir()
    write(tmp_path / "CoLA", 'gj04\t1\t\tA "quoted sentence.\ngj04\t0\t*\tBad is.\n', "train.tsv")
    rows = [row for _, row in read_split(cola, Source(str(tmp_path)), "train")]
    assert [row["sentence"] for row in rows] == ['A "quoted sentence.', "Bad is."]
    assert [cola.label_index(row["label"], cola.labels) for row in rows] == [1, 0]
    write(tmp_path / "CoLA", "a\t1\n", "dev.tsv")
    with pytest.raises(UserError, match=r"dev\.tsv:1: 2 columns; a line is source, label, mark and sentence"):
        list(read_split(cola, Source(str(tmp_path)), "dev"))
    write(tmp_path, 'sentence\tlabel\nw1 "\t1\n', "train.tsv")
    assert [row for _, row in read_split(sst2, Source(str(tmp_path)), "train")] == [{"sentence": 'w1 "', "label": "1"}]
    assert sst2.label_index("1", sst2.labels) == 1
    write(tmp_path, "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\ta\tb\r\n", "train.tsv")
    ((_, raw),) = read_split(mrpc, Source(str(tmp_path)), "train")
    (row,) = mrpc.expand(raw)
    assert (row["sentence1"], row["sentence2"], mrpc.label_index(row["label"], mrpc.labels)) == ("a", "b", 1)


def test_official_names_of_conll_2003(tmp_path):
    for name in ("eng.train", "eng.testa", "eng.testb"):
        write(tmp_path, "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\n", name)
    for split in ("train", "dev", "test"):
        assert [row for _, row in read_split(find_task("conll03"), Source(str(tmp_path)), split)] == [
            {"words": ["EU"], "tags": ["B-ORG"]}
        ]
