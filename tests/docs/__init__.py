"""Docs say what is: tables in them that code can check are checked."""
