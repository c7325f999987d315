"""Documents as prompts: passages of a document, questions about them, and what their prompts are compared with."""
