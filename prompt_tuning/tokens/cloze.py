"""Cloze sequences: a candidate in a gap of the text, with the tokens that the language model is asked for."""

from __future__ import annotations

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.tokens.features import NO_TAG, Remarks
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import checked_text, sequences, template_of
from prompt_tuning.tokens.tokenise import check_offsets, check_room, cut_texts, flatten, word_lead


def encode_gaps(
    recipe: Recipe, rows: list[LocatedRow]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int, np.ndarray, Remarks]:
    """Tokens, types, offsets, sequences a row, wanted tokens and remarks of cloze sequences; contexts cut to ``max_length``."""
    task, tokenizer, max_length = recipe.task, recipe.tokenizer, recipe.encoding.max_length
    check_offsets(tokenizer, "cloze templates")
    build = template_of(task, recipe.encoding.template)
    lead = word_lead(tokenizer)
    contexts: list[str] = []
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    for where, row in rows:
        for context, gap in sequences(task, where, build, row):
            before, candidate, after = (checked_text(where, part) for part in gap)
            contexts.append(checked_text(where, context))
            texts.append(f"{lead}{before}{candidate}{after}")
            spans.append((len(lead + before), len(lead + before + candidate)))
    check_room(tokenizer, max_length, True)
    longest = max((len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]), default=0)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    if longest >= room:
        raise UserError(
            f"data.max_length={max_length} leaves no room for context beside a question of {longest} tokens; raise it"
        )
    encoded = tokenizer(
        contexts,
        texts,
        truncation="only_first",
        max_length=max_length,
        return_attention_mask=False,
        return_offsets_mapping=True,
    )
    tokens, types, offsets = flatten(encoded, len(texts))
    wanted = np.full(len(tokens), NO_TAG, np.int32)
    for i, (first, last) in enumerate(spans):
        places = np.asarray(encoded["offset_mapping"][i])
        own = np.array([sequence == 1 for sequence in encoded.sequence_ids(i)])
        held = offsets[i] + np.flatnonzero(own & (places[:, 1] > first) & (places[:, 0] < last))
        if not len(held):
            raise UserError(
                f"{rows[i * len(rows) // len(texts)][0]}: the candidate {texts[i][first:last]!r} has no tokens"
            )
        if tokenizer.mask_token_id is None:
            wanted[held - 1] = tokens[held]  # the token before says what comes next
        else:
            wanted[held] = tokens[held]
            tokens[held] = tokenizer.mask_token_id
    remarks = cut_texts(np.diff(offsets), max_length)
    return tokens, types, offsets, len(texts) // max(1, len(rows)), wanted, remarks
