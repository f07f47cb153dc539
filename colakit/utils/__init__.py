"""Files, locks, array cache, download, console; no torch."""
