"""Remembering what was asked and what came of it: rows, REST, pages, command line."""
