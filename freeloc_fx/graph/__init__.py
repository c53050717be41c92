"""Views of a captured graph, and the records that passes leave on it."""
