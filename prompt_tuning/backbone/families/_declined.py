"""Model types of transformers that no family file can serve as it is, and why."""

_OWN_ATTENTION = (
    "it attends in code of its own and not through transformers' attention interface, where a prefix would enter"
)
_NO_KEYS = "it has no keys and values, in front of which a prefix would stand"
_SEQ2SEQ = (
    "it writes by a decoder that looks at an encoder, into which no prompts are put here; to write texts choose 'bart', 't5' or a"
    " decoder such as 'llama', to read them an encoder such as 't5'"
)
_EXPERTS = "the weights of its experts stand one by one in files and as one tensor in memory, which is not read here"

DECLINED: dict[str, str] = {
    **dict.fromkeys(
        (
            "big_bird", "bloom", "canine", "codegen", "convbert", "falcon", "flaubert", "funnel", "gpt_neo", "gptj", "ibert",
            "longformer", "luke", "megatron-bert", "mpnet", "mpt", "mra", "nystromformer", "openai-gpt", "reformer",
            "rembert", "roformer", "squeezebert", "tapas", "xglm", "xlm", "xlnet", "yoso",
        ),
        _OWN_ATTENTION,
    ),
    **dict.fromkeys(
        (
            "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5", "m2m_100",
            "marian", "mbart", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet", "switch_transformers",
            "t5gemma", "t5gemma2",
        ),
        _SEQ2SEQ,
    ),
    **dict.fromkeys(("fnet", "mamba", "mamba2", "rwkv"), _NO_KEYS),
    "gemma3": "it sees images too, unlike the text models whose model_type is 'gemma3_text'",
    "gpt_oss": "its attention has sinks, which no kernel here has",
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), _EXPERTS),
    "olmo": "it may clip queries and keys in place, which frozen layers do not allow",
    "olmo2": "its queries and keys are normed over all heads, of which a tensor rank has a share",
    "stablelm": "its layers hand nothing on to their attention, where a prefix would enter",
    "xmod": "its adapters are chosen by the language of each text, which no run file says",
    **dict.fromkeys(("layoutlm", "markuplm"), "its texts come with places on a page, which no run file says"),
}  # fmt: skip
