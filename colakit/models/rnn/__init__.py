"""Recurrent student: configuration, torch module, NumPy inference."""
