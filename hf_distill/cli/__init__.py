"""The command line, `hf-distill`: the only place that prints."""
