"""Files, locks, subprocesses, array cache, download, console; no torch."""
