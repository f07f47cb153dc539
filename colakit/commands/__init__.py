"""One module a command, each with `run(context, …)` that returns what `--json` prints."""
