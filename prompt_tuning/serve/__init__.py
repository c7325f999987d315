"""Exported prompts over HTTP: one process, one backbone, one thread that runs the model; requests that wait share its forwards."""
