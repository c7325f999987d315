"""Model types of transformers that no family file can serve as it is, and why."""

_OWN_ATTENTION = (
    "it attends in code of its own and not through transformers' attention interface, where a prefix would enter"
)
_NO_KEYS = "it has no keys and values, in front of which a prefix would stand"

DECLINED: dict[str, str] = {
    **dict.fromkeys(
        (
            "big_bird", "bloom", "canine", "codegen", "convbert", "falcon", "flaubert", "funnel", "gpt_neo", "gptj", "ibert",
            "led", "longformer", "luke", "megatron-bert", "mpnet", "mpt", "mra", "nystromformer", "openai-gpt", "reformer",
            "rembert", "roformer", "squeezebert", "tapas", "xlm", "xlnet", "yoso",
        ),
        _OWN_ATTENTION,
    ),
    **dict.fromkeys(("fnet", "mamba", "mamba2", "rwkv"), _NO_KEYS),
    "xmod": "its adapters are chosen by the language of each text, which no run file says",
    **dict.fromkeys(("layoutlm", "markuplm"), "its texts come with places on a page, which no run file says"),
}  # fmt: skip
