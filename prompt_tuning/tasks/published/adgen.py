"""ADGEN: advertisements in Chinese for products given as pairs of `type#value` (Shao et al. 2019), as ChatGLM's P-tuning trains it.

``bleu4`` is ChatGLM's: the mean over rows of BLEU-4 of characters. Its ROUGE is of words that jieba finds; here it is of characters.
"""

from prompt_tuning.metrics.generation import bleu4, perplexity, rouge1, rouge2, rouge_l
from prompt_tuning.tasks.types import Files, Task

TASK = Task(
    name="adgen",
    kind="generation",
    labels=None,
    metrics={"bleu4": bleu4, "rouge1": rouge1, "rouge2": rouge2, "rouge_l": rouge_l, "perplexity": perplexity},
    columns=("content",),
    templates={"plain": lambda row: ((row["content"], None),)},
    hub=("HasturOfficial/adgen", None),
    files=Files(folders=("AdvertiseGen", "adgen")),
    label_column="summary",
)
