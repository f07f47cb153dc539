"""Settings schema, and loading settings from flags, `--set`, the environment and YAML."""
